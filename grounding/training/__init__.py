"""Training: the loop, its state, the run directory, distributed processes."""
