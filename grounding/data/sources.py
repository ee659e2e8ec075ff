"""Feature sources: products of a store, stored images, token ids, and features in memory.

Models that train their own encoders read images and token ids. All other models read cached feature
maps and token states.
"""

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
    """Interface of a feature product, as that of a store's `ProductReader`.

    A product holds one array of rows for each key: a video, or a query's sentence.
    """

    def __contains__(self, key: object) -> bool: ...

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a key's rows.

        Args:
            key: Key of a video or query.

        Returns:
            The shape, rows first.
        """

    def facts(self, key: str) -> dict[str, Any]:
        """Return the facts that are stored with a key.

        Args:
            key: Key of a video or query.

        Returns:
            Facts by name; `size` is the video's (width, height) in pixels.
        """

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return the columns that describe a key's rows.

        Args:
            key: Key of a video or query.

        Returns:
            Arrays [n] by name; `frame` is the frame index of each row.
        """

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Read rows.

        Args:
            key: Key of a video or query.
            indices: Indices of the rows, in any order; None for all rows.

        Returns:
            The rows, [n, …].
        """


TokenizeFunction = Callable[[list[str]], tuple[Tensor, Tensor]]
"""From n sentences to token ids `[n, L]` and their mask `[n, L]`."""


class ImageSource:
    """Images from a store's product `frames`: one row per stored frame, [h, w, 3] RGB uint8.

    Args:
        frames: The product `frames`, whose rows are pages of JPEG files.
        short_side: Shorter side of the stored images, in pixels.
    """

    def __init__(self, frames: FeatureSource, short_side: int) -> None:
        self._frames = frames
        self._short_side = short_side

    @classmethod
    def from_store(cls, frames: ProductReader) -> ImageSource:
        """Open the images of a store.

        Args:
            frames: The store's product `frames`.

        Returns:
            The images.
        """
        return cls(frames, int(frames.product.provenance["sampling"]["short_side"]))

    def __contains__(self, key: object) -> bool:
        return key in self._frames

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a video's images.

        Args:
            key: Key of the video.

        Returns:
            (n, h, w, 3).
        """
        width, height = compute_appearance_size(tuple(self.facts(key)["size"]), self._short_side)
        return len(self.columns(key)["frame"]), height, width, 3

    def facts(self, key: str) -> dict[str, Any]:
        """Return the facts that are stored with a video.

        Args:
            key: Key of the video.

        Returns:
            Facts by name.
        """
        return self._frames.facts(key)

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return the frame index of each image.

        Args:
            key: Key of the video.

        Returns:
            `frame`: [n], ascending.
        """
        return {"frame": np.unique(self._frames.columns(key)["frame"])}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Read and decode images.

        Args:
            key: Key of the video.
            indices: Indices of stored frames, in any order, also repeated; None for all frames.

        Returns:
            [len(indices), h, w, 3], RGB, uint8.
        """
        pages, columns, image_indices = self._read_pages(key, indices)
        result = np.empty((len(image_indices), *self.shape(key)[1:]), np.uint8)
        for index, (_, image) in enumerate(decode_jpegs(pages, columns)):
            result[image_indices == index] = image
        return result

    def read_encoded(self, key: str, indices: np.ndarray) -> EncodedImages:
        """Read images without decoding them.

        Args:
            key: Key of the video.
            indices: Indices of stored frames, in any order, also repeated.

        Returns:
            The encoded images.
        """
        pages, columns, image_indices = self._read_pages(key, indices)
        _, height, width, _ = self.shape(key)
        jpegs = [jpeg for _, jpeg in iterate_jpegs(pages, columns)]
        return EncodedImages(jpegs, image_indices, (height, width))

    def _read_pages(
        self, key: str, indices: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Read the pages of images, each image once.

        Returns the pages, their columns, and the index of each requested image among the distinct
        ones.
        """
        columns = self._frames.columns(key)
        frames, page_frames = np.unique(columns["frame"], return_inverse=True)
        if indices is None:
            indices = np.arange(len(frames))
        distinct, image_indices = np.unique(indices, return_inverse=True)

        page_indices = np.flatnonzero(np.isin(page_frames, distinct))
        pages = self._frames.read(key, page_indices)
        page_columns = {name: values[page_indices] for name, values in columns.items()}
        return pages, page_columns, image_indices


class TokenSource:
    """The token ids of queries' sentences, [L, 1] int64 under each query's id.

    Args:
        queries: The queries.
        tokenize: The tokenizer.
    """

    def __init__(self, queries: Sequence[Query], tokenize: TokenizeFunction) -> None:
        self._token_ids: dict[str, np.ndarray] = {}
        if not queries:
            return

        token_ids, masks = tokenize([query.text for query in queries])
        for query, ids, mask in zip(queries, token_ids, masks, strict=True):
            self._token_ids[query.id] = ids[mask, None].numpy()

    def __contains__(self, key: object) -> bool:
        return key in self._token_ids

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a query's token ids.

        Args:
            key: Id of the query.

        Returns:
            (L, 1).
        """
        return self._token_ids[key].shape

    def facts(self, key: str) -> dict[str, Any]:
        """Return no facts.

        Args:
            key: Id of the query.

        Returns:
            An empty dict.
        """
        return {}

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return no columns.

        Args:
            key: Id of the query.

        Returns:
            An empty dict.
        """
        return {}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Return the token ids of a query.

        Args:
            key: Id of the query.
            indices: Indices of tokens; None for all tokens.

        Returns:
            [L, 1], int64.
        """
        token_ids = self._token_ids[key]
        return token_ids if indices is None else token_ids[indices]


class InMemorySource:
    """Features that were just extracted and are not in a store.

    Args:
        entries: One entry per key.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.key: entry for entry in entries}

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of an entry's rows.

        Args:
            key: Key of the entry.

        Returns:
            The shape, rows first.
        """
        return self._entries[key].rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        """Return the facts of an entry.

        Args:
            key: Key of the entry.

        Returns:
            Facts by name.
        """
        return self._entries[key].facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return the columns of an entry.

        Args:
            key: Key of the entry.

        Returns:
            Arrays [n] by name.
        """
        return self._entries[key].columns

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Return rows of an entry.

        Args:
            key: Key of the entry.
            indices: Indices of the rows; None for all rows.

        Returns:
            The rows, [n, …].
        """
        rows = self._entries[key].rows
        return rows if indices is None else rows[indices]
