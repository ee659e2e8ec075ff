"""What networks with encoders of their own are given: pictures and tokens, where networks on cached features are given maps and
token states.

On a CPU pictures are decoded as they are read. For a GPU their JPEGs are kept, and decoded there, a whole batch at once: a
twentieth of the bytes waits in memory and crosses over. The two decoders bring colours, stored at half the resolution, back in ways of
their own: their pixels differ by a grey level or two on the mean, and by more where colours meet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from grounding.data.image_transforms import ImageTransform
from pipeline.features.images import encode_jpeg

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImages:
    """T pictures of one size `(rows, columns)` that are not decoded yet: the different ones among them, uint8 `[bytes]` each, and which
    of these each of the T is. With a `view` that of them is meant.
    """

    images: list[np.ndarray]
    indices: np.ndarray
    size: tuple[int, int]
    transform: ImageTransform | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`[T, h, w, 3]`, as they will be."""
        return (
            len(self.indices),
            *(self.size if self.transform is None else self.transform.size),
            3,
        )

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.images)

    def with_transform(self, transform: ImageTransform) -> EncodedImages:
        return replace(self, transform=transform)


@dataclass(frozen=True)
class EncodedImageBatch:
    """What `grounding.data.collate.collate` makes of pictures that are not decoded yet; `.to`, as of a tensor, decodes them."""

    videos: Sequence[EncodedImages]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """RGB uint8 `[V, T, h, w, 3]`, zero-padded to the largest, on the device."""
        pictures = iter(
            decode_jpegs_on_device([one for video in self.videos for one in video.images], device)
        )
        shape = np.max([video.shape for video in self.videos], 0).tolist()
        result = torch.zeros((len(self.videos), *shape), dtype=torch.uint8, device=device)
        for place, video in zip(result, self.videos, strict=True):
            seen = torch.stack([next(pictures) for _ in video.images]).permute(0, 2, 3, 1)
            seen = seen if video.transform is None else video.transform.apply_to_tensor(seen)
            place[:, : seen.shape[1], : seen.shape[2]] = seen[
                torch.from_numpy(video.indices).to(device)
            ]
        return result


def decode_jpegs_on_device(jpegs: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Each JPEG's picture, RGB uint8 `[3, h, w]` on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if (
        device.type == "cuda"
    ):  # the decoder does not wait for this stream before it writes into memory freed on it (pytorch/vision#9606)
        torch.cuda.current_stream(device).synchronize()
    pictures: list[Tensor] = decode_jpeg(
        [torch.from_numpy(jpeg) for jpeg in jpegs], ImageReadMode.RGB, device
    )
    return pictures


@cache
def can_decode_jpegs(device: torch.device) -> bool:
    """Whether JPEGs are decoded on a device: on a GPU for which torchvision was built with a decoder."""
    if device.type != "cuda":
        return False
    try:
        decode_jpegs_on_device(
            [
                np.frombuffer(
                    bytearray(encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8), 90)), np.uint8
                )
            ],
            device,
        )
    except RuntimeError as error:
        log.warning(
            "pictures are decoded on the CPU, for torchvision cannot on %s: %s",
            device,
            str(error).splitlines()[0],
        )
        return False
    return True
