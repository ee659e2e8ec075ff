"""The writer resumes, adopts, refuses what does not fit, and leaves the same store whatever the way
there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.records import Failure
from pipeline.store import (
    Entry,
    Manifest,
    ProductSummary,
    ShardKind,
    Store,
    StoreWriter,
    compute_origin_digest,
    plan_shards,
    write_shard,
)
from pipeline.store.manifest import save_manifest

Maker = Callable[..., Path]
SIZES = {f"v{i}": 10 for i in range(5)}
FPS = {"fps": 5}
MADE = {kind: compute_origin_digest(kind, FPS) for kind in get_args(ShardKind)}


def entries_of(videos: tuple[str, ...]) -> Iterator[Entry]:
    for video in videos:
        rows = np.random.default_rng(int(video[1:])).standard_normal((4, 2, 3)).astype(np.float16)
        yield Entry(video, video, rows, {"frame": np.arange(4)})


def extract(path: Path, kind: ShardKind, stop_after: int = 99, publish: bool = True) -> None:
    """What a run does: adopt, else write and publish; `stop_after` shards it is gone, perhaps
    before publishing.
    """
    with StoreWriter(path, "shapes", "data") as writer:
        writer.open_product("motion", kind, FPS)
        for number, shard in enumerate(plan_shards(SIZES, 20)):
            if number == stop_after:
                return
            if writer.adopt_shard("motion", shard.name) is None:
                info = write_shard(
                    path,
                    "motion",
                    shard.name,
                    kind,
                    entries_of(shard.videos),
                    shard.videos,
                    MADE[kind],
                )
                if publish:
                    writer.publish_shard("motion", shard.name, info)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("publish", [True, False])
def test_a_run_that_was_stopped_ends_in_the_same_store(
    kind: ShardKind, tmp_path: Path, publish: bool
) -> None:
    extract(tmp_path / "once", kind)
    extract(tmp_path / "twice", kind, stop_after=2, publish=publish)
    assert len(Store(tmp_path / "twice").products["motion"].videos) == (4 if publish else 0)
    extract(tmp_path / "twice", kind)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    assert Store(tmp_path / "twice").products["motion"].videos == set(SIZES)
    assert Store(tmp_path / "once").manifest_digest == Store(tmp_path / "twice").manifest_digest


def test_the_manifest_is_written_every_few_seconds_and_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = 100.0, 0

    def save(store: Path, manifest: Manifest) -> None:
        nonlocal written
        written += 1
        save_manifest(store, manifest)

    def on_disk() -> set[str]:
        return set(Store(tmp_path).products["motion"].shards)

    monkeypatch.setattr("pipeline.store.writer.save_manifest", save)
    monkeypatch.setattr("pipeline.store.writer.time.monotonic", lambda: now)
    names = [f"s{number:02d}" for number in range(10)]
    infos = {
        name: write_shard(tmp_path, "motion", name, "zarr", [], [], MADE["zarr"]) for name in names
    }
    infos = {
        name: info.model_copy(update={"entries": 1, "digest": name}) for name, info in infos.items()
    }
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", "zarr", FPS)
        begin = written
        for name in names[:5]:
            now += 0.5
            writer.publish_shard("motion", name, infos[name])
        assert (written - begin, on_disk()) == (1, set(names[:4]))
        assert set(writer.products["motion"].shards) == set(names[:5])
        writer.flush()
        writer.flush()
        assert (written - begin, on_disk()) == (2, set(names[:5]))
        writer.publish_shard("motion", names[5], infos[names[5]])
        writer.drop_shards("motion", [])
        assert on_disk() == set(names[:5])
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.store.writer.remove_atomically", _kill)
            with pytest.raises(KeyboardInterrupt):
                writer.drop_shards("motion", [names[0]])
        assert on_disk() == set(names[:6])
        writer.publish_shard("motion", names[6], infos[names[6]])
        writer.remove_orphans("motion")
        assert on_disk() == set(names[:7])
        writer.publish_shard("motion", names[7], infos[names[7]])
        assert on_disk() == set(names[:7])
    assert on_disk() == set(names[:8])


def _kill(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("full", [False, True])
def test_what_was_published_is_on_disk_after_an_exception(
    kind: ShardKind, tmp_path: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the disk is full: then the exception is what is told, the lock is free, and the next
    run adopts.
    """

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def publish_and(then: Callable[[], None]) -> None:
        with StoreWriter(tmp_path, "shapes", "data") as writer:
            writer.open_product("motion", kind, FPS)
            writer.publish_shard(
                "motion",
                "s",
                write_shard(tmp_path, "motion", "s", kind, entries_of(("v1",)), ["v1"], MADE[kind]),
            )
            then()

    def fail() -> None:
        if full:
            monkeypatch.setattr("pipeline.store.writer.save_manifest", no_room)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        publish_and(fail)
    assert set(Store(tmp_path).products["motion"].shards) == (set() if full else {"s"})
    monkeypatch.undo()
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", kind, FPS)
        assert writer.adopt_shard("motion", "s") is not None
    assert Store(tmp_path).products["motion"].videos == {"v1"}


