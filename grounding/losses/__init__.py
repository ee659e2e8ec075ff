"""The losses that systems share, and each system's own."""
