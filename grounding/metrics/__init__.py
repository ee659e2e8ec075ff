"""Scores of tubes under each protocol, and bootstrap intervals; NumPy arrays only, no torch."""
