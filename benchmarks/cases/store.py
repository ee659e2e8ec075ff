"""What random reads from the store cost, against a memory map of the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.synthetic_data import build_rolled_features, fill_store, make_queries
from benchmarks.timing import profile_python, time_interleaved
from pipeline.store import ProductReader, ShardKind, Store

KINDS: tuple[ShardKind, ...] = ("zarr", "hdf5")
FrameSelection = tuple[np.ndarray, np.ndarray]
"""Numbers of videos, and of a frame in each."""
SelectionReader = Callable[[FrameSelection], list[np.ndarray]]
"""The frames of a pick, in one array if they are of one video, else in one array each: what a
reader gives without copying again.
"""


@dataclass
class StoreRead(Case):
    """Random reads from a store, against a memory map.

    Random frames of maps of real size, from files whose pages are cached, read by a plain
    `numpy.memmap`, by our reader from both formats, and by zarr-python. All give the same numbers.
    Ours compares the checksum of every frame, which a memory map cannot, and uses the memory of
    results that are gone again, where NumPy asks the system for fresh pages. `bytes_read`: what it
    asks the system for, as a share of what is wanted.
    """

    packages = ("numpy", "zarr", "h5py")
    shape: tuple[int, ...] = (10, 18, 2048)
    num_videos: int = 8
    num_frames: int = 100
    num_selected: int = 48
    rounds: int = 30
    zarr_rounds: int = 2

    def __enter__(self) -> StoreRead:
        super().__enter__()
        queries = make_queries(
            [f"v{number}" for number in range(self.num_videos)], 5 * self.num_frames, (576, 320)
        )
        made = build_rolled_features(
            queries, {"appearance": (self.num_frames, *self.shape)}, {"appearance": 5}
        )["appearance"]
        plain = np.lib.format.open_memmap(
            self.work_dir / "rows.npy",
            "w+",
            np.float16,
            (self.num_videos * self.num_frames, *self.shape),
        )
        for number, entry in enumerate(made.entries()):
            plain[number * self.num_frames : (number + 1) * self.num_frames] = entry.rows
        plain.flush()
        mapped = np.load(self.work_dir / "rows.npy", mmap_mode="r")
        stores = {
            kind: fill_store(self.work_dir / kind, queries, {"appearance": made.entries()}, kind)
            for kind in KINDS
        }
        self.readers: dict[str, SelectionReader] = {
            "numpy.memmap": lambda pick: [mapped[rows] for rows in self._get_row_indices(pick)]
        }
        self.readers |= {
            f"store, {kind}": build_selection_reader(Store(path).open("appearance"))
            for kind, path in stores.items()
        }
        self.readers["zarr-python, oindex"] = self._build_zarr_reader(stores["zarr"])
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        for draw in (self._sample_one_video, self._sample_many_videos):
            pick = draw(np.random.default_rng(0))
            expected = np.concatenate(self.readers["numpy.memmap"](pick))
            for read in self.readers.values():
                np.testing.assert_array_equal(np.concatenate(read(pick)), expected)

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        draws = {
            f"{self.num_selected} frames of one video": self._sample_one_video,
            f"{self.num_selected} frames, each of a random video": self._sample_many_videos,
        }
        return [Comparison(title, self._build_measurements(draw)) for title, draw in draws.items()]

    def _build_measurements(
        self, draw: Callable[[np.random.Generator], FrameSelection]
    ) -> dict[str, Measurement]:
        random = np.random.default_rng(0)
        size = 2 * self.num_selected * int(np.prod(self.shape))
        seconds: dict[str, list[float]] = {name: [] for name in self.readers}
        for turn in range(self.rounds):
            pick = draw(random)
            who = {
                name: read
                for name, read in self.readers.items()
                if turn < self.zarr_rounds or not name.startswith("zarr-python")
            }
            for name, own in time_interleaved(
                {name: partial(read, pick) for name, read in who.items()},
                1,
                warmup_rounds=0,
                first_index=turn,
            ).items():
                seconds[name] += own
        pick = draw(random)
        asked = {
            name: count_read_bytes(partial(read, pick)) / size
            for name, read in self.readers.items()
            if name != "numpy.memmap"
        }
        top = profile_python(lambda: [self.readers["store, zarr"](draw(random)) for _ in range(20)])
        return {
            name: Measurement(
                own,
                LowerBound(bytes=2 * size),
                hotspots=top if name == "store, zarr" else [],
                extra={"bytes_read": asked.get(name)},
            )
            for name, own in seconds.items()
        }

    def _sample_one_video(self, random: np.random.Generator) -> FrameSelection:
        return np.full(self.num_selected, random.integers(self.num_videos)), random.choice(
            self.num_frames, self.num_selected, replace=False
        )

    def _sample_many_videos(self, random: np.random.Generator) -> FrameSelection:
        return random.integers(self.num_videos, size=self.num_selected), random.integers(
            self.num_frames, size=self.num_selected
        )

    def _get_row_indices(self, pick: FrameSelection) -> list[np.ndarray]:
        """Rows of the plain array, one index for each array that is wanted."""
        rows = pick[0] * self.num_frames + pick[1]
        return [rows] if is_single_video(pick) else [*rows[:, None]]

    def _build_zarr_reader(self, store: Path) -> SelectionReader:
        shard = next((store / "appearance").glob("*.zarr"))
        array = zarr.open_group(shard, mode="r")["rows_float16_" + "x".join(map(str, self.shape))]
        assert isinstance(array, zarr.Array)
        return lambda pick: [np.asarray(array.oindex[pick[0] * self.num_frames + pick[1]])]


def is_single_video(selection: FrameSelection) -> bool:
    return bool((selection[0] == selection[0][0]).all())


def build_selection_reader(reader: ProductReader) -> SelectionReader:
    """Read a pick as training does: one call for each video in it."""

    def read(pick: FrameSelection) -> list[np.ndarray]:
        videos, frames = pick
        if is_single_video(pick):
            return [reader.read(f"v{videos[0]}", frames)]
        return [
            reader.read(f"v{video}", frame[None])
            for video, frame in zip(videos.tolist(), frames, strict=True)
        ]

    return read


def count_read_bytes(function: Callable[[], object]) -> int:
    """Bytes a read asks the system for, from the page cache or from disk, when it has been made
    before.
    """
    function()
    before = _get_total_read_bytes()
    function()
    return _get_total_read_bytes() - before


def _get_total_read_bytes() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])
