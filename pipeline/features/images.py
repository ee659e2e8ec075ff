"""JPEG images of the product `frames`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO

import numpy as np
import torch
from torch import Tensor


def iterate_jpegs(
    rows: np.ndarray, columns: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """The JPEGs of an entry of the `frames` product: `(frame number, bytes [n] uint8)` in order; the bytes are views of `rows`."""
    frame, count = columns["frame"], columns["bytes"]
    begins = np.flatnonzero(np.diff(frame, prepend=frame[:1] - 1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(frame)], strict=True):
        yield int(frame[begin]), rows[begin:end].reshape(-1)[: int(count[begin:end].sum())]


def decode_jpegs(
    rows: np.ndarray, columns: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode an entry of the `frames` product on the CPU: `(frame number, RGB uint8 [h, w, 3])` in order.

    By torchvision, which takes two thirds of Pillow's time to the same pixels: both end in libjpeg-turbo.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    for number, jpeg in iterate_jpegs(rows, columns):
        yield (
            number,
            decode_jpeg(torch.from_numpy(jpeg), ImageReadMode.RGB).permute(1, 2, 0).numpy(),
        )


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """RGB uint8 `[3, h, w]` as a JPEG whose colours have half the resolution (4:2:0)."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(
        buffer, "JPEG", quality=quality, subsampling="4:2:0"
    )
    return buffer.getvalue()
