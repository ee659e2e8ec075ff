"""A shard says what it was made of: one of other settings is never taken for ours, nor a damaged
one for whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import (
    Entry,
    Product,
    ShardBuilder,
    ShardInfo,
    ShardKind,
    Store,
    StoreWriter,
    compute_origin_digest,
    has_origin,
    write_shard,
)
from pipeline.store.layout import get_shard_path

OURS, THEIRS = {"fps": 5}, {"fps": 7}
Write = Callable[[Path, ShardKind, dict[str, Any]], ShardInfo]


def whole(
    store: Path, kind: ShardKind, provenance: dict[str, Any], name: str = "s", product: str = "p"
) -> ShardInfo:
    """A shard of two videos whose numbers are their frames' rate."""
    result = compute_origin_digest(kind, provenance)
    return write_shard(
        store, product, name, kind, entries_of(provenance, ("v1", "v2")), ["v1", "v2"], result
    )


def streamed(store: Path, kind: ShardKind, provenance: dict[str, Any]) -> ShardInfo:
    with ShardBuilder(
        store, "p", "s", kind, ["v1", "v2"], compute_origin_digest(kind, provenance)
    ) as shard:
        for entry in entries_of(provenance, ("v1", "v2")):
            shard.begin(entry.key, entry.video)
            shard.append(entry.rows)
            shard.end(entry.columns, entry.facts)
        return shard.finish()


