"""Metrics: scores of tubes under each protocol, and bootstrap intervals. Arrays only, no torch."""
