"""What is true of a batch, the losses that systems share, and each system's own."""
