"""Writing of features into a store, against plain files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.synthetic_data import (
    RolledFeatures,
    build_rolled_features,
    fill_store,
    make_queries,
)
from benchmarks.timing import profile_python, time_interleaved
from pipeline.store import ShardKind, Store

KINDS: tuple[ShardKind, ...] = ("zarr", "hdf5")


@dataclass
class StoreWrite(Case):
    """Writing of features into a store, against plain files.

    Maps of real size written into a new store, in both formats (checksums, an index of chunks,
    synced to the disk, a manifest), against one `.npy` file for each video, each synced too. All
    are read back and hold the same numbers.
    """

    packages = ("numpy", "zarr", "h5py")
    shape: tuple[int, ...] = (10, 18, 2048)
    num_frames: int = 40
    num_videos: int = 4
    rounds: int = 3

    def __enter__(self) -> StoreWrite:
        super().__enter__()
        self.queries = make_queries(
            [f"v{number}" for number in range(self.num_videos)], 5 * self.num_frames, (576, 320)
        )
        self.features = build_rolled_features(
            self.queries, {"appearance": (self.num_frames, *self.shape)}, {"appearance": 5}
        )["appearance"]
        self.folder_counter = count()
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        plain = write_plain(self.work_dir / "plain", self.features)
        stores = [Store(self._write_store(kind)).open("appearance") for kind in KINDS]
        for query in self.queries:
            for reader in stores:
                np.testing.assert_array_equal(
                    reader.read(query.video), np.load(plain / f"{query.video}.npy")
                )

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        ways = {
            ".npy files": lambda: write_plain(
                self.work_dir / f"{next(self.folder_counter)}", self.features
            )
        }
        seconds = time_interleaved(
            ways | {f"store, {kind}": partial(self._write_store, kind) for kind in KINDS},
            self.rounds,
        )
        size = 2 * self.num_videos * self.num_frames * int(np.prod(self.shape))
        top = {f"store, {kind}": profile_python(partial(self._write_store, kind)) for kind in KINDS}
        shape = "×".join(map(str, self.shape))
        title = f"{self.num_videos} × {self.num_frames} maps of {shape}, {size >> 20} MiB"
        return [
            Comparison(
                title,
                {
                    name: Measurement(
                        rounds, LowerBound(bytes=2 * size), hotspots=top.get(name, [])
                    )
                    for name, rounds in seconds.items()
                },
            )
        ]

    def _write_store(self, kind: ShardKind) -> Path:
        """Write a new store and return its path."""
        return fill_store(
            self.work_dir / f"{next(self.folder_counter)}",
            self.queries,
            {"appearance": self.features.entries()},
            kind,
        )


def write_plain(folder: Path, features: RolledFeatures) -> Path:
    """Write one `.npy` file per entry, synced to the disk.

    Args:
        folder: Folder to create.
        features: The entries.

    Returns:
        The folder.
    """
    folder.mkdir()
    for entry in features.entries():
        with (folder / f"{entry.key}.npy").open("wb") as file:
            np.save(file, entry.rows)
            file.flush()
            os.fsync(file.fileno())
    return folder
