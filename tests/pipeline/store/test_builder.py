"""Rows streamed to disk, blocks at a time, make the shard that whole entries make; what was
abandoned leaves no trace.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from pipeline.errors import StoreError
from pipeline.store import Entry, ShardBuilder, ShardKind, Store, StoreWriter, write_shard

LIBRARIES = ("3.1.6", "2.0.0")  # zarr's and HDF5's, which wrote the shards of DIGESTS
MADE = "of this"
DIGESTS = {
    "zarr": "054c51b2b4fc85bf84a398dd386580b7b80466a80ac894adb8c805b7dd3938f0",
    "hdf5": "e745e98ff0f1142157a05afd26949e2e0a74cec6a1c34f1f017abae5d6aee1f6",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def videos_of(entries: list[Entry]) -> list[str]:
    return [entry.video for entry in entries]


def stream(shard: ShardBuilder, entry: Entry, blocks: int) -> None:
    """Append an entry in about so many blocks, empty ones among them."""
    shard.begin(entry.key, entry.video)
    for rows in np.array_split(entry.rows, blocks):
        shard.append(rows)
    shard.end(entry.columns, entry.facts)


def test_a_shard_keeps_its_bytes(kind: ShardKind, tmp_path: Path, sample: list[Entry]) -> None:
    if (zarr.__version__, h5py.version.hdf5_version) != LIBRARIES:
        pytest.skip(f"the digests are those of zarr {LIBRARIES[0]} and HDF5 {LIBRARIES[1]}")
    assert (
        write_shard(tmp_path, "appearance", "s", kind, sample, videos_of(sample), MADE).digest
        == DIGESTS[kind]
    )


@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_blocks_make_the_shard_that_whole_entries_make(
    kind: ShardKind, tmp_path: Path, sample: list[Entry], blocks: int
) -> None:
    info = write_shard(tmp_path / "whole", "p", "s", kind, sample, videos_of(sample), MADE)
    with ShardBuilder(tmp_path / "blocks", "p", "s", kind, videos_of(sample), MADE) as shard:
        for entry in sample:
            stream(shard, entry, blocks)
        assert shard.finish() == info
    assert contents(tmp_path / "whole") == contents(tmp_path / "blocks")


@pytest.mark.parametrize("waiting", [0, 1 << 20])
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 5)])
def test_an_abandoned_entry_never_was(
    kind: ShardKind,
    tmp_path: Path,
    sample: list[Entry],
    shape: tuple[int, ...],
    place: int,
    waiting: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever array it went to, one that was new among them, and wherever it came."""
    monkeypatch.setattr("pipeline.store.hdf5_shard.MAX_BUFFERED_BYTES", waiting)
    info = write_shard(tmp_path / "without", "p", "s", kind, sample, videos_of(sample), MADE)
    with ShardBuilder(tmp_path / "with", "p", "s", kind, videos_of(sample), MADE) as shard:
        for number in range(len(sample) + 1):
            if number == place:
                shard.begin("gone", sample[0].video)
                for count in (4, 0, 300):
                    shard.append(np.ones((count, *shape), np.float16))
                shard.abandon()
                shard.begin("gone", sample[0].video)
                shard.abandon()
            if number < len(sample):
                stream(shard, sample[number], 2)
        assert shard.finish() == info
    assert contents(tmp_path / "without") == contents(tmp_path / "with")


def test_an_entry_may_come_again_after_it_was_abandoned(
    kind: ShardKind, tmp_path: Path, sample: list[Entry]
) -> None:
    with ShardBuilder(tmp_path, "p", "s", kind, videos_of(sample), MADE) as shard:
        shard.begin("wide", "wide")
        shard.append(sample[1].rows)
        shard.abandon()
        stream(shard, sample[0], 3)
        info = shard.finish()
    assert info == write_shard(tmp_path / "other", "p", "s", kind, sample[:1], ["wide"], MADE)


