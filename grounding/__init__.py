"""Stage two: models trained on the cached features, their losses and metrics, and answers to questions."""
