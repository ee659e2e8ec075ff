"""Prediction with one or more trained models on stored features."""