def test_nothing_but_abandoned_entries_is_no_shard(kind: ShardKind, tmp_path: Path) -> None:
    with ShardBuilder(tmp_path, "p", "s", kind, ["v"], MADE) as shard:
        shard.begin("v", "v")
        shard.append(np.ones((3, 2), np.float16))
        shard.abandon()
        assert shard.finish().entries == 0
    assert list((tmp_path / "p").iterdir()) == []


def test_leaving_without_finish_discards_everything(
    kind: ShardKind, tmp_path: Path, sample: list[Entry]
) -> None:
    with ShardBuilder(tmp_path, "p", "s", kind, videos_of(sample), MADE) as shard:
        stream(shard, sample[0], 2)
        shard.begin("tall", "tall")
        shard.append(sample[1].rows)
    assert list((tmp_path / "p").iterdir()) == []


def test_several_shards_are_built_at_once(tmp_path: Path, sample: list[Entry]) -> None:
    places = [("appearance", "zarr"), ("motion", "zarr"), ("text", "hdf5"), ("frames", "hdf5")]
    with ExitStack() as stack:
        shards = [
            stack.enter_context(ShardBuilder(tmp_path, product, "s", kind, videos_of(sample), MADE))
            for product, kind in places
        ]  # type: ignore[arg-type]
        for entry in sample:
            for shard in shards:
                shard.begin(entry.key, entry.video)
            for rows in np.array_split(entry.rows, 3):
                for shard in shards:
                    shard.append(rows)
            for shard in shards:
                shard.end(entry.columns, entry.facts)
        infos = [shard.finish() for shard in shards]
    for (product, kind), info in zip(places, infos, strict=True):
        assert info == write_shard(
            tmp_path / "alone", product, "s", kind, sample, videos_of(sample), MADE
        )  # type: ignore[arg-type]


def test_memory_stays_bounded(kind: ShardKind, tmp_path: Path) -> None:
    """200 MB of rows in blocks of 10 MB, in less than 60 MB."""
    block = np.random.default_rng(0).integers(0, 1000, (10, 500_000)).astype(np.float16)
    tracemalloc.start()
    try:
        with ShardBuilder(tmp_path, "p", "s", kind, ["v"], MADE) as shard:
            shard.begin("v", "v")
            for _ in range(20):
                shard.append(block)
            shard.end({}, {})
            assert shard.finish().bytes > 200e6
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("append", "append: no entry is open; begin one first"),
        ("end", "end: no entry is open; begin one first"),
        ("abandon", "abandon: no entry is open; begin one first"),
        (
            "begin begin",
            "entry 'v' is begun while 'v' is open: end or abandon the open entry first",
        ),
        (
            "begin end",
            "entry 'v' ends without rows: append an array without rows to state their shape",
        ),
        ("begin append other", r"entry 'v': rows of float16\[3\] after float16\[2\]"),
        (
            "begin append finish",
            r"shard s\.(zarr|h5) is finished while entry 'v' is open: end or abandon it first",
        ),
        (
            "begin append end finish begin",
            "entry 'v' is begun in a shard that is not open for writing",
        ),
        ("begin append end finish finish", r"shard s\.(zarr|h5) is not open for writing"),
    ],
)
def test_steps_out_of_order_are_refused(
    kind: ShardKind, tmp_path: Path, steps: str, message: str
) -> None:
    with ShardBuilder(tmp_path, "p", "s", kind, ["v"], MADE) as shard:
        actions: dict[str, Callable[[], object]] = {
            "begin": lambda: shard.begin("v", "v"),
            "append": lambda: shard.append(np.zeros((1, 2), np.float16)),
            "other": lambda: shard.append(np.zeros((1, 3), np.float16)),
            "end": lambda: shard.end({}, {}),
            "abandon": shard.abandon,
            "finish": shard.finish,
        }
        *before, last = steps.split()
        for step in before:
            actions[step]()
        with pytest.raises(ValueError, match=message):
            actions[last]()


