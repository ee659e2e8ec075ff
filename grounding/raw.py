"""What networks with encoders of their own are given: pictures and tokens, where networks on cached features are given maps and
token states.

On a CPU pictures are decoded as they are read. For a GPU their JPEGs are kept, and decoded there, a whole batch at once: a
twentieth of the bytes waits in memory and crosses over. The two decoders bring colours, stored at half the resolution, back in ways of
their own: their pixels differ by a grey level or two on the mean, and by more where colours meet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grounding.views import View
from pipeline.encoders.geometry import appearance_size
from pipeline.extract import jpeg_frames, jpegs_of
from pipeline.makers import encode_jpeg
from pipeline.records import Query
from pipeline.store import ProductReader

if TYPE_CHECKING:
    from grounding.data import Product

Tokenise = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Sentences → ids `[n, L]` and mask `[n, L]`."""
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
    """What `grounding.collate.collate` makes of pictures that are not decoded yet; `.to`, as of a tensor, decodes them."""

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


class Pictures:
    """The product `frames` as a product of pictures (`grounding.data.Product`): one row per stored frame, RGB uint8 `[h, w, 3]`,
    of which `short` is the shorter side."""

    def __init__(self, frames: Product, short: int) -> None:
        self._frames, self._short = frames, short

    @classmethod
    def of_store(cls, frames: ProductReader) -> Pictures:
        """Those of a store's product."""
        return cls(frames, int(frames.product.provenance["sampling"]["short"]))

    def __contains__(self, key: object) -> bool:
        return key in self._frames

    def shape(self, key: str) -> tuple[int, ...]:
        width, height = appearance_size(tuple(self.facts(key)["size"]), self._short)
        return len(self.columns(key)["frame"]), height, width, 3

    def facts(self, key: str) -> dict[str, Any]:
        return self._frames.facts(key)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return {"frame": np.unique(self._frames.columns(key)["frame"])}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Pictures `[len(indices), h, w, 3]`; all of them without `indices`."""
        rows, columns, places = self._pages(key, indices)
        result = np.empty((len(places), *self.shape(key)[1:]), np.uint8)
        for number, (_, picture) in enumerate(jpeg_frames(rows, columns)):
            result[places == number] = picture
        return result

    def jpegs(self, key: str, indices: np.ndarray) -> Jpegs:
        """The same, not decoded yet."""
        rows, columns, places = self._pages(key, indices)
        _, height, width, _ = self.shape(key)
        return Jpegs([jpeg for _, jpeg in jpegs_of(rows, columns)], places, (height, width))

    def _pages(self, key: str, indices: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """The stored rows of the pictures wanted, each once, what is known of them, and which of them each of `indices` is."""
        columns = self._frames.columns(key)
        numbers, page = np.unique(columns["frame"], return_inverse=True)
        own, places = np.unique(np.arange(len(numbers)) if indices is None else indices, return_inverse=True)
        pages = np.flatnonzero(np.isin(page, own))
        return self._frames.read(key, pages), {name: values[pages] for name, values in columns.items()}, places


class Tokens:
    """The queries' sentences as a product of token ids, `[L, 1]` int64 under each query's id."""

    def __init__(self, queries: Sequence[Query], tokenise: Tokenise) -> None:
        ids, masks = tokenise([query.text for query in queries]) if queries else ((), ())
        self._rows = {query.id: own[mask, None].numpy() for query, own, mask in zip(queries, ids, masks, strict=True)}

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def shape(self, key: str) -> tuple[int, ...]:
        return self._rows[key].shape

    def facts(self, key: str) -> dict[str, Any]:
        return {}

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return {}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        return self._rows[key] if indices is None else self._rows[key][indices]
