"""Feature sources: products of a store, stored images, sentences as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from grounding.data.images import EncodedImages
from pipeline.encoders.image_geometry import compute_appearance_size
from pipeline.features.images import decode_jpegs, iterate_jpegs
from pipeline.records import Query
from pipeline.store import Entry, ProductReader


class FeatureSource(Protocol):
    """What a set of features asks of a product: a store's `ProductReader`, or features just made."""

    def __contains__(self, key: object) -> bool: ...
    def shape(self, key: str) -> tuple[int, ...]: ...
    def facts(self, key: str) -> dict[str, Any]: ...
    def columns(self, key: str) -> dict[str, np.ndarray]: ...
    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray: ...


TokenizeFunction = Callable[[list[str]], tuple[Tensor, Tensor]]
"""Sentences → ids `[n, L]` and mask `[n, L]`."""


class ImageSource:
    """The product `frames` as a product of pictures (`grounding.data.sources.Product`): one row per stored frame, RGB uint8 `[h, w, 3]`,
    of which `short` is the shorter side.
    """

    def __init__(self, frames: FeatureSource, short_side: int) -> None:
        self._frames, self._short_side = frames, short_side

    @classmethod
    def from_store(cls, frames: ProductReader) -> ImageSource:
        """Those of a store's product."""
        return cls(frames, int(frames.product.provenance["sampling"]["short_side"]))

    def __contains__(self, key: object) -> bool:
        return key in self._frames

    def shape(self, key: str) -> tuple[int, ...]:
        width, height = compute_appearance_size(tuple(self.facts(key)["size"]), self._short_side)
        return len(self.columns(key)["frame"]), height, width, 3

    def facts(self, key: str) -> dict[str, Any]:
        return self._frames.facts(key)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return {"frame": np.unique(self._frames.columns(key)["frame"])}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Pictures `[len(indices), h, w, 3]`; all of them without `indices`."""
        rows, columns, places = self._read_pages(key, indices)
        result = np.empty((len(places), *self.shape(key)[1:]), np.uint8)
        for number, (_, picture) in enumerate(decode_jpegs(rows, columns)):
            result[places == number] = picture
        return result

    def read_encoded(self, key: str, indices: np.ndarray) -> EncodedImages:
        """The same, not decoded yet."""
        rows, columns, places = self._read_pages(key, indices)
        _, height, width, _ = self.shape(key)
        return EncodedImages(
            [jpeg for _, jpeg in iterate_jpegs(rows, columns)], places, (height, width)
        )

    def _read_pages(
        self, key: str, indices: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """The stored rows of the pictures wanted, each once, what is known of them, and which of them each of `indices` is."""
        columns = self._frames.columns(key)
        numbers, page = np.unique(columns["frame"], return_inverse=True)
        own, places = np.unique(
            np.arange(len(numbers)) if indices is None else indices, return_inverse=True
        )
        pages = np.flatnonzero(np.isin(page, own))
        return (
            self._frames.read(key, pages),
            {name: values[pages] for name, values in columns.items()},
            places,
        )


class TokenSource:
    """The queries' sentences as a product of token ids, `[L, 1]` int64 under each query's id."""

    def __init__(self, queries: Sequence[Query], tokenize: TokenizeFunction) -> None:
        ids, masks = tokenize([query.text for query in queries]) if queries else ((), ())
        self._token_ids = {
            query.id: own[mask, None].numpy()
            for query, own, mask in zip(queries, ids, masks, strict=True)
        }

    def __contains__(self, key: object) -> bool:
        return key in self._token_ids

    def shape(self, key: str) -> tuple[int, ...]:
        return self._token_ids[key].shape

    def facts(self, key: str) -> dict[str, Any]:
        return {}

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return {}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        return self._token_ids[key] if indices is None else self._token_ids[key][indices]


class InMemorySource:
    """Entries that were just made, read as a store's product is (`grounding.data.sources.Product`)."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.key: entry for entry in entries}

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        return self._entries[key].facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return self._entries[key].columns

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Rows `[len(indices), *shape]`; all of them without `indices`."""
        rows = self._entries[key].rows
        return rows if indices is None else rows[indices]
