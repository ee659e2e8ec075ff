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
    """Split an entry of the product `frames` into its JPEGs.

    Args:
        rows: `[n, JPEG_ROW_BYTES]` uint8.
        columns: for each row, the frame in `frame` and the number of used bytes in `bytes`, `[n]`.

    Yields:
        Frame index and JPEG `[bytes]` uint8, in order. The JPEG is a view of `rows`.
    """
    frames = columns["frame"]
    used_bytes = columns["bytes"]

    # A JPEG begins wherever the frame changes; the first row always begins one.
    starts = np.flatnonzero(np.diff(frames, prepend=frames[:1] - 1)).tolist()
    ends = [*starts[1:], len(frames)]
    for start, end in zip(starts, ends, strict=True):
        length = int(used_bytes[start:end].sum())
        yield int(frames[start]), rows[start:end].reshape(-1)[:length]


def decode_jpegs(
    rows: np.ndarray, columns: Mapping[str, np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode an entry of the product `frames` on the CPU.

    torchvision decodes: it takes two thirds of Pillow's time and gives the same pixels, because
    both use libjpeg-turbo.

    Args:
        rows: `[n, JPEG_ROW_BYTES]` uint8.
        columns: `frame` `[n]` and `bytes` `[n]`, as for `iterate_jpegs`.

    Yields:
        Frame index and RGB uint8 `[h, w, 3]`, in order.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    for frame_index, jpeg in iterate_jpegs(rows, columns):
        image = decode_jpeg(torch.from_numpy(jpeg), ImageReadMode.RGB)  # [3, h, w]
        yield frame_index, image.permute(1, 2, 0).numpy()


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """Encode an image as JPEG, with half the resolution for color (4:2:0).

    Args:
        image: RGB uint8 `[3, h, w]`.
        quality: JPEG quality, 1 to 100.

    Returns:
        The file's bytes.
    """
    from PIL import Image

    buffer = BytesIO()
    pixels = image.permute(1, 2, 0).numpy()  # [h, w, 3]
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
