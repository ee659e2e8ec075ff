"""Cache of video features on disk, so that new sentences do not decode a long video again.

The cache is a feature store (docs/store.md). Features are written while they are computed, so
memory does not grow with the video's length. The key of a video is its content digest: a renamed
video is found, and a changed video is encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grounding.data.feature_reduction import apply_reduction
from pipeline.errors import InputError
from pipeline.features.reduction import Reduction
from pipeline.features.stream import FeatureStream, compute_file_digest
from pipeline.store import (
    ProductMismatchError,
    ProductReader,
    ShardBuilder,
    ShardKind,
    Store,
    StoreWriter,
    compute_origin_digest,
)

SHARD_KIND: ShardKind = "zarr"
FRAME_EDGES_COLUMN = "edge"
"""Column with the times of the frames' edges, `[frame_count + 1]` (`VideoMetadata.edges`)."""


@dataclass(frozen=True)
class CachedVideo:
    """A video in the cache.

    Attributes:
        key: The video's key in the products.
        facts: Facts of the video (fps, frame count, size).
        frame_edges: `[frame_count + 1]`, times of the frames' edges in seconds.
        products: Product name → reader of the features.
    """

    key: str
    facts: dict[str, Any]
    frame_edges: np.ndarray
    products: dict[str, ProductReader]


class FeatureCache:
    """Features of videos in a folder.

    Args:
        folder: Folder of the cache, created on the first `add`.
        origins: Product name → JSON of the settings that determine the product's features.
    """

    def __init__(self, folder: Path, origins: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = Path(folder)
        self.origins = origins

    def find(self, video: Path) -> CachedVideo | None:
        """Find the features of a video.

        Args:
            video: Path of the video.

        Returns:
            The cached features. None if a product is missing or the video cannot be read.

        Raises:
            InputError: The cache holds features of other settings.
        """
        try:
            key = compute_file_digest(video)
        except OSError:
            return None
        if not (self.folder / "manifest.json").is_file():
            return None

        # All products must hold the video.
        store = Store(self.folder)
        products: dict[str, ProductReader] = {}
        for name in self.origins:
            if name not in store.products:
                return None
            products[name] = store.open(name)
        if not all(key in product for product in products.values()):
            return None

        mismatched_products = []
        for name, origin in self.origins.items():
            if store.products[name].provenance != origin:
                mismatched_products.append(name)
        self._check_no_mismatch(mismatched_products)

        # Facts and frame edges are the same in all products.
        first_product = products[next(iter(products))]
        facts = first_product.facts(key)
        frame_edges = first_product.columns(key)[FRAME_EDGES_COLUMN]
        return CachedVideo(key, facts, frame_edges, products)

    def add(
        self, video: Path, stream: FeatureStream, reductions: Mapping[str, Reduction | None]
    ) -> CachedVideo:
        """Write the features of a video, all of them or none.

        Args:
            video: Path of the video.
            stream: Features of the video.
            reductions: Product name → reduction of the product's features, or None.

        Returns:
            The cached features.

        Raises:
            InputError: The cache holds features of other settings, or the file changed while it was
                being read.
        """
        key = compute_file_digest(video)
        frame_edges = stream.metadata.edges
        with StoreWriter(self.folder, "asked", "") as writer, ExitStack() as stack:
            builders: dict[str, ShardBuilder] = {}
            for name, origin in self.origins.items():
                try:
                    writer.open_product(name, SHARD_KIND, origin)
                except ProductMismatchError:
                    self._check_no_mismatch([name])
                digest = compute_origin_digest(SHARD_KIND, origin)
                builder = ShardBuilder(self.folder, name, key, SHARD_KIND, [key], digest)
                builders[name] = stack.enter_context(builder)
                builder.begin(key, key)

            for name, rows in stream:
                builders[name].append(apply_reduction(rows, reductions[name]))

            # Publish only after the whole video has been decoded.
            for name, builder in builders.items():
                columns = stream.columns[name] | {FRAME_EDGES_COLUMN: frame_edges}
                builder.end(columns, stream.facts)
                writer.publish_shard(name, key, builder.finish())

        # The digest differs if the file changed during decoding.
        cached_video = self.find(video)
        if cached_video is None:
            raise InputError(
                f"{video} changed while it was being read: run again when the file is complete"
            )
        return cached_video

    def _check_no_mismatch(self, mismatched_products: Sequence[str]) -> None:
        """Raise an InputError that names the products of other settings, if there are any."""
        if mismatched_products:
            raise InputError(
                f"{self.folder} holds {' and '.join(mismatched_products)} features of a run with"
                " other backbones, weights or sampling: give another folder with --keep"
            )
