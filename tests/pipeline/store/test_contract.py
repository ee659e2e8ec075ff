"""Both file formats keep one contract: what was written is read, in any order, and damage aside
nothing differs.
"""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.store import Entry, ProductReader, ShardKind, Store, write_shard

Maker = Callable[..., Path]


def assert_reads(reader: ProductReader, entries: list[Entry]) -> None:
    assert reader.keys() == [entry.key for entry in entries]
    for entry in entries:
        rows, columns = reader.read(entry.key), reader.columns(entry.key)
        assert reader.shape(entry.key) == entry.rows.shape
        assert rows.dtype == entry.rows.dtype
        np.testing.assert_array_equal(rows, entry.rows)
        assert sorted(columns) == sorted(entry.columns)
        for name, values in entry.columns.items():
            assert columns[name].dtype == values.dtype
            np.testing.assert_array_equal(columns[name], values)
        assert reader.facts(entry.key) == entry.facts


def test_written_is_read(kind: ShardKind, sample: list[Entry], make_store: Maker) -> None:
    store = Store(make_store(kind, sample))
    assert_reads(store.open("appearance"), sample)
    assert store.verify() == []
    assert store.products["appearance"].provenance == {"weights": {"digest": "aa"}, "fps": 5}


def test_any_order_and_repeats(kind: ShardKind, sample: list[Entry], make_store: Maker) -> None:
    reader = Store(make_store(kind, sample)).open("appearance")
    random = np.random.default_rng(0)
    for entry in sample[:3]:
        for count in (0, 1, 5, 60):
            expected = random.integers(0, len(entry.rows), count)
            np.testing.assert_array_equal(reader.read(entry.key, expected), entry.rows[expected])
        for expected in (np.arange(len(entry.rows))[::-1], random.permutation(len(entry.rows))):
            np.testing.assert_array_equal(reader.read(entry.key, expected), entry.rows[expected])


def from_ones(size: int) -> np.ndarray:
    """Memory that can be told from other memory."""
    ALLOCATED.append(np.ones(size, np.uint8))
    return ALLOCATED[-1]


ALLOCATED: list[np.ndarray] = []