def test_a_disk_that_is_full_at_the_end_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = StoreWriter(tmp_path, "shapes", "data").__enter__()
    writer.open_product("motion", "zarr", FPS)
    writer.publish_shard(
        "motion",
        "s",
        write_shard(tmp_path, "motion", "s", "zarr", entries_of(("v1",)), ["v1"], MADE["zarr"]),
    )
    monkeypatch.setattr("pipeline.store.writer.save_manifest", no_room)
    with pytest.raises(StoreError, match=r"the disk of .* is full"):
        writer.__exit__(None, None, None)
    monkeypatch.undo()
    with StoreWriter(tmp_path, "shapes", "data"):
        pass


KILLED = """
import os, sys
from pathlib import Path
from tests.pipeline.store import test_writer as test
real = test.StoreWriter.publish_shard
def publish(writer, product, name, info):
    real(writer, product, name, info)
    if len(writer.products[product].shards) == 2:
        os._exit(9)
test.StoreWriter.publish_shard = publish
test.extract(Path(sys.argv[1]), sys.argv[2])
"""


def test_what_was_published_before_a_kill_is_adopted(
    kind: ShardKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three shards are published and not yet listed: only the third is made."""
    extract(tmp_path / "once", kind)
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "twice"), kind], cwd=root)
    assert killed.returncode == 9
    assert Store(tmp_path / "twice").products["motion"].shards == {}
    result, really = [], write_shard

    def noted(*given: Any) -> Any:
        result.append(given[2])
        return really(*given)

    monkeypatch.setattr(sys.modules[__name__], "write_shard", noted)
    extract(tmp_path / "twice", kind)
    monkeypatch.undo()
    assert result == [plan_shards(SIZES, 20)[2].name]
    (tmp_path / "twice" / "lock.json").unlink(missing_ok=True)
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_a_dropped_product_is_gone_at_once_or_not_at_all(
    kind: ShardKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(tmp_path, kind)
    before = contents(tmp_path)
    with StoreWriter(tmp_path, "shapes", "data") as writer, monkeypatch.context() as patch:
        patch.setattr("pipeline.store.shard.remove_path", _kill)
        with pytest.raises(KeyboardInterrupt):
            writer.drop_product("motion")
    assert not (tmp_path / "motion").exists()
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", kind, {"fps": 7})
        assert writer.get_completed_videos("motion") == set()
        writer.drop_product("motion")
        assert writer.products == {}
    extract(tmp_path, kind)
    assert contents(tmp_path) == before


def test_the_first_to_write_a_shard_wins(kind: ShardKind, tmp_path: Path) -> None:
    def untouched() -> Iterator[Entry]:
        raise AssertionError("the entries of a shard that is there were asked for")
        yield

    first = write_shard(tmp_path, "motion", "s", kind, entries_of(("v1",)), ["v1"], MADE[kind])
    before = contents(tmp_path)
    assert write_shard(tmp_path, "motion", "s", kind, untouched(), ["v1"], MADE[kind]) == first
    assert contents(tmp_path) == before


def test_a_writer_that_was_overtaken_keeps_the_first_shard(kind: ShardKind, tmp_path: Path) -> None:
    def overtaken() -> Iterator[Entry]:
        yield from entries_of(("v1",))
        write_shard(tmp_path, "motion", "s", kind, entries_of(("v1",)), ["v1"], MADE[kind])

    info = write_shard(tmp_path, "motion", "s", kind, overtaken(), ["v1"], MADE[kind])
    assert info == write_shard(
        tmp_path / "other", "motion", "s", kind, entries_of(("v1",)), ["v1"], MADE[kind]
    )
    assert len(list((tmp_path / "motion").iterdir())) == 1


def test_a_shard_without_entries_is_not_written(kind: ShardKind, tmp_path: Path) -> None:
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", kind, FPS)
        info = write_shard(tmp_path, "motion", "s", kind, [], ["v1"], MADE[kind])
        writer.publish_shard("motion", "s", info)
        assert (info.entries, info.videos, info.bytes) == (0, (), 0)
        assert writer.get_completed_videos("motion") == set()
        info = write_shard(
            tmp_path, "motion", "s", kind, entries_of(("v1",)), ["v1", "v2"], MADE[kind]
        )
        writer.publish_shard("motion", "s", info)
        assert (info.entries, info.videos) == (1, ("v1",))
        assert writer.get_completed_videos("motion") == {"v1"}


def test_a_failed_write_leaves_nothing_and_the_next_writer_clears_up(
    kind: ShardKind, tmp_path: Path
) -> None:
    def broken() -> Iterator[Entry]:
        yield from entries_of(("v1",))
        raise OSError("disk full")

    extract(tmp_path, kind)
    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path, "motion", "s", kind, broken(), ["v1"], MADE[kind])
    before = contents(tmp_path)
    (tmp_path / "motion" / ".s.zarr.1.part" / "c").mkdir(parents=True)
    (tmp_path / ".manifest.json.1.part").write_text("{")
    extract(tmp_path, kind)
    assert contents(tmp_path) == before
    assert not list(tmp_path.rglob("*.part"))


def test_shards_of_another_plan_are_removed(kind: ShardKind, tmp_path: Path) -> None:
    extract(tmp_path, kind)
    write_shard(tmp_path, "motion", "00000-other", kind, entries_of(("v1",)), ["v1"], MADE[kind])
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", kind, FPS)
        assert [name.split(".")[0] for name in writer.remove_orphans("motion")] == ["00000-other"]
    assert Store(tmp_path).verify() == []


def test_another_provenance_is_refused_with_its_fields(
    kind: ShardKind, make_store: Maker, sample: list[Entry]
) -> None:
    path = make_store(kind, sample)
    with StoreWriter(path, "shapes", "data") as writer:
        settings = r'weights\.digest is "aa" in the store, "bb" was asked for'
        message = (
            rf"product 'appearance' was made with other settings: {settings}\. "
            "Extract .* delete .*appearance to have"
        )
        with pytest.raises(StoreError, match=message):
            writer.open_product("appearance", kind, {"weights": {"digest": "bb"}, "fps": 5})
        with pytest.raises(
            StoreError,
            match=r"fps is 5 in the store, null was asked for; "
            r"size is null in the store, \[1, 2\] was",
        ):
            writer.open_product("appearance", kind, {"weights": {"digest": "aa"}, "size": (1, 2)})
        other: ShardKind = "zarr" if kind == "hdf5" else "hdf5"
        with pytest.raises(
            StoreError, match=f'kind is "{kind}" in the store, "{other}" was asked for'
        ):
            writer.open_product("appearance", other, {"weights": {"digest": "aa"}, "fps": 5})
        with pytest.raises(ValueError, match="product 'text' has not been opened"):
            writer.get_completed_videos("text")


def test_what_was_deleted_is_forgotten(kind: ShardKind, tmp_path: Path) -> None:
    extract(tmp_path, kind)
    before = contents(tmp_path)
    shard = sorted((tmp_path / "motion").iterdir())[1]
    os.rename(shard, tmp_path / "gone")
    extract(tmp_path, kind)
    os.rename(tmp_path / "motion", tmp_path / "gone too")
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("motion", kind, {"fps": 7})
        assert writer.get_completed_videos("motion") == set()
    os.rmdir(tmp_path / "motion")
    extract(tmp_path, kind)
    assert {
        name: data for name, data in contents(tmp_path).items() if not name.startswith("gone")
    } == before


def test_shards_that_no_manifest_knows_are_refused(kind: ShardKind, tmp_path: Path) -> None:
    extract(tmp_path, kind)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(
        StoreError,
        match=r"motion holds shards that manifest\.json does not list: delete the folder",
    ):
        extract(tmp_path, kind)


def test_another_dataset_is_refused_and_the_lock_freed(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, "shapes", "data"):
        pass
    with pytest.raises(StoreError, match="holds dataset 'shapes', not 'vidstg'"):
        StoreWriter(tmp_path, "vidstg", "data").__enter__()
    with StoreWriter(tmp_path, "shapes", "moved"):
        assert Store(tmp_path).manifest.root == "moved"


def test_index_and_failures(tmp_path: Path) -> None:
    index, tracks = tmp_path / "a.jsonl", tmp_path / "b.npz"
    index.write_text("1\n")
    with StoreWriter(tmp_path / "store", "shapes", "data") as writer:
        with pytest.raises(StoreError, match=r"b\.npz does not exist: run stvg-prepare first"):
            writer.set_index(index, tracks)
        with pytest.raises(
            StoreError, match=rf"{tmp_path}/none\.jsonl does not exist: run stvg-prepare first"
        ):
            writer.set_index(tmp_path / "none.jsonl", tracks)
        tracks.write_bytes(b"2")
        writer.set_index(index, tracks)
        assert writer.read_failures() == []
        failures = [
            Failure(video=v, path=v, stage="open", reason="missing", detail="", attempts=n)
            for n, v in enumerate("bab")
        ]
        writer.write_failures(failures)
        assert writer.read_failures() == [failures[1], failures[2]]
    store = Store(tmp_path / "store")
    assert (store.index_path.read_text(), store.tracks_path.read_bytes()) == ("1\n", b"2")
    assert store.manifest.files == {
        "index.jsonl": hashlib.sha256(b"1\n").hexdigest(),
        "tracks.npz": hashlib.sha256(b"2").hexdigest(),
    }


@pytest.mark.parametrize("name", ["index.jsonl", "tracks.npz"])
def test_an_index_or_tracks_that_are_not_the_manifests_are_noticed(
    tmp_path: Path, name: str
) -> None:
    def fill() -> None:
        with StoreWriter(tmp_path / "store", "shapes", "data") as writer:
            writer.set_index(tmp_path / "index.jsonl", tmp_path / "tracks.npz")

    (tmp_path / "index.jsonl").write_text("1\n")
    (tmp_path / "tracks.npz").write_bytes(b"2")
    fill()
    store = Store(tmp_path / "store")
    assert store.verify() == []
    file = tmp_path / "store" / name
    content = file.read_bytes()
    for other, message in (
        (content + b"x", "its bytes are not those of the manifest"),
        (None, "it is missing"),
    ):
        file.unlink()
        if other is not None:
            file.write_bytes(other)
        assert [str(problem) for problem in store.verify()] == [
            f"{name}: {message}: run stvg-extract again"
        ]
        if other is None:
            Store(
                tmp_path / "store"
            )  # whoever needs the file will say so: without truth, nobody needs tracks
            continue
        with pytest.raises(
            StoreError, match=rf"{name}: {message}: run stvg-extract again, which copies it anew"
        ):
            Store(tmp_path / "store")
    fill()
    assert Store(tmp_path / "store").verify() == []


def test_a_summary_counts_what_is_there(kind: ShardKind, tmp_path: Path) -> None:
    extract(tmp_path, kind)
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("empty", kind, {})
    empty, motion = Store(tmp_path).summarize()
    size = sum(file.stat().st_size for file in (tmp_path / "motion").rglob("*") if file.is_file())
    assert motion == ProductSummary("motion", shards=3, videos=5, entries=5, rows=20, bytes=size)
    assert motion.bytes_per_row == size / 20
    assert str(motion).startswith("motion: 5 videos, 5 entries, 20 rows in 3 shards, 0.0 MB, ")
    assert (empty, empty.bytes_per_row) == (ProductSummary("empty", 0, 0, 0, 0, 0), 0)


def test_a_manifest_that_counts_other_rows_is_noticed(kind: ShardKind, tmp_path: Path) -> None:
    extract(tmp_path, kind)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"rows": 8', '"rows": 9', 1))
    (problem,) = Store(tmp_path).verify()
    assert problem.detail == "its entries are not those of the manifest"
