"""Seeded synthetic data for the cases: videos, indexes, feature stores and a trained run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query, Truth
from pipeline.store import Entry, ShardKind, StoreWriter, compute_origin_digest, write_shard
from pipeline.tracks import Tracks

FPS = 25
TEXT = "a thing moves"


def make_video(path: Path, size: tuple[int, int], frames: int, seed: int = 0) -> Path:
    """Write an h264 video of a moving texture, with B-frames and a key frame every two seconds.

    Args:
        path: Path of the video.
        size: (width, height) in pixels.
        frames: Number of frames, at 25 fps.
        seed: Seed of the texture.

    Returns:
        The path.
    """
    import av

    # Texture of 8×8 blocks, larger than a frame
    width, height = size
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8)
    texture = blocks.repeat(8, 0).repeat(8, 1)

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"preset": "veryfast", "g": "50"}

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"

        # The frame moves along the texture's diagonal, back and forth.
        for frame_index in range(frames):
            offset = abs(frame_index * 3 % 800 - 400)
            window = texture[offset : offset + height, offset : offset + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(window), format="rgb24")
            frame.pts = frame_index
            container.mux(stream.encode(frame))

        container.mux(stream.encode(None))

    return path


def make_queries(videos: Sequence[str], frames: int, size: tuple[int, int]) -> list[Query]:
    """Build one query of split `train` per video, with an event in the video's middle half.

    Args:
        videos: Names of the videos; their paths are `videos/NAME.mp4`.
        frames: Frames of each video.
        size: (width, height) in pixels.

    Returns:
        Queries in the order of the videos.
    """
    queries = []
    for name in videos:
        truth = Truth(span=(frames // 4, frames * 3 // 4), track=name)
        fields = {
            "id": name,
            "video": name,
            "path": f"videos/{name}.mp4",
            "truth": truth,
            "fps": float(FPS),
            "frame_count": frames,
            "size": size,
            "segment": (0, frames),
            "text": TEXT,
            "split": "train",
        }
        queries.append(Query.model_validate(fields))

    return queries


def make_tracks(queries: Sequence[Query]) -> Tracks:
    """Build one moving box per video, of a quarter of its width and a third of its height.

    Args:
        queries: Queries of different videos.

    Returns:
        Tracks with a box in every frame; the names are those of the videos.
    """
    tracks = Tracks()

    for query in queries:
        width, height = query.size
        left = np.linspace(0, width / 2, query.frame_count)
        top = np.linspace(0, height / 2, query.frame_count)
        boxes = np.stack([left, top, left + width / 4, top + height / 3], -1)  # [T, 4], xyxy
        tracks.add(query.video, np.arange(query.frame_count), boxes)

    return tracks


def write_index(folder: Path, queries: Sequence[Query]) -> Path:
    """Write `index.jsonl`, and `tracks.npz` beside it.

    Args:
        folder: Folder of both files.
        queries: Queries of different videos.

    Returns:
        Path of the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "index.jsonl", queries)
    make_tracks(queries).save(folder / "tracks.npz")
    return folder / "index.jsonl"


class RolledFeatures:
    """A product in memory whose entries are rolled copies of the same rows.

    Implements `grounding.data.sources.FeatureSource`.

    Args:
        keys: Keys of the entries. Entry i is rolled by i rows.
        rows: `[n, …]`, features.
        frame_stride: Frames between two rows; None for sentences, whose rows are tokens.
        facts: Facts of every entry.
    """

    def __init__(
        self, keys: Sequence[str], rows: np.ndarray, frame_stride: int | None, facts: dict[str, Any]
    ) -> None:
        self._shifts = {key: shift for shift, key in enumerate(keys)}
        self._rows = rows
        self._frame_stride = frame_stride
        self._facts = facts

    def __contains__(self, key: object) -> bool:
        return key in self._shifts

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape `[n, …]` of an entry.

        Args:
            key: Key of the entry.
        """
        return self._rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        """Return the facts of an entry.

        Args:
            key: Key of the entry.
        """
        return self._facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        """Return the token index or the frame index `[n]` of each row.

        Args:
            key: Key of the entry.
        """
        row_indices = np.arange(len(self._rows))
        if self._frame_stride is None:
            return {"token": row_indices}

        return {"frame": row_indices * self._frame_stride + self._frame_stride // 2}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Read rows of an entry.

        Args:
            key: Key of the entry.
            indices: Indices of the rows; by default all rows.

        Returns:
            `[len(indices), …]`, the rows.
        """
        rows = np.roll(self._rows, self._shifts[key], 0)
        return rows if indices is None else rows[indices]

    def entries(self) -> Iterator[Entry]:
        """Yield all entries for a store."""
        for key in self._shifts:
            yield Entry(key, key, self.read(key), self.columns(key), self._facts)


