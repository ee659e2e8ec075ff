"""Samples and batches: from the store to what a model takes."""
