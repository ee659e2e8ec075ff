"""Prediction for any video: `Grounder`, windows over long videos, the cache of features."""
