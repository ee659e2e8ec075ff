"""Evaluation: ground truth, scores of runs, baselines, published results, result files."""
