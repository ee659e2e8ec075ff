"""Inference: models and features to tubes, with passes, refinement and ensembles."""
