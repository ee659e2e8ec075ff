"""Random reads from a store, against a memory map of the same values."""

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
"""Video indices `[n]` and frame indices `[n]`."""
SelectionReader = Callable[[FrameSelection], list[np.ndarray]]
"""Reads the frames of a selection without a second copy.

Returns one array for a selection of one video, else one array per frame.
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
        product = build_rolled_features(
            queries, {"appearance": (self.num_frames, *self.shape)}, {"appearance": 5}
        )["appearance"]
        plain = np.lib.format.open_memmap(
            self.work_dir / "rows.npy",
            "w+",
            np.float16,
            (self.num_videos * self.num_frames, *self.shape),
        )
        for video_index, entry in enumerate(product.entries()):
            plain[video_index * self.num_frames : (video_index + 1) * self.num_frames] = entry.rows
        plain.flush()
        mapped = np.load(self.work_dir / "rows.npy", mmap_mode="r")
        stores = {
            kind: fill_store(self.work_dir / kind, queries, {"appearance": product.entries()}, kind)
            for kind in KINDS
        }
        self.readers: dict[str, SelectionReader] = {
            "numpy.memmap": lambda selection: [
                mapped[rows] for rows in self._get_row_indices(selection)
            ]
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
            selection = draw(np.random.default_rng(0))
            expected = np.concatenate(self.readers["numpy.memmap"](selection))
            for read in self.readers.values():
                np.testing.assert_array_equal(np.concatenate(read(selection)), expected)

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
        """Time all readers on the same random selections."""
        random = np.random.default_rng(0)
        size = 2 * self.num_selected * int(np.prod(self.shape))
        seconds: dict[str, list[float]] = {name: [] for name in self.readers}
        for round_index in range(self.rounds):
            selection = draw(random)
            readers = {
                name: read
                for name, read in self.readers.items()
                if round_index < self.zarr_rounds or not name.startswith("zarr-python")
            }
            for name, round_seconds in time_interleaved(
                {name: partial(read, selection) for name, read in readers.items()},
                1,
                warmup_rounds=0,
                first_index=round_index,
            ).items():
                seconds[name] += round_seconds
        selection = draw(random)
        read_bytes = {
            name: count_read_bytes(partial(read, selection)) / size
            for name, read in self.readers.items()
            if name != "numpy.memmap"
        }
        top = profile_python(lambda: [self.readers["store, zarr"](draw(random)) for _ in range(20)])
        return {
            name: Measurement(
                round_seconds,
                LowerBound(bytes=2 * size),
                hotspots=top if name == "store, zarr" else [],
                extra={"bytes_read": read_bytes.get(name)},
            )
            for name, round_seconds in seconds.items()
        }

    def _sample_one_video(self, random: np.random.Generator) -> FrameSelection:
        return np.full(self.num_selected, random.integers(self.num_videos)), random.choice(
            self.num_frames, self.num_selected, replace=False
        )

    def _sample_many_videos(self, random: np.random.Generator) -> FrameSelection:
        return random.integers(self.num_videos, size=self.num_selected), random.integers(
            self.num_frames, size=self.num_selected
        )

    def _get_row_indices(self, selection: FrameSelection) -> list[np.ndarray]:
        """Return row indices of the plain array, one index array per array to return."""
        rows = selection[0] * self.num_frames + selection[1]
        return [rows] if is_single_video(selection) else [*rows[:, None]]

    def _build_zarr_reader(self, store: Path) -> SelectionReader:
        shard = next((store / "appearance").glob("*.zarr"))
        array = zarr.open_group(shard, mode="r")["rows_float16_" + "x".join(map(str, self.shape))]
        assert isinstance(array, zarr.Array)
        return lambda selection: [
            np.asarray(array.oindex[selection[0] * self.num_frames + selection[1]])
        ]


def is_single_video(selection: FrameSelection) -> bool:
    """Return True if all frames of a selection belong to the same video.

    Args:
        selection: Video indices and frame indices.
    """
    return bool((selection[0] == selection[0][0]).all())


def build_selection_reader(reader: ProductReader) -> SelectionReader:
    """Build a reader that reads as training does, with one call per video.

    Args:
        reader: Reader of the product.

    Returns:
        A function that reads a selection.
    """

    def read(selection: FrameSelection) -> list[np.ndarray]:
        videos, frames = selection
        if is_single_video(selection):
            return [reader.read(f"v{videos[0]}", frames)]
        return [
            reader.read(f"v{video}", frame[None])
            for video, frame in zip(videos.tolist(), frames, strict=True)
        ]

    return read


def count_read_bytes(function: Callable[[], object]) -> int:
    """Count the bytes that a repeated call reads from the page cache or from disk.

    Args:
        function: Function that reads.

    Returns:
        Number of bytes of the second call.
    """
    function()
    before = _get_total_read_bytes()
    function()
    return _get_total_read_bytes() - before


def _get_total_read_bytes() -> int:
    """Return the bytes that this process has read so far."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])
