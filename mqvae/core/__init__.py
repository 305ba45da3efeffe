"""The paper's mathematics. Imports torch and nothing else."""
