"""Extraction of all videos of an index into a store: plan, Dask, provenance, resume."""
