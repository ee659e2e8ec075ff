"""Damage is never returned as data: it is an error that names product, shard and key."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import Entry, ShardKind, Store, StoreWriter, write_shard
from pipeline.store.layout import ShardTable
from pipeline.store.shard import read_table

Maker = Callable[..., Path]
SHARD = r"product 'appearance', shard 00000-0123abcd\.(zarr|h5)"


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ (1 << bit)]))


def shard_of(path: Path) -> Path:
    return min((path / "appearance").iterdir())


def row_file(path: Path) -> Path:
    """The file with the rows of `wide` and `wide too`."""
    shard = shard_of(path)
    return shard if shard.is_file() else shard / "rows_float16_2x3x4" / "c/0/0/0/0"


def test_every_flipped_bit_in_rows_is_noticed_and_named(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    """Also in the four bytes behind a row: zarr's checksum. Behind HDF5's stands one that the
    reader leaves to others.
    """
    path = make_store(kind, sample)
    file = row_file(path)
    content = file.read_bytes()
    random = np.random.default_rng(3)
    for _ in range(100):
        entry = sample[random.choice([0, 2])]
        row = int(random.choice([number for number in range(len(entry.rows)) if number != 1]))
        begin = content.index(entry.rows[row].tobytes())
        position = begin + int(random.integers(entry.rows[row].nbytes + 4 * (kind == "zarr")))
        bit = int(random.integers(8))
        flip(file, position, bit)
        reader = Store(path).open("appearance")
        with pytest.raises(
            StoreError,
            match=f"{SHARD}, key '{entry.key}': .*Delete this shard and run stvg-extract again",
        ):
            reader.read(entry.key, np.array([0, row, 5]))
        other = sample[2] if entry is sample[0] else sample[0]
        np.testing.assert_array_equal(reader.read(other.key), other.rows)
        flip(file, position, bit)
    assert Store(path).verify() == []


def assert_error_or_harmless(path: Path, sample: list[Entry]) -> None:
    """What is read is right, or is refused; `verify` finds and names the damage either way."""
    store = Store(path)
    reader = store.open("appearance")
    said, read = "", []
    try:
        read = [
            (reader.read(entry.key), reader.columns(entry.key), reader.facts(entry.key))
            for entry in sample
        ]
    except StoreError as error:
        said = str(error)
    assert read or re.search(SHARD, said)
    for entry, (rows, columns, facts) in zip(sample, read, strict=False):
        np.testing.assert_array_equal(rows, entry.rows)
        assert all(np.array_equal(columns[name], values) for name, values in entry.columns.items())
        assert facts == entry.facts
    problems = store.verify()
    assert problems
    assert all(problem.videos and re.search(SHARD, str(problem)) for problem in problems)


def test_a_flipped_bit_anywhere_is_an_error_or_harmless(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    files = sorted(file for file in (path / "appearance").rglob("*") if file.is_file())
    random = np.random.default_rng(4)
    for number in range(200):
        file = files[number % len(files)]
        position, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
        flip(file, position, bit)
        assert_error_or_harmless(path, sample)
        flip(file, position, bit)
    assert Store(path).verify() == []


def test_a_file_cut_anywhere_is_an_error_or_harmless(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    files = sorted(file for file in (path / "appearance").rglob("*") if file.is_file())
    random = np.random.default_rng(5)
    for number in range(60):
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(content[: int(random.integers(len(content)))])
        assert_error_or_harmless(path, sample)
        file.write_bytes(content)
    assert Store(path).verify() == []


def test_verify_names_the_entries_hit(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    file = row_file(path)
    for entry in (sample[0], sample[2]):
        flip(file, file.read_bytes().index(entry.rows[4].tobytes()), 0)
    problems = Store(path).verify()
    assert [(problem.product, problem.key, problem.videos) for problem in problems] == [
        ("appearance", "wide", ("wide",)),
        ("appearance", "wide too", ("wide too",)),
    ]
    assert str(problems[0]).startswith(
        f"product 'appearance', shard {shard_of(path).name}, key 'wide' of video 'wide': row"
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_noticed_and_named(
    kind: ShardKind, sample: list[Entry], make_store: Maker, share: float
) -> None:
    path = make_store(kind, sample)
    file = row_file(path)
    with file.open("r+b") as opened:
        opened.truncate(int(file.stat().st_size * share))
    with pytest.raises(StoreError, match=f"{SHARD}, key 'wide too': "):
        Store(path).open("appearance").read("wide too")
    assert "wide" in {video for problem in Store(path).verify() for video in problem.videos}


def test_a_missing_shard_is_named_with_its_videos(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    shard = shard_of(path)
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    reader = Store(path).open("appearance")
    with pytest.raises(StoreError, match=f"{SHARD}, key 'tall': "):
        reader.read("tall")
    with pytest.raises(StoreError, match=f"{SHARD}, videos none/../ü, tall, wide, wide too: "):
        reader.keys()
    (problem,) = Store(path).verify()
    assert (problem.key, problem.videos) == (None, ("none/../ü", "tall", "wide", "wide too"))


def test_a_missing_chunk_is_not_read_as_zeros(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    if kind == "zarr":
        import zarr

        group = zarr.open_group(shard_of(path), mode="r+")
        group["rows_float16_2x3x4"][3] = 0  # zarr-python drops a chunk of zeros by default
        row = 3
    else:
        with h5py.File(shard_of(path), "r+") as file:
            file["rows_float16_2x3x4"].resize(48, axis=0)
            file["rows_float16_2x3x4"].resize(49, axis=0)
        row = 48
    with pytest.raises(StoreError, match=f"{SHARD}, key 'wide.*': row {row} is missing"):
        Store(path).open("appearance").read("wide" if kind == "zarr" else "wide too")


def test_other_bytes_with_right_checksums_are_found_by_the_digest(
    sample: list[Entry], make_store: Maker
) -> None:
    path = make_store("zarr", sample)
    file = shard_of(path) / "rows_float16_2x3x4" / "zarr.json"
    file.write_text(file.read_text() + "\n")
    (problem,) = Store(path).verify()
    assert (
        problem.detail
        == "its bytes are not those of the manifest, though every row matches its checksum"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is not a feature store \(it has no manifest\.json\): run stvg-extract --store"),
        ("{", r"manifest\.json cannot be read .*: restore it, or extract into another --store"),
        ("[]", "format None is unknown; this version reads 1"),
        (
            '{"format": 9}',
            r"manifest\.json: format 9 is unknown; this version reads 1: "
            "extract into another --store",
        ),
        ('{"format": 1, "root": "."}', r"manifest\.json: dataset: Field required"),
        (
            '{"format": 1, "root": ".", "dataset": "shapes"}',
            r"manifest\.json: files: Field required",
        ),
    ],
)
def test_a_bad_manifest_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        Store(tmp_path)


def test_an_unknown_product_and_an_unknown_table_format(
    sample: list[Entry], make_store: Maker
) -> None:
    path = make_store("zarr", sample)
    with pytest.raises(
        StoreError,
        match=r"has no product 'motion' \(it has appearance\): run stvg-extract to add it",
    ):
        Store(path).open("motion")
    file = shard_of(path) / "zarr.json"
    document = json.loads(file.read_text())
    document["attributes"]["format"] = 2
    file.write_text(json.dumps(document))
    with pytest.raises(
        StoreError, match="its table has format 2, which is unknown; this version reads 1"
    ):
        Store(path).open("appearance").keys()


def test_what_the_machine_refuses_is_not_called_damage(
    kind: ShardKind, sample: list[Entry], make_store: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    reader = Store(make_store(kind, sample)).open("appearance")
    reader.keys()
    monkeypatch.setattr(*((os, "open") if kind == "zarr" else (h5py, "File")), refuse)
    with pytest.raises(
        StoreError,
        match=r"product 'appearance': .*0123abcd.* cannot be read \(Too many open files\): "
        "its content was not",
    ):
        reader.read("wide")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "Permission denied"), (errno.EMFILE, "Too many open files")]
)
def test_verify_names_what_the_machine_refuses_and_goes_on(
    kind: ShardKind,
    sample: list[Entry],
    make_store: Maker,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    said: str,
) -> None:
    """Whether the table is refused or the rows; another shard's damage is found all the same."""
    path = make_store(kind, sample)
    second = [Entry("late", "late", sample[0].rows)]
    with StoreWriter(path, "shapes", "data") as writer:
        result = writer.products["appearance"].digest
        writer.publish_shard(
            "appearance",
            "00001-0123abcd",
            write_shard(path, "appearance", "00001-0123abcd", kind, second, ["late"], result),
        )
    content = next(
        file
        for file in path.rglob(
            "00001-0123abcd*/rows_*/c/0/0/0/0" if kind == "zarr" else "00001-0123abcd.h5"
        )
    )
    flip(content, content.read_bytes().index(second[0].rows[4].tobytes()), 0)
    late = ("late", ("late",), "row 4 does not match its checksum")
    true = os.open

    def refuse(name: Any, *more: Any, **named: Any) -> Any:
        if "00000-0123abcd" in str(name) and not str(name).endswith("zarr.json"):
            raise OSError(number, said)
        return true(name, *more, **named)

    def refuse_table(name: Any, kind: ShardKind) -> ShardTable:
        if "00000-0123abcd" in str(name):
            raise OSError(number, said, str(name))
        return read_table(name, kind)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        problems = Store(path).verify()
    hit = ("none/../ü", "tall", "wide", "wide too")
    assert [(problem.key, problem.videos) for problem in problems] == [(None, hit), late[:2]]
    assert re.search(
        rf"00000-0123abcd\.(zarr|h5) cannot be read \({said}\): the rest of it was not checked",
        problems[0].detail,
    )
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.verify.read_table", refuse_table)
        problems = Store(path).verify()
    assert [(problem.key, problem.videos, problem.detail) for problem in problems] == [
        (None, hit, f"{shard_of(path)} cannot be read ({said}): the rest of it was not checked"),
        late,
    ]


def test_a_manifest_that_drops_what_is_not_there_is_noticed(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    path = make_store(kind, sample)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"dropped": []', '"dropped": ["long"]'))
    (problem,) = Store(path).verify()
    assert problem.detail == "its entries are not those of the manifest"


@pytest.mark.parametrize("below", ["", "store"])
def test_a_file_is_no_store(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / below
    message = (
        rf"{path} cannot be a store: {tmp_path}/file is a file, not a directory\. "
        "Choose another path with --store"
    )
    with pytest.raises(StoreError, match=message):
        Store(path)
    with pytest.raises(StoreError, match=message):
        StoreWriter(path, "shapes", "data").__enter__()
    assert (tmp_path / "file").read_text() == ""
