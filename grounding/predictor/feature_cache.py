"""Features of asked videos kept in a folder, so that a further sentence about an hour of video need not decode it again.

The folder is a feature store (docs/store.md), filled as the features are made, so the length of a video does not matter. A video is
known by its content: it may be renamed, and one that has changed is looked at anew.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    origin_digest,
)

SHARD_KIND: ShardKind = "zarr"
FRAME_EDGES_COLUMN = "edge"
"""The column of the frames' edges in seconds, `[frame_count + 1]` (`VideoMetadata.edges`)."""


@dataclass(frozen=True)
class CachedVideo:
    """A video's facts, the edges of its frames in seconds `[frame_count + 1]`, and its features, by product, under `key`."""

    key: str
    facts: dict[str, Any]
    frame_edges: np.ndarray
    products: dict[str, ProductReader]


class FeatureCache:
    """The features of videos in `folder`, of products made as `origins` (name → what tells them from others, JSON) say."""

    def __init__(self, folder: Path, origins: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.origins = Path(folder), origins

    def find(self, video: Path) -> CachedVideo | None:
        """What is kept of a video; None where anything is lacking, or the video cannot be read."""
        try:
            key = compute_file_digest(video)
        except OSError:
            return None
        if not (self.folder / "manifest.json").is_file():
            return None
        store = Store(self.folder)
        products = {name: store.open(name) for name in self.origins if name in store.products}
        if products.keys() != self.origins.keys() or not all(
            key in product for product in products.values()
        ):
            return None
        self._check_origins(
            [
                name
                for name, origin in self.origins.items()
                if store.products[name].provenance != origin
            ]
        )
        first = products[next(iter(products))]
        return CachedVideo(key, first.facts(key), first.columns(key)[FRAME_EDGES_COLUMN], products)

    def add(
        self, video: Path, stream: FeatureStream, reductions: Mapping[str, Reduction | None]
    ) -> CachedVideo:
        """Keep what a stream makes of a video, all of it or nothing."""
        key, edges = compute_file_digest(video), stream.video_metadata.edges
        with StoreWriter(self.folder, "asked", "") as writer, ExitStack() as stack:
            builders = {}
            for name, origin in self.origins.items():
                try:
                    writer.open_product(name, SHARD_KIND, origin)
                except ProductMismatchError:
                    self._check_origins([name])
                builder = ShardBuilder(
                    self.folder, name, key, SHARD_KIND, [key], origin_digest(SHARD_KIND, origin)
                )
                builders[name] = stack.enter_context(builder)
                builder.begin(key, key)
            for name, rows in stream:
                builders[name].append(apply_reduction(rows, reductions[name]))
            for name, builder in builders.items():
                builder.end(stream.columns[name] | {FRAME_EDGES_COLUMN: edges}, stream.facts)
                writer.publish_shard(name, key, builder.finish())
        there = self.find(video)
        if there is None:
            raise InputError(
                f"{video} became another file while it was looked at: run again when it is whole"
            )
        return there

    def _check_origins(self, mismatched_products: list[str]) -> None:
        if mismatched_products:
            raise InputError(
                f"{self.folder} keeps {' and '.join(mismatched_products)} features made for a run with other backbones, weights or sampling: "
                "name another folder with --keep"
            )