FULL = (
    r"the disk of .*p is full \(\d+\.\d MiB were free, No space left on device\): "
    "the file being written is dropped, all finished files"
)


@pytest.mark.parametrize("broken", ["rows", "fsync", "rename"])
def test_a_full_disk_leaves_what_was_finished(
    kind: ShardKind,
    tmp_path: Path,
    sample: list[Entry],
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    takes_room = "writev" if kind == "zarr" else "posix_fallocate"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_shard(tmp_path, "p", "before", kind, sample, videos_of(sample), MADE)
    before = contents(tmp_path)
    with ShardBuilder(tmp_path, "p", "s", kind, videos_of(sample), MADE) as shard:
        stream(shard, sample[0], 2)
        monkeypatch.setattr(os, takes_room if broken == "rows" else broken, full)
        with pytest.raises(StoreError, match=FULL):
            stream(shard, sample[2], 2) if broken == "rows" else shard.finish()
        assert contents(tmp_path) == before
        monkeypatch.undo()
        with pytest.raises(ValueError, match="not open for writing"):
            shard.begin("tall", "tall")
    assert contents(tmp_path) == before


ON_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import numpy as np
from pipeline.errors import StoreError
from pipeline.store import Entry, ShardBuilder, Store, StoreWriter, compute_origin_digest, write_shard
disk, kind, width = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]).returncode:
    sys.exit(77)
rows = np.random.default_rng(0).integers(0, 99, (500_000 // width, width)).astype(np.float16)
digest = compute_origin_digest(kind, {})
def write(name, key):
    return write_shard(disk / "store", "p", name, kind, [Entry(key, key, rows)], [key], digest)
with StoreWriter(disk / "store", "shapes", "data") as writer:
    writer.open_product("p", kind, {})
    writer.publish_shard("p", "one", write("one", "a"))
    try:
        with ShardBuilder(disk / "store", "p", "two", kind, ["b"], digest) as shard:
            for number in range(20):
                shard.begin(f"b{number}", "b")
                shard.append(rows)
                shard.append(rows)
                shard.end({"frame": np.arange(2 * len(rows))}, {})
            shard.finish()
    except StoreError as error:
        print(error)
    assert [path.stem for path in (disk / "store" / "p").iterdir()] == ["one"]
    writer.publish_shard("p", "three", write("three", "c"))
assert Store(disk / "store").verify() == []
assert set(Store(disk / "store").products["p"].shards) == {"one", "three"}
"""


@pytest.mark.parametrize("width", [100, 50_000])
def test_a_disk_that_runs_full(kind: ShardKind, tmp_path: Path, width: int) -> None:
    """On a file system of 8 MiB in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        ON_SMALL_DISK,
        str(tmp_path),
        kind,
        str(width),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr.split(":")[0]:
        pytest.skip("this machine lets no user mount a file system of his own")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"the disk of {tmp_path}/store/p is full (")


def test_a_full_disk_is_told_by_the_writer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with StoreWriter(tmp_path, "shapes", "data") as writer:
        writer.open_product("p", "zarr", {})
        before = hashlib.sha256((tmp_path / "manifest.json").read_bytes())
        monkeypatch.setattr(os, "fsync", full)
        for act in (
            lambda: writer.open_product("q", "zarr", {}),
            lambda: writer.drop_product("p"),
            lambda: writer.write_failures([]),
        ):
            with pytest.raises(
                StoreError, match=r"the disk of .* is full \(.*Disk quota exceeded\)"
            ):
                act()
        assert hashlib.sha256((tmp_path / "manifest.json").read_bytes()).digest() == before.digest()
        assert set(Store(tmp_path).products) == {"p"}
    with pytest.raises(StoreError, match=r"the disk of .* is full"):
        StoreWriter(tmp_path, "shapes", "data").__enter__()
    monkeypatch.undo()
    with StoreWriter(tmp_path, "shapes", "data"):
        assert not list(tmp_path.glob(".[mf]*.part"))