def entries_of(provenance: dict[str, Any], videos: Sequence[str]) -> list[Entry]:
    return [
        Entry(video, video, np.full((4, 3), provenance["fps"], np.float16), {"frame": np.arange(4)})
        for video in videos
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def damage(path: Path) -> None:
    """Make a shard's table unreadable."""
    file = path if path.is_file() else path / "zarr.json"
    with file.open("r+b") as opened:
        opened.truncate(20)


def test_it_is_the_digest_of_format_and_settings(kind: ShardKind) -> None:
    expected = hashlib.sha256(
        f'{{"kind":"{kind}","provenance":{{"a":{{"b":[1,2]}},"fps":5}}}}'.encode()
    ).hexdigest()
    assert compute_origin_digest(kind, {"fps": 5, "a": {"b": (1, 2)}}) == expected
    assert (
        Product(kind=kind, provenance={"a": {"b": [1, 2]}, "fps": 5}, shards={}).digest == expected
    )
    assert (
        len(
            {
                compute_origin_digest("zarr", OURS),
                compute_origin_digest("hdf5", OURS),
                compute_origin_digest("zarr", THEIRS),
            }
        )
        == 3
    )


def test_only_a_whole_shard_of_these_settings_is_made_from_them(
    kind: ShardKind, tmp_path: Path
) -> None:
    path, current = get_shard_path(tmp_path, "p", "s", kind), compute_origin_digest(kind, OURS)
    assert not has_origin(path, kind, current)
    whole(tmp_path, kind, OURS)
    assert has_origin(path, kind, current)
    assert not has_origin(path, kind, compute_origin_digest(kind, THEIRS))
    damage(path)
    assert not has_origin(path, kind, current)


@pytest.mark.parametrize("write", [whole, streamed])
@pytest.mark.parametrize("before", ["same", "other", "damaged"])
def test_one_of_other_settings_or_damaged_makes_way(
    kind: ShardKind, tmp_path: Path, write: Write, before: str
) -> None:
    alone = whole(tmp_path / "alone", kind, OURS)
    path = get_shard_path(tmp_path / "store", "p", "s", kind)
    whole(tmp_path / "store", kind, THEIRS if before == "other" else OURS)
    if before == "damaged":
        damage(path)
    there = path.stat().st_ino
    assert write(tmp_path / "store", kind, OURS) == alone
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert (path.stat().st_ino == there) == (before == "same")


def test_one_that_comes_while_ours_is_written_makes_way_too(
    kind: ShardKind, tmp_path: Path
) -> None:
    with ShardBuilder(
        tmp_path / "store", "p", "s", kind, ["v1", "v2"], compute_origin_digest(kind, OURS)
    ) as shard:
        for entry in entries_of(OURS, ("v1", "v2")):
            shard.begin(entry.key, entry.video)
            shard.append(entry.rows)
            shard.end(entry.columns, entry.facts)
        whole(tmp_path / "store", kind, THEIRS)
        assert shard.finish() == whole(tmp_path / "alone", kind, OURS)
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_kill_while_one_makes_way_leaves_it_whole_or_absent(
    kind: ShardKind, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the old one is set aside, before it is removed there, before ours takes its place."""
    path = get_shard_path(tmp_path, "p", "s", kind)
    whole(tmp_path, kind, THEIRS)
    before, rename, done = contents(path.parent), os.rename, 0

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    def counted(source: Any, target: Any) -> None:
        nonlocal done
        if (done, stopped) in ((0, 0), (1, 2)):
            kill()
        rename(source, target)
        done += 1

    monkeypatch.setattr(os, "rename", counted)
    if stopped == 1:
        monkeypatch.setattr("pipeline.store.shard.remove_path", kill)
    with pytest.raises(KeyboardInterrupt):
        streamed(tmp_path, kind, OURS)
    monkeypatch.undo()
    if stopped == 0:
        assert contents(path.parent) == before
    else:
        assert not path.exists()
        assert all(left.name.endswith(".part") for left in path.parent.iterdir())


def test_a_late_workers_shard_is_not_adopted(kind: ShardKind, tmp_path: Path) -> None:
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        whole(tmp_path, kind, THEIRS, "early")
        assert writer.adopt_shard("p", "early") is None
        whole(tmp_path, kind, THEIRS, "late")
        assert writer.adopt_shard("p", "late") is None
        assert list((tmp_path / "p").iterdir()) == []
        info = whole(tmp_path, kind, OURS, "late")
        assert writer.adopt_shard("p", "late") == info
    assert Store(tmp_path).products["p"].shards == {"late": info}


def test_a_late_workers_shard_under_a_listed_name_is_refused_and_made_anew(
    kind: ShardKind, tmp_path: Path
) -> None:
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        writer.publish_shard("p", "s", whole(tmp_path, kind, OURS))
    whole(tmp_path, kind, THEIRS)
    (problem,) = Store(tmp_path).verify()
    assert (problem.key, problem.videos) == (None, ("v1", "v2"))
    assert problem.detail == "it was made with other settings than the manifest says"
    with pytest.raises(
        StoreError,
        match=r"shard s\.(zarr|h5), key 'v1': it was made with other settings than the manifest "
        r"says\. Delete",
    ):
        Store(tmp_path).open("p").read("v1")
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        assert writer.adopt_shard("p", "s") is None
        assert writer.get_completed_videos("p") == set()
        writer.publish_shard("p", "s", whole(tmp_path, kind, OURS))
    assert Store(tmp_path).verify() == []


def test_all_damaged_shards_are_named_at_once(kind: ShardKind, tmp_path: Path) -> None:
    """Listed or left by a killed run; of the products that were opened."""

    def go_on(*products: str) -> set[str]:
        with StoreWriter(tmp_path, "shapes", "data") as writer:
            for product in products:
                writer.open_product(product, kind, OURS)
            return {
                name
                for product in products
                for name in ("a", "b", "c")
                if writer.adopt_shard(product, name)
            }

    with StoreWriter(tmp_path, "shapes", "data") as writer:
        for product in ("p", "q", "r"):
            writer.open_product(product, kind, OURS)
            for name in ("a", "b"):
                writer.publish_shard(product, name, whole(tmp_path, kind, OURS, name, product))
    whole(tmp_path, kind, OURS, "c", "q")
    hit = [
        get_shard_path(tmp_path, product, name, kind)
        for product, name in (("p", "a"), ("q", "b"), ("q", "c"))
    ]
    for path in [*hit, get_shard_path(tmp_path, "r", "a", kind)]:
        damage(path)
    with pytest.raises(
        StoreError,
        match=r"3 damaged shards\. Delete the shards named here and run stvg-extract again",
    ) as refused:
        go_on("p", "q")
    assert [line.split(": ")[0] for line in str(refused.value).splitlines()[1:]] == [
        str(path) for path in hit
    ]
    with pytest.raises(StoreError, match=r"1 damaged shard\. Delete"):
        go_on("r")
    for path in hit:
        path.unlink() if path.is_file() else os.rename(path, tmp_path / path.name)
    assert go_on("p", "q") == {"a", "b"}


def test_a_shard_damaged_after_that_is_named_when_it_is_adopted(
    kind: ShardKind, tmp_path: Path
) -> None:
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        assert writer.adopt_shard("p", "s") is None
        whole(tmp_path, kind, OURS)
        damage(get_shard_path(tmp_path, "p", "s", kind))
        with pytest.raises(
            StoreError,
            match=r"product 'p', shard s\.\w+ is damaged: .*\. "
            "Delete it and run stvg-extract again",
        ):
            writer.adopt_shard("p", "s")


def test_a_resumption_that_the_machine_refuses_judges_nothing(
    tmp_path: Path, kind: ShardKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, kind: ShardKind) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        writer.publish_shard("p", "s", whole(tmp_path, kind, OURS))
    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", kind, OURS)
        monkeypatch.setattr("pipeline.store.shard_check.read_table", refuse)
        with pytest.raises(
            StoreError,
            match=r"product 'p': \S+s\.\w+ cannot be read \(Permission denied\): "
            "its content was not checked",
        ):
            writer.adopt_shard("p", "s")
