"""Blocks the models share: attention, positions, feed-forward parts, proposal map."""
