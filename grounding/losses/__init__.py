"""Losses of each system, and the losses that systems share."""
