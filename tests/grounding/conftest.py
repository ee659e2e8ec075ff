"""A store of two wide videos and a tall one with random features, as `stvg-extract` would have
written them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.boxes import interpolate_boxes
from pipeline.features.builders import JpegBuilder
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query, Truth
from pipeline.store import Entry, ShardKind, StoreWriter, compute_origin_digest, write_shard
from pipeline.tracks import Tracks

FPS, FRAME_COUNT = 25.0, 100
SIZES = {"v0": (64, 36), "v1": (64, 36), "v2": (36, 64)}
"""Width and height: a wide picture has maps of 4×7 cells, a tall one of 7×4."""
GRID, CLIP = 5, 10
"""Frames between stored appearance maps, and between motion clips."""
CHANNELS = {"appearance": 6, "motion": 5, "swin": 3, "text": 7}
StoreMaker = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, most of all where cores are shared."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def build_query(number: int, split: str, **changes: Any) -> Query:
    """Query `<split>-<number>` about one of the three videos; its span is [30, 60) of the segment
    [0, 100).
    """
    video = f"v{number % 3}"
    values = {
        "id": f"{split}-{number}",
        "video": video,
        "path": f"{video}.mp4",
        "fps": FPS,
        "frame_count": FRAME_COUNT,
    }
    more_values = {
        "size": SIZES[video],
        "segment": (0, FRAME_COUNT),
        "text": "x",
        "split": split,
        "truth": Truth(span=(30, 60), track=video),
    }
    return Query.model_validate({**values, **more_values, **changes})


def make_tracks() -> Tracks:
    """Return tracks of a box that moves right by a tenth of a pixel per frame, in every video."""
    tracks, frames = Tracks(), np.arange(20, 80)
    for video in SIZES:
        left = 5 + frames / 10
        tracks.add(video, frames, np.stack([left, left, left + 10, left + 20], -1))
    return tracks


def _visual(product: str, video: str, random: np.random.Generator) -> Entry:
    frames = (
        np.arange(CLIP // 2, FRAME_COUNT, CLIP)
        if product == "motion"
        else np.arange(0, FRAME_COUNT, GRID)
    )
    wide = SIZES[video][0] > SIZES[video][1]
    shape = (4, 4) if product == "motion" else (4, 7) if wide else (7, 4)
    rows = random.standard_normal((len(frames), *shape, CHANNELS[product])).astype(np.float16)
    facts = {"size": list(SIZES[video]), "fps": FPS, "frame_count": FRAME_COUNT}
    return Entry(video, video, rows, {"frame": frames, "second": frames / FPS}, facts)


def _pictures(video: str) -> Entry:
    """What it shows is its true box, grey on black."""
    frames, (width, height) = np.arange(0, FRAME_COUNT, GRID), SIZES[video]
    track_frames, boxes = make_tracks()[video]
    builder = JpegBuilder((width, height), frames, 100)
    rows = []
    for number, (left, top, right, bottom) in zip(
        frames.tolist(),
        interpolate_boxes(track_frames, boxes, frames).round().astype(int),
        strict=True,
    ):
        picture = torch.zeros(3, height, width, dtype=torch.uint8)
        picture[:, top:bottom, left:right] = 200 if number in track_frames else 0
        rows += builder.add_frame(number, picture)
    columns = builder.columns()
    facts = {"size": [width, height], "fps": FPS, "frame_count": FRAME_COUNT}
    return Entry(
        video, video, np.concatenate(rows), columns | {"second": columns["frame"] / FPS}, facts
    )


def _words(query: Query, random: np.random.Generator) -> Entry:
    count = 2 + len(query.id) % 3
    rows = random.standard_normal((count, CHANNELS["text"])).astype(np.float16)
    return Entry(query.id, query.video, rows, {"token": np.arange(count)}, {"text": query.text})


def build_store(
    folder: Path,
    queries: list[Query] | None = None,
    name: str = "store",
    without: tuple[str, ...] = (),
    fill: dict[str, float] | None = None,
    visual: tuple[str, ...] = ("appearance", "motion"),
) -> Path:
    """Write a store about `queries` (by default eight of split train, three of val) into `folder`
    and give its path.

    `without` leaves out entries by key, `fill` puts one number into all rows of an entry, `visual`
    may also hold `swin` and `frames`.
    """
    path, random = folder / name, np.random.default_rng(5)
    all_queries = queries or [build_query(n, "train") for n in range(8)] + [
        build_query(n, "val") for n in range(3)
    ]
    (folder / "index").mkdir(exist_ok=True)
    write_jsonl(folder / "index" / "index.jsonl", all_queries)
    make_tracks().save(folder / "index" / "tracks.npz")
    entries = {
        product: [
            _pictures(video) if product == "frames" else _visual(product, video, random)
            for video in SIZES
        ]
        for product in visual
    }
    entries["text"] = [_words(query, random) for query in all_queries]
    with StoreWriter(path, "shapes", "data") as writer:
        writer.set_index(folder / "index" / "index.jsonl", folder / "index" / "tracks.npz")
        for product, product_entries in entries.items():
            selected = [
                entry
                for entry in product_entries
                if entry.key not in without and f"{product}/{entry.key}" not in without
            ]
            for entry in selected:
                entry.rows[...] = (fill or {}).get(f"{product}/{entry.key}", entry.rows)
            kind: ShardKind = "hdf5" if product == "text" else "zarr"
            provenance: dict[str, Any] = {"made": "by a test"} | (
                {"sampling": {"short_side": min(SIZES["v0"])}} if product == "frames" else {}
            )
            writer.open_product(product, kind, provenance)
            info = write_shard(
                path,
                product,
                "00000-0123abcd",
                kind,
                selected,
                list(SIZES),
                compute_origin_digest(kind, provenance),
            )
            writer.publish_shard(product, "00000-0123abcd", info)
    return path


@pytest.fixture
def make_store(tmp_path: Path) -> StoreMaker:
    return partial(build_store, tmp_path)


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store as it is by default, made once: not to be changed."""
    return build_store(tmp_path_factory.mktemp("session"))


@pytest.fixture(scope="session")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with pictures, made once: not to be changed."""
    return build_store(
        tmp_path_factory.mktemp("pictured"), visual=("appearance", "motion", "frames")
    )


@pytest.fixture
def make_query() -> Callable[..., Query]:
    return build_query


@pytest.fixture
def tracks() -> Tracks:
    return make_tracks()