def build_rolled_features(
    queries: Sequence[Query],
    shapes: Mapping[str, tuple[int, ...]],
    frame_strides: Mapping[str, int],
) -> dict[str, RolledFeatures]:
    """Build random float16 features. Sentences have the keys of their videos.

    Args:
        queries: Queries of videos of equal size and length.
        shapes: Shape `[rows, …]` of an entry, by product.
        frame_strides: Frames between two rows, by product; none for sentences.

    Returns:
        Features by product.
    """
    random = np.random.default_rng(0)
    keys = [query.video for query in queries]
    first = queries[0]
    facts = {"size": list(first.size), "fps": first.fps, "frame_count": first.frame_count}

    products = {}
    for name, shape in shapes.items():
        rows = random.standard_normal(shape, np.float32).astype(np.float16)
        products[name] = RolledFeatures(keys, rows, frame_strides.get(name), facts)

    return products


def fill_store(
    store: Path,
    queries: Sequence[Query],
    entries: Mapping[str, Iterator[Entry]],
    kind: ShardKind = "zarr",
) -> Path:
    """Write a store as extraction does, with one shard per product.

    Args:
        store: Path of the store.
        queries: Queries of the index.
        entries: Entries by product.
        kind: Shard format of all products except `text`, which uses hdf5.

    Returns:
        Path of the store.
    """
    index = write_index(store / "made", queries)
    videos = [query.video for query in queries]

    with StoreWriter(store, "benchmark", ".") as writer:
        writer.set_index(index, index.with_name("tracks.npz"))

        for name, product_entries in entries.items():
            shard_kind: ShardKind = "hdf5" if name == "text" else kind
            origin = compute_origin_digest(shard_kind, {})

            writer.open_product(name, shard_kind, {})
            info = write_shard(store, name, "s", shard_kind, product_entries, videos, origin)
            writer.publish_shard(name, "s", info)

    return store


def build_grounder(
    work_dir: Path,
    query: Query,
    backbones: str,
    short_side: int,
    preset_name: str,
    device: str,
    decoder: Any = None,
) -> Any:
    """Extract the features of one video, train CSDVL for one step, and open the run.

    Args:
        work_dir: Folder of the video, and of all files that this function writes.
        query: Query about the video.
        backbones: Size of the backbones, `tiny` or `full`.
        short_side: N_short in pixels.
        preset_name: Preset of CSDVL.
        device: `cpu` or `cuda`.
        decoder: Decoder of the grounder; by default in this process.

    Returns:
        A `grounding.predictor.grounder.Grounder` of the run.
    """
    from grounding.predictor.grounder import Grounder
    from grounding.systems.csdvl import CsdvlTrainConfig
    from grounding.systems.registry import get_preset
    from grounding.training.run_directory import prepare_run_dir
    from grounding.training.train import train
    from pipeline.extraction.config import ExtractConfig
    from pipeline.extraction.run import run_extraction
    from pipeline.features.stream import IN_PROCESS

    # Extract
    index = write_index(work_dir, [query])
    store = work_dir / "asked-store"
    extract_settings = {
        "backbones": backbones,
        "weights": "random:0",
        "workers": 0,
        "device": device,
        "sampling": {"short_side": short_side},
    }
    extract_config = ExtractConfig.model_validate(extract_settings)
    report = run_extraction(index, work_dir, "benchmark", store, extract_config)
    assert not report.failures, report.failures

    # Train
    run_dir = work_dir / "run"
    train_settings = {**get_preset(preset_name), "max_steps": 1, "batch": 1, "device": device}
    train_config = CsdvlTrainConfig.model_validate(train_settings)
    prepare_run_dir(store, run_dir, train_config)
    train(store, run_dir, train_config)

    return Grounder(run_dir, device=device, decoder=decoder or IN_PROCESS)
