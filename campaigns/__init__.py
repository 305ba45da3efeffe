"""Faults looked for by the thousand: kills, broken data, hostile files, settings with mistakes."""
