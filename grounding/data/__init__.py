"""Samples and batches: from a feature store to model inputs."""
