"""8-bit quantization of rows, with one scale per row: `scale = max(|row|) / 127`.

The error is at most half a scale, 0.4 % of the row's largest absolute value.
"""

from __future__ import annotations

import numpy as np

SCALE_COLUMN = "scale"
"""Column with the scale of each row of an int8 entry. Rows with a scale are read as float16."""


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize rows to int8.

    Args:
        rows: `[n, *shape]`, finite numbers.

    Returns:
        int8 `[n, *shape]` and float32 scales `[n]`. The error of a number is at most half its
        row's scale.
    """
    flat_rows = rows.reshape(len(rows), -1)  # [n, k]
    scales = np.abs(flat_rows).max(1, initial=0).astype(np.float32) / np.float32(127)  # [n]

    # Row by row, to bound the memory of intermediate results.
    quantized = np.empty(flat_rows.shape, np.int8)
    for row, scale, out in zip(flat_rows, scales, quantized, strict=True):
        out[:] = np.rint(row / scale) if scale else 0  # a row of zeros has no scale
    return quantized.reshape(rows.shape), scales


def dequantize(rows: np.ndarray, scales: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Restore float16 numbers from int8 rows.

    Args:
        rows: int8 `[n, *shape]`.
        scales: float32 `[n]`.
        out: float16 `[n, *shape]`, written in place.

    Returns:
        `out`.
    """
    factors = scales.reshape(-1, *[1] * (rows.ndim - 1))  # [n, 1, …]
    return np.multiply(rows, factors, out=out, dtype=np.float32, casting="same_kind")
