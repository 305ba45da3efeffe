"""Codes that decode to a lower loss than the nearest ones do."""
