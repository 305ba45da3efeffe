"""The paper's tables and figures: its values, the runs they take, the page they end in."""
