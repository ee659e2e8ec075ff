"""Rows in eight bits: each row's numbers as multiples of one scale, `scale = largest / 127`; a quarter of a percent off at most."""

from __future__ import annotations

import numpy as np

SCALE_COLUMN = "scale"
"""The column with the scale of each row of an int8 entry; rows that have one are read as float16."""


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite `[n, *shape]` → int8 of the same shape and float32 scales `[n]`; each number is at most half its scale off."""
    flat = rows.reshape(len(rows), -1)
    scales = np.abs(flat).max(1, initial=0).astype(np.float32) / np.float32(127)
    steps = np.empty(flat.shape, np.int8)
    for row, scale, place in zip(flat, scales, steps, strict=True):
        place[:] = np.rint(row / scale) if scale else 0
    return steps.reshape(rows.shape), scales


def dequantize(rows: np.ndarray, scales: np.ndarray, out: np.ndarray) -> np.ndarray:
    """int8 `[n, *shape]` and scales `[n]` → float16 `[n, *shape]`, into `out`."""
    factors = scales.reshape(-1, *[1] * (rows.ndim - 1))
    return np.multiply(rows, factors, out=out, dtype=np.float32, casting="same_kind")
