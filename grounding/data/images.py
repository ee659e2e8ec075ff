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

from grounding.data.image_transforms import View
from pipeline.features.images import encode_jpeg

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jpegs:
    """T pictures of one size `(rows, columns)` that are not decoded yet: the different ones among them, uint8 `[bytes]` each, and which
    of these each of the T is. With a `view` that of them is meant."""

    different: list[np.ndarray]
    places: np.ndarray
    size: tuple[int, int]
    view: View | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`[T, h, w, 3]`, as they will be."""
        return (len(self.places), *(self.size if self.view is None else self.view.size), 3)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.different)

    def seen(self, view: View) -> Jpegs:
        return replace(self, view=view)


@dataclass(frozen=True)
class JpegBatch:
    """What `grounding.data.collate.collate` makes of pictures that are not decoded yet; `.to`, as of a tensor, decodes them."""

    videos: Sequence[Jpegs]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """RGB uint8 `[V, T, h, w, 3]`, zero-padded to the largest, on the device."""
        pictures = iter(decoded([one for video in self.videos for one in video.different], device))
        shape = np.max([video.shape for video in self.videos], 0).tolist()
        result = torch.zeros((len(self.videos), *shape), dtype=torch.uint8, device=device)
        for place, video in zip(result, self.videos, strict=True):
            seen = torch.stack([next(pictures) for _ in video.different]).permute(0, 2, 3, 1)
            seen = seen if video.view is None else video.view.of_tensor(seen)
            place[:, : seen.shape[1], : seen.shape[2]] = seen[torch.from_numpy(video.places).to(device)]
        return result


def decoded(jpegs: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Each JPEG's picture, RGB uint8 `[3, h, w]` on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if device.type == "cuda":  # the decoder does not wait for this stream before it writes into memory freed on it (pytorch/vision#9606)
        torch.cuda.current_stream(device).synchronize()
    pictures: list[Tensor] = decode_jpeg([torch.from_numpy(jpeg) for jpeg in jpegs], ImageReadMode.RGB, device)
    return pictures


@cache
def decodes(device: torch.device) -> bool:
    """Whether JPEGs are decoded on a device: on a GPU for which torchvision was built with a decoder."""
    if device.type != "cuda":
        return False
    try:
        decoded([np.frombuffer(bytearray(encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8), 90)), np.uint8)], device)
    except RuntimeError as error:
        log.warning("pictures are decoded on the CPU, for torchvision cannot on %s: %s", device, str(error).splitlines()[0])
        return False
    return True
