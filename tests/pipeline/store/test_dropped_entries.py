"""Entries whose source has changed: they lie in their shard and no longer count, and another shard
may hold their key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import (
    Entry,
    ProductSummary,
    ShardInfo,
    ShardKind,
    Store,
    StoreWriter,
    compute_origin_digest,
    write_shard,
)
from pipeline.store.layout import get_shard_path

FPS = {"fps": 5}
Keys = Sequence[tuple[str, str]]
VIDEOS = [("v1", "v1"), ("v2", "v2"), ("v3", "v3")]


def write(store: Path, kind: ShardKind, name: str, keys: Keys, value: int = 1) -> ShardInfo:
    """A shard of entries `(key, video)`, the n-th of n rows."""
    entries = [
        Entry(
            key,
            video,
            np.full((count, 3), value, np.float16),
            {"frame": np.arange(count) * value},
            {"value": value},
        )
        for count, (key, video) in enumerate(keys, start=1)
    ]
    return write_shard(
        store,
        "p",
        name,
        kind,
        entries,
        [video for _, video in keys],
        compute_origin_digest(kind, FPS),
    )


@pytest.fixture
def open_writer(tmp_path: Path) -> Callable[[ShardKind], StoreWriter]:
    def make(kind: ShardKind) -> StoreWriter:
        writer = StoreWriter(tmp_path, "shapes", "data").__enter__()
        writer.open_product("p", kind, FPS)
        return writer

    return make


def leave(writer: StoreWriter) -> None:
    writer.__exit__(None, None, None)


def test_what_was_dropped_is_nowhere_to_be_read(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    complete = write(tmp_path, kind, "s", VIDEOS)
    writer.publish_shard("p", "s", complete)
    writer.drop_entries("p", ["v2", "unknown"])
    assert writer.get_completed_videos("p") == {"v1", "v3"}
    leave(writer)
    store = Store(tmp_path)
    info = ShardInfo(
        videos=("v1", "v3"),
        entries=2,
        rows=4,
        bytes=complete.bytes,
        digest=complete.digest,
        dropped=("v2",),
    )
    assert store.products["p"].shards == {"s": info}
    assert store.summarize() == [
        ProductSummary("p", shards=1, videos=2, entries=2, rows=4, bytes=complete.bytes)
    ]
    reader = store.open("p")
    assert (reader.keys(), len(reader), "v2" in reader) == (["v1", "v3"], 2, False)
    for ask in (reader.read, reader.columns, reader.facts, reader.shape):
        with pytest.raises(StoreError, match=r"product 'p' has no entry 'v2' \(of 2\)"):
            ask("v2")
    np.testing.assert_array_equal(reader.read("v3"), np.ones((3, 3), np.float16))
    assert store.verify() == []


@pytest.mark.parametrize("overlay", ["a", "z"])
def test_another_shard_may_hold_the_key(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter], overlay: str
) -> None:
    """Whichever of the two is read first."""
    writer = open_writer(kind)
    writer.publish_shard("p", "s", write(tmp_path, kind, "s", VIDEOS))
    writer.drop_entries("p", ["v2"])
    writer.publish_shard("p", overlay, write(tmp_path, kind, overlay, [("v2", "v2")], value=2))
    assert writer.get_completed_videos("p") == {"v1", "v2", "v3"}
    leave(writer)
    store = Store(tmp_path)
    reader = store.open("p")
    assert sorted(reader.keys()) == ["v1", "v2", "v3"]
    np.testing.assert_array_equal(reader.read("v2"), np.full((1, 3), 2, np.float16))
    assert (reader.facts("v2"), reader.columns("v2")["frame"].tolist()) == ({"value": 2}, [0])
    assert store.verify() == []
    again = open_writer(kind)
    again.drop_entries("p", ["v2"])
    assert set(again.products["p"].shards) == {"s"}
    assert again.products["p"].shards["s"].dropped == ("v2",)
    leave(again)


def test_a_key_in_two_shards_is_a_problem_unless_dropped(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    for name in ("a", "b"):
        writer.publish_shard("p", name, write(tmp_path, kind, name, VIDEOS))
    leave(writer)
    assert [(problem.key, problem.detail) for problem in Store(tmp_path).verify()] == [
        (video, f"it is also in shard {get_shard_path(tmp_path, 'p', 'a', kind).name}")
        for video, _ in VIDEOS
    ]


def test_a_shard_without_any_other_entry_is_deleted(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    writer.publish_shard("p", "one", write(tmp_path, kind, "one", [("v1", "v1"), ("v2", "v2")]))
    writer.publish_shard("p", "two", write(tmp_path, kind, "two", [("v3", "v3"), ("v4", "v4")]))
    writer.drop_entries("p", ["v1"])
    writer.drop_entries("p", ["v2", "v3"])
    assert set(writer.products["p"].shards) == {"two"}
    assert (writer.products["p"].shards["two"].dropped, writer.get_completed_videos("p")) == (
        ("v3",),
        {"v4"},
    )
    assert list((tmp_path / "p").iterdir()) == [get_shard_path(tmp_path, "p", "two", kind)]
    leave(writer)
    assert Store(tmp_path).verify() == []


def test_a_video_counts_while_one_of_its_sentences_does(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    writer.publish_shard(
        "p", "s", write(tmp_path, kind, "s", [("q0", "v1"), ("q1", "v1"), ("q2", "v2")])
    )
    writer.drop_entries("p", ["q1"])
    assert writer.get_completed_videos("p") == {"v1", "v2"}
    writer.drop_entries("p", ["q0"])
    assert writer.get_completed_videos("p") == {"v2"}
    leave(writer)
    assert Store(tmp_path).verify() == []


def test_it_stays_dropped(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    complete = write(tmp_path, kind, "s", VIDEOS)
    writer.publish_shard("p", "s", complete)
    writer.drop_entries("p", ["v3", "v1"])
    info = writer.products["p"].shards["s"]
    assert (info.dropped, info.entries) == (("v1", "v3"), 1)
    writer.publish_shard("p", "s", complete)
    assert writer.adopt_shard("p", "s") == info
    leave(writer)
    written = (tmp_path / "manifest.json").read_bytes()
    writer = open_writer(kind)
    assert writer.adopt_shard("p", "s") == info
    for keys in ([], ["v1"], ["unknown"]):
        writer.drop_entries("p", keys)
    leave(writer)
    assert (tmp_path / "manifest.json").read_bytes() == written
    assert Store(tmp_path).verify() == []


def test_a_shard_made_anew_under_its_name_has_all_its_entries(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    writer.publish_shard("p", "s", write(tmp_path, kind, "s", VIDEOS))
    writer.drop_entries("p", ["v1"])
    writer.drop_shards("p", ["s"])
    writer.publish_shard("p", "s", write(tmp_path, kind, "s", VIDEOS, value=2))
    leave(writer)
    assert Store(tmp_path).open("p").keys() == ["v1", "v2", "v3"]
    assert Store(tmp_path).verify() == []


def test_its_bytes_are_verified_all_the_same(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    writer.publish_shard(
        "p", "s", write(tmp_path, kind, "s", [("v1", "v1"), ("v2", "v2")], value=7)
    )
    writer.drop_entries("p", ["v2"])
    leave(writer)
    path = get_shard_path(tmp_path, "p", "s", kind)
    file = path if path.is_file() else path / "rows_float16_3" / "c/0/0"
    content = file.read_bytes()
    last = content.rindex(np.full(3, 7, np.float16).tobytes())
    file.write_bytes(content[:last] + b"\1" + content[last + 1 :])
    (problem,) = Store(tmp_path).verify()
    assert (problem.key, problem.detail) == ("v2", "row 2 does not match its checksum")


def test_a_kill_amid_it_loses_no_more_than_was_dropped(
    kind: ShardKind,
    tmp_path: Path,
    open_writer: Callable[[ShardKind], StoreWriter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shard is gone before the manifest forgets it, so that nobody adopts it again."""

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    writer = open_writer(kind)
    writer.publish_shard("p", "one", write(tmp_path, kind, "one", [("v1", "v1")]))
    writer.publish_shard("p", "two", write(tmp_path, kind, "two", [("v2", "v2"), ("v3", "v3")]))
    writer.flush()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.writer.save_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            writer.drop_entries("p", ["v1", "v2"])
    leave(writer)
    writer = open_writer(kind)
    assert writer.adopt_shard("p", "one") is None
    assert writer.get_completed_videos("p") == {"v2", "v3"}
    leave(writer)
    assert Store(tmp_path).verify() == []


def test_entries_of_a_damaged_shard_cannot_be_dropped(
    kind: ShardKind, tmp_path: Path, open_writer: Callable[[ShardKind], StoreWriter]
) -> None:
    writer = open_writer(kind)
    writer.publish_shard("p", "s", write(tmp_path, kind, "s", VIDEOS))
    path = get_shard_path(tmp_path, "p", "s", kind)
    (path if path.is_file() else path / "zarr.json").write_bytes(b"")
    with pytest.raises(
        StoreError,
        match=r"product 'p', shard s\.\w+ is damaged: .*Delete it and run stvg-extract again",
    ):
        writer.drop_entries("p", ["v1"])
    leave(writer)
