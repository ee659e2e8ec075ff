"""What writing features into the store costs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.synthetic_data import Rolled, fill_store, make_queries, rolled_features
from benchmarks.timing import in_turns, profile_python
from pipeline.store import Kind, Store

KINDS: tuple[Kind, ...] = ("zarr", "hdf5")


@dataclass
class Writing(Case):
    """Maps of real size written into a new store, in both formats (checksums, an index of chunks, synced to the disk, a manifest),
    against one `.npy` file for each video, each synced too. All are read back and hold the same numbers.
    """

    packages = ("numpy", "zarr", "h5py")
    shape: tuple[int, ...] = (10, 18, 2048)
    frames: int = 40
    videos: int = 4
    rounds: int = 3

    def __enter__(self) -> Writing:
        super().__enter__()
        self.queries = make_queries([f"v{number}" for number in range(self.videos)], 5 * self.frames, (576, 320))
        self.made = rolled_features(self.queries, {"appearance": (self.frames, *self.shape)}, {"appearance": 5})["appearance"]
        self.numbers = count()
        return self

    def agree(self) -> None:
        plain = write_plain(self.place / "plain", self.made)
        stores = [Store(self._store(kind)).open("appearance") for kind in KINDS]
        for query in self.queries:
            for reader in stores:
                np.testing.assert_array_equal(reader.read(query.video), np.load(plain / f"{query.video}.npy"))

    def measure(self) -> list[Group]:
        ways = {".npy files": lambda: write_plain(self.place / f"{next(self.numbers)}", self.made)}
        found = in_turns(ways | {f"store, {kind}": partial(self._store, kind) for kind in KINDS}, self.rounds)
        size = 2 * self.videos * self.frames * int(np.prod(self.shape))
        top = {f"store, {kind}": profile_python(partial(self._store, kind)) for kind in KINDS}
        title = f"{self.videos} × {self.frames} maps of {'×'.join(map(str, self.shape))}, {size >> 20} MiB"
        return [Group(title, {name: Way(own, Floor(bytes=2 * size), top=top.get(name, [])) for name, own in found.items()})]

    def _store(self, kind: Kind) -> Path:
        return fill_store(self.place / f"{next(self.numbers)}", self.queries, {"appearance": self.made.entries()}, kind)


def write_plain(folder: Path, made: Rolled) -> Path:
    folder.mkdir()
    for entry in made.entries():
        with (folder / f"{entry.key}.npy").open("wb") as file:
            np.save(file, entry.rows)
            file.flush()
            os.fsync(file.fileno())
    return folder
