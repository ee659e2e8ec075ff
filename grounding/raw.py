"""What networks with encoders of their own are given: pictures and tokens, where networks on cached features are given maps and
token states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pipeline.encoders.geometry import appearance_size
from pipeline.extract import jpeg_frames
from pipeline.records import Query
from pipeline.store import ProductReader

if TYPE_CHECKING:
    from grounding.data import Product

Tokenise = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Sentences → ids `[n, L]` and mask `[n, L]`."""


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
        columns = self._frames.columns(key)
        numbers = np.unique(columns["frame"])
        wanted = numbers if indices is None else numbers[indices]
        pages = np.flatnonzero(np.isin(columns["frame"], wanted))
        rows = self._frames.read(key, pages)
        found = dict(jpeg_frames(rows, {name: values[pages] for name, values in columns.items()}))
        return np.stack([found[number] for number in wanted.tolist()])


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