@pytest.mark.parametrize("pickled", [False, True])
def test_rows_are_read_into_the_memory_that_is_given(
    kind: ShardKind,
    sample: list[Entry],
    make_store: Maker,
    pickled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.store.buffer_pool.MIN_POOLED_BYTES", 0)
    reader = Store(make_store(kind, sample)).open("appearance", from_ones)
    reader = pickle.loads(pickle.dumps(reader)) if pickled else reader
    for entry in sample:
        if entry.rows.size:
            rows = reader.read(entry.key)
            np.testing.assert_array_equal(rows, entry.rows)
            assert np.shares_memory(rows, ALLOCATED[-1])


@pytest.mark.parametrize("index", [-1, 9])
def test_a_row_outside_is_refused(
    kind: ShardKind, sample: list[Entry], make_store: Maker, index: int
) -> None:
    reader = Store(make_store(kind, sample)).open("appearance")
    with pytest.raises(IndexError, match=rf"key 'wide': row {index} does not lie in \[0, 9\)"):
        reader.read("wide", np.array([0, index]))


def test_an_unknown_key_is_refused(kind: ShardKind, sample: list[Entry], make_store: Maker) -> None:
    reader = Store(make_store(kind, sample)).open("appearance")
    assert "wide" in reader
    assert "long" not in reader
    assert len(reader) == 4
    with pytest.raises(StoreError, match=r"product 'appearance' has no entry 'long' \(of 4\)"):
        reader.read("long")


def test_many_sentences_of_one_video(kind: ShardKind, tmp_path: Path, make_store: Maker) -> None:
    rows = np.arange(20 * 8, dtype=np.float16).reshape(20, 8)
    entries = [
        Entry(
            f"q{i}",
            f"v{i % 2}",
            rows[i : i + i % 4 + 1],
            {"token": np.arange(i % 4 + 1)},
            {"text": f"ä {i}"},
        )
        for i in range(12)
    ]
    path = make_store(kind, entries)
    assert_reads(Store(path).open("appearance"), entries)
    assert Store(path).products["appearance"].videos == {"v0", "v1"}


def test_columns_may_be_longer_than_rows(kind: ShardKind, make_store: Maker) -> None:
    pages = np.random.default_rng(1).integers(0, 256, (3, 4096)).astype(np.uint8)
    entries = [
        Entry("a", "a", pages, {"frame": np.arange(50), "byte": np.arange(51) * 200}),
        Entry("b", "b", pages[:1], {"frame": np.arange(2)}),
    ]
    assert_reads(Store(make_store(kind, entries)).open("appearance"), entries)


def test_a_memory_map_can_be_written(kind: ShardKind, tmp_path: Path, make_store: Maker) -> None:
    rows = np.random.default_rng(2).standard_normal((30, 4, 5)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    entries = [Entry("a", "a", np.load(tmp_path / "rows.npy", mmap_mode="r")[::2])]
    assert_reads(Store(make_store(kind, entries)).open("appearance"), [Entry("a", "a", rows[::2])])


def test_same_entries_give_the_same_bytes(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    contents = []
    for name in ("one", "two"):
        path = make_store(kind, sample, name)
        contents.append(
            {
                file.relative_to(path): file.read_bytes()
                for file in path.rglob("*")
                if file.is_file() and file.name != "lock"
            }
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) < 15


def test_the_two_formats_agree(sample: list[Entry], make_store: Maker) -> None:
    readers = [
        Store(make_store(kind, sample, kind)).open("appearance") for kind in ("zarr", "hdf5")
    ]
    for key in readers[0].keys():  # noqa: SIM118 - a reader is not a mapping
        assert readers[0].read(key).tobytes() == readers[1].read(key).tobytes()
        assert readers[0].facts(key) == readers[1].facts(key)


def _sum_in_child(reader: ProductReader, queue: multiprocessing.Queue[float]) -> None:
    queue.put(float(reader.read("wide").astype(np.float64).sum()))


def test_a_reader_survives_pickling_and_forking(
    kind: ShardKind, sample: list[Entry], make_store: Maker
) -> None:
    reader = Store(make_store(kind, sample)).open("appearance")
    expected = float(reader.read("wide").astype(np.float64).sum())
    assert_reads(pickle.loads(pickle.dumps(reader)), sample)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[float] = context.Queue()
    children = [context.Process(target=_sum_in_child, args=(reader, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=30) for _ in children] == [expected] * 2
    for child in children:
        child.join()
    assert_reads(reader, sample)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("a", "b", np.zeros((1, 2))), "of video 'b', which this shard was not planned for"),
        (Entry("a", "a", np.zeros(3)), r"rows must be numbers \[n, \*shape\], not float64\[3\]"),
        (
            Entry("a", "a", np.zeros((3, 0))),
            r"rows must be numbers \[n, \*shape\], not float64\[3, 0\]",
        ),
        (Entry("a", "a", np.array([["x"]])), "rows must be numbers"),
        (
            Entry("a", "a", np.zeros((1, 2)), {"word": np.array(["x"])}),
            "column 'word' must be numbers",
        ),
        (
            Entry("a", "a", np.zeros((1, 2)), {}, {"size": np.zeros(2)}),
            "entry 'a': its facts are not JSON",
        ),
        (
            Entry("a", "a", np.zeros((1, 2)), {}, {"size": float("nan")}),
            "entry 'a': its facts are not JSON",
        ),
    ],
)
def test_an_entry_out_of_place_is_refused(
    kind: ShardKind, tmp_path: Path, entry: Entry, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, "text", "00000-0123abcd", kind, [entry], ["a"], "of this")
    assert list((tmp_path / "text").iterdir()) == []


def test_entries_that_clash_are_refused(kind: ShardKind, tmp_path: Path) -> None:
    item = Entry("a", "a", np.zeros((1, 2)), {"frame": np.zeros(1, np.int64)})
    other = Entry("b", "a", np.zeros((1, 2)), {"frame": np.zeros(1, np.int32)})
    with pytest.raises(ValueError, match="entry 'a' is begun twice"):
        write_shard(tmp_path, "text", "00000-0123abcd", kind, [item, item], ["a"], "of this")
    with pytest.raises(
        ValueError, match="entry 'b': column 'frame' is int32, but int64 in the entries before"
    ):
        write_shard(tmp_path, "text", "00000-0123abcd", kind, [item, other], ["a"], "of this")


def test_importing_the_store_stays_light() -> None:
    heavy = "{'zarr', 'h5py', 'torch', 'dask'}"
    code = f"import sys, pipeline.store; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
