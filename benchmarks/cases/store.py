"""What random reads from the store cost, against a memory map of the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.synthetic_data import fill_store, make_queries, rolled_features
from benchmarks.timing import in_turns, profile_python
from pipeline.store import Kind, ProductReader, Store

KINDS: tuple[Kind, ...] = ("zarr", "hdf5")
Pick = tuple[np.ndarray, np.ndarray]
"""Numbers of videos, and of a frame in each."""
Read = Callable[[Pick], list[np.ndarray]]
"""The frames of a pick, in one array if they are of one video, else in one array each: what a reader gives without copying again."""


@dataclass
class Reading(Case):
    """Random frames of maps of real size, from files whose pages are cached, read by a plain `numpy.memmap`, by our reader from
    both formats, and by zarr-python. All give the same numbers. Ours compares the checksum of every frame, which a memory map
    cannot, and uses the memory of results that are gone again, where NumPy asks the system for fresh pages. `bytes_read`: what it
    asks the system for, as a share of what is wanted.
    """

    packages = ("numpy", "zarr", "h5py")
    shape: tuple[int, ...] = (10, 18, 2048)
    videos: int = 8
    frames: int = 100
    wanted: int = 48
    rounds: int = 30
    rounds_of_zarr: int = 2

    def __enter__(self) -> Reading:
        super().__enter__()
        queries = make_queries([f"v{number}" for number in range(self.videos)], 5 * self.frames, (576, 320))
        made = rolled_features(queries, {"appearance": (self.frames, *self.shape)}, {"appearance": 5})["appearance"]
        plain = np.lib.format.open_memmap(self.place / "rows.npy", "w+", np.float16, (self.videos * self.frames, *self.shape))
        for number, entry in enumerate(made.entries()):
            plain[number * self.frames : (number + 1) * self.frames] = entry.rows
        plain.flush()
        mapped = np.load(self.place / "rows.npy", mmap_mode="r")
        stores = {kind: fill_store(self.place / kind, queries, {"appearance": made.entries()}, kind) for kind in KINDS}
        self.readers: dict[str, Read] = {"numpy.memmap": lambda pick: [mapped[rows] for rows in self._rows(pick)]}
        self.readers |= {f"store, {kind}": reading(Store(path).open("appearance")) for kind, path in stores.items()}
        self.readers["zarr-python, oindex"] = self._by_zarr(stores["zarr"])
        return self

    def agree(self) -> None:
        for draw in (self._one_video, self._many_videos):
            pick = draw(np.random.default_rng(0))
            expected = np.concatenate(self.readers["numpy.memmap"](pick))
            for read in self.readers.values():
                np.testing.assert_array_equal(np.concatenate(read(pick)), expected)

    def measure(self) -> list[Group]:
        draws = {f"{self.wanted} frames of one video": self._one_video, f"{self.wanted} frames, each of a random video": self._many_videos}
        return [Group(title, self._ways(draw)) for title, draw in draws.items()]

    def _ways(self, draw: Callable[[np.random.Generator], Pick]) -> dict[str, Way]:
        random = np.random.default_rng(0)
        size = 2 * self.wanted * int(np.prod(self.shape))
        seconds: dict[str, list[float]] = {name: [] for name in self.readers}
        for turn in range(self.rounds):
            pick = draw(random)
            who = {name: read for name, read in self.readers.items() if turn < self.rounds_of_zarr or not name.startswith("zarr-python")}
            for name, own in in_turns({name: partial(read, pick) for name, read in who.items()}, 1, warm=0, begin=turn).items():
                seconds[name] += own
        pick = draw(random)
        asked = {name: bytes_asked(partial(read, pick)) / size for name, read in self.readers.items() if name != "numpy.memmap"}
        top = profile_python(lambda: [self.readers["store, zarr"](draw(random)) for _ in range(20)])
        return {
            name: Way(own, Floor(bytes=2 * size), top=top if name == "store, zarr" else [], facts={"bytes_read": asked.get(name)})
            for name, own in seconds.items()
        }

    def _one_video(self, random: np.random.Generator) -> Pick:
        return np.full(self.wanted, random.integers(self.videos)), random.choice(self.frames, self.wanted, replace=False)

    def _many_videos(self, random: np.random.Generator) -> Pick:
        return random.integers(self.videos, size=self.wanted), random.integers(self.frames, size=self.wanted)

    def _rows(self, pick: Pick) -> list[np.ndarray]:
        """Rows of the plain array, one index for each array that is wanted."""
        rows = pick[0] * self.frames + pick[1]
        return [rows] if is_of_one_video(pick) else [*rows[:, None]]

    def _by_zarr(self, store: Path) -> Read:
        shard = next((store / "appearance").glob("*.zarr"))
        array = zarr.open_group(shard, mode="r")["rows_float16_" + "x".join(map(str, self.shape))]
        assert isinstance(array, zarr.Array)
        return lambda pick: [np.asarray(array.oindex[pick[0] * self.frames + pick[1]])]


def is_of_one_video(pick: Pick) -> bool:
    return bool((pick[0] == pick[0][0]).all())


def reading(reader: ProductReader) -> Read:
    """Read a pick as training does: one call for each video in it."""

    def read(pick: Pick) -> list[np.ndarray]:
        videos, frames = pick
        if is_of_one_video(pick):
            return [reader.read(f"v{videos[0]}", frames)]
        return [reader.read(f"v{video}", frame[None]) for video, frame in zip(videos.tolist(), frames, strict=True)]

    return read


def bytes_asked(read: Callable[[], object]) -> int:
    """Bytes a read asks the system for, from the page cache or from disk, when it has been made before."""
    read()
    before = _asked_so_far()
    read()
    return _asked_so_far() - before


def _asked_so_far() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])
