"""A small product with all that is awkward: two map sizes, rows of zeros, an entry without rows, an
empty column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import Entry, ShardKind, StoreWriter, compute_origin_digest, write_shard

SHARD = "00000-0123abcd"
PROVENANCE = {"weights": {"digest": "aa"}, "fps": 5}
Maker = Callable[..., Path]


@pytest.fixture(params=["zarr", "hdf5"])
def kind(request: pytest.FixtureRequest) -> ShardKind:
    return request.param


@pytest.fixture
def shard() -> str:
    """The name of the only shard of `make_store`."""
    return SHARD


@pytest.fixture
def sample() -> list[Entry]:
    random = np.random.default_rng(7)

    def entry(key: str, count: int, shape: tuple[int, ...], video: str | None = None) -> Entry:
        rows = random.standard_normal((count, *shape)).astype(np.float16)
        rows[1:2] = 0
        columns = {
            "frame": np.arange(count, dtype=np.int64) * 3,
            "second": np.arange(count) / 5,
            "empty": np.zeros(0, np.int32),
        }
        return Entry(
            key,
            video or key,
            rows,
            columns,
            {"decoder": "decord", "size": [640, 360], "seconds": 0.1},
        )

    return [
        entry("wide", 9, (2, 3, 4)),
        entry("tall", 7, (3, 2, 4)),
        entry("wide too", 40, (2, 3, 4)),
        entry("none/../ü", 0, (2, 3, 4)),
    ]


@pytest.fixture
def make_store(tmp_path: Path) -> Maker:
    """Write entries as the only shard of product `appearance` of a new store, and give its path."""

    def make(kind: ShardKind, entries: Sequence[Entry], name: str = "store") -> Path:
        path = tmp_path / name
        with StoreWriter(path, "shapes", "data") as writer:
            writer.open_product("appearance", kind, PROVENANCE)
            videos = [entry.video for entry in entries]
            info = write_shard(
                path,
                "appearance",
                SHARD,
                kind,
                entries,
                videos,
                compute_origin_digest(kind, PROVENANCE),
            )
            writer.publish_shard("appearance", SHARD, info)
        return path

    return make
