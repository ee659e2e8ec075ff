"""Grounding of sentences in single videos, short or long, without a feature store."""
