"""Training: the loop, its state, the run directory, and distributed processes."""
