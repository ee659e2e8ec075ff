"""What cases are measured on: videos, indexes and stores made here, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query, Truth
from pipeline.store import Entry, ShardKind, StoreWriter, origin_digest, write_shard
from pipeline.tracks import Tracks

FPS = 25
TEXT = "a thing moves"


def make_video(path: Path, size: tuple[int, int], frames: int, seed: int = 0) -> Path:
    """A texture that moves, `size` (width, height) at 25 fps, as h264 with B-frames and a key frame
    every two seconds.
    """
    import av

    (width, height), random = size, np.random.default_rng(seed)
    texture = (
        random.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=FPS, options={"preset": "veryfast", "g": "50"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            at = abs(number * 3 % 800 - 400)
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(texture[at : at + height, at : at + width]), format="rgb24"
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_queries(videos: Sequence[str], frames: int, size: tuple[int, int]) -> list[Query]:
    """One query of split train for each video (`videos/NAME.mp4`), whose event takes its middle
    half.
    """
    common = {
        "fps": float(FPS),
        "frame_count": frames,
        "size": size,
        "segment": (0, frames),
        "text": TEXT,
        "split": "train",
    }
    truths = (Truth(span=(frames // 4, frames * 3 // 4), track=name) for name in videos)
    given = zip(videos, truths, strict=True)
    return [
        Query.model_validate(
            {"id": name, "video": name, "path": f"videos/{name}.mp4", "truth": truth, **common}
        )
        for name, truth in given
    ]


def make_tracks(queries: Sequence[Query]) -> Tracks:
    """A box that moves, in every video: a quarter of the picture's width and a third of its height."""
    tracks = Tracks()
    for query in queries:
        width, height = query.size
        left, top = (
            np.linspace(0, width / 2, query.frame_count),
            np.linspace(0, height / 2, query.frame_count),
        )
        tracks.add(
            query.video,
            np.arange(query.frame_count),
            np.stack([left, top, left + width / 4, top + height / 3], -1),
        )
    return tracks


def write_index(folder: Path, queries: Sequence[Query]) -> Path:
    """`index.jsonl` with `tracks.npz` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "index.jsonl", queries)
    make_tracks(queries).save(folder / "tracks.npz")
    return folder / "index.jsonl"


class RolledFeatures:
    """A product that lies in memory (`grounding.data.sources.Product`): each entry is the same
    rows, rolled by its number.

    `every` are the frames from one row to the next; None for sentences, whose rows are tokens.
    """

    def __init__(
        self, keys: Sequence[str], rows: np.ndarray, frame_stride: int | None, facts: dict[str, Any]
    ) -> None:
        self._shifts = {key: number for number, key in enumerate(keys)}
        self._rows, self._frame_stride, self._facts = rows, frame_stride, facts

    def __contains__(self, key: object) -> bool:
        return key in self._shifts

    def shape(self, key: str) -> tuple[int, ...]:
        return self._rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        return self._facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        count = np.arange(len(self._rows))
        return (
            {"token": count}
            if self._frame_stride is None
            else {"frame": count * self._frame_stride + self._frame_stride // 2}
        )

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        rows = np.roll(self._rows, self._shifts[key], 0)
        return rows if indices is None else rows[indices]

    def entries(self) -> Iterator[Entry]:
        for key in self._shifts:
            yield Entry(key, key, self.read(key), self.columns(key), self._facts)


def build_rolled_features(
    queries: Sequence[Query],
    shapes: Mapping[str, tuple[int, ...]],
    frame_strides: Mapping[str, int],
) -> dict[str, RolledFeatures]:
    """Random float16 features of products, `shapes` of their entries `[rows, …]`; sentences have
    the name of their video.
    """
    random, keys, first = np.random.default_rng(0), [query.video for query in queries], queries[0]
    facts = {"size": list(first.size), "fps": first.fps, "frame_count": first.frame_count}
    return {
        name: RolledFeatures(
            keys,
            random.standard_normal(shape, np.float32).astype(np.float16),
            frame_strides.get(name),
            facts,
        )
        for name, shape in shapes.items()
    }


def fill_store(
    store: Path,
    queries: Sequence[Query],
    entries: Mapping[str, Iterator[Entry]],
    kind: ShardKind = "zarr",
) -> Path:
    """Write a store as extraction would, one shard a product."""
    index = write_index(store / "made", queries)
    with StoreWriter(store, "benchmark", ".") as writer:
        writer.set_index(index, index.with_name("tracks.npz"))
        for name, own in entries.items():
            form: ShardKind = "hdf5" if name == "text" else kind
            writer.open_product(name, form, {})
            info = write_shard(
                store,
                name,
                "s",
                form,
                own,
                [query.video for query in queries],
                origin_digest(form, {}),
            )
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
    """A run that took one step on one video, ready to be asked; videos are decoded in this process,
    or by `decoder`.
    """
    from grounding.predictor.grounder import Grounder
    from grounding.systems.csdvl import CsdvlTrainConfig
    from grounding.systems.registry import get_preset
    from grounding.training.train import prepare_run_dir, train
    from pipeline.extraction.config import ExtractConfig
    from pipeline.extraction.run import run_extraction
    from pipeline.features.stream import IN_PROCESS

    index = write_index(work_dir, [query])
    given = {
        "backbones": backbones,
        "weights": "random:0",
        "workers": 0,
        "device": device,
        "sampling": {"short_side": short_side},
    }
    report = run_extraction(
        index, work_dir, "benchmark", work_dir / "asked-store", ExtractConfig.model_validate(given)
    )
    assert not report.failures, report.failures
    config = CsdvlTrainConfig.model_validate(
        {**get_preset(preset_name), "max_steps": 1, "batch": 1, "device": device}
    )
    prepare_run_dir(work_dir / "asked-store", work_dir / "run", config)
    train(work_dir / "asked-store", work_dir / "run", config)
    return Grounder(work_dir / "run", device=device, decoder=decoder or IN_PROCESS)
