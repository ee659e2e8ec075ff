"""One shard as it lies on disk, whatever its format: its table, its files, their digest."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from pipeline.errors import StoreError
from pipeline.store.layout import (
    DamageError,
    EntryLocation,
    ShardKind,
    ShardSink,
    ShardSource,
    ShardTable,
)
from pipeline.store.manifest import ShardInfo, compute_files_digest

MAX_REMOVE_ATTEMPTS = 8
"""Attempts to remove a folder that others still write into."""


def read_shard_info(path: Path, product: str, kind: ShardKind) -> ShardInfo:
    """What the manifest says about a complete shard: from its table and its bytes; a StoreError if its table is damaged."""
    files = list_shard_files(path)
    videos, entries, rows = count_entries(read_valid_table(path, product, kind).entries)
    size = sum(file.stat().st_size for file in files)
    return ShardInfo(
        videos=videos, entries=entries, rows=rows, bytes=size, digest=compute_files_digest(files)
    )


def has_origin(path: Path, kind: ShardKind, origin_digest: str) -> bool:
    """Whether a shard is there whose table says so; not if it is absent, damaged, or made with other settings."""
    if not path.exists():
        return False
    try:
        return read_table(path, kind).made_from == origin_digest
    except DamageError:
        return False


def read_valid_table(path: Path, product: str, kind: ShardKind) -> ShardTable:
    """The table of a shard of `product`; a StoreError if it is damaged, or cannot be read."""
    try:
        return read_table(path, kind)
    except DamageError as damage:
        raise StoreError(
            f"{path}: product {product!r}, shard {path.name} is damaged: {damage}. Delete it and run stvg-extract again"
        ) from None
    except OSError as error:
        raise StoreError(
            f"product {product!r}: {describe_read_error(path, error)}: nothing in it was judged"
        ) from None


def describe_read_error(path: Path, error: OSError) -> str:
    """What the machine refused (permissions, too many open files, …); nothing is known about the bytes."""
    return f"{error.filename or path} cannot be read ({os.strerror(error.errno) if error.errno else error})"


def active_entries(table: ShardTable, dropped: Collection[str]) -> list[EntryLocation]:
    """The entries without the dropped ones."""
    gone = set(dropped)
    return [place for place in table.entries if place.key not in gone]


def count_entries(locations: Iterable[EntryLocation]) -> tuple[tuple[str, ...], int, int]:
    """Videos (sorted), entries and rows."""
    lengths = [(place.video, place.end - place.begin) for place in locations]
    return (
        tuple(sorted({video for video, _ in lengths})),
        len(lengths),
        sum(length for _, length in lengths),
    )


def open_sink(path: Path, kind: ShardKind) -> ShardSink:
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSink

        return ZarrSink(path)
    from pipeline.store.hdf5_shard import Hdf5Sink

    return Hdf5Sink(path)


def read_table(path: Path, kind: ShardKind) -> ShardTable:
    if kind == "zarr":
        from pipeline.store.zarr_shard import read_zarr_table

        return read_zarr_table(path)
    from pipeline.store.hdf5_shard import read_hdf5_table

    return read_hdf5_table(path)


def open_source(path: Path, kind: ShardKind, table: ShardTable) -> ShardSource:
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSource

        return ZarrSource(path, table)
    from pipeline.store.hdf5_shard import Hdf5Source

    return Hdf5Source(path, table)


def list_shard_files(path: Path) -> list[Path]:
    """The files of a shard in the order of their names: one for HDF5, a tree for zarr."""
    if not path.is_dir():
        return [path]
    return sorted(
        (file for file in path.rglob("*") if file.is_file()),
        key=lambda file: file.relative_to(path).as_posix(),
    )


def remove_atomically(path: Path) -> None:
    """Remove a shard or a folder of them: it is set aside first, so that a kill leaves it whole or absent, never torn."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        remove_path(aside)


def remove_path(path: Path) -> None:
    """Remove a shard or what is left of one, file or folder."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for attempt in range(1, MAX_REMOVE_ATTEMPTS + 1):
        try:
            return shutil.rmtree(path)
        except (
            OSError
        ) as error:  # zarr's own threads may still be at work when a signal interrupts a write
            if not path.exists():
                return
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == MAX_REMOVE_ATTEMPTS:
                raise
            time.sleep(0.05 * attempt)


def fsync_tree(path: Path) -> None:
    """Fsync every file, then every folder."""
    for file in list_shard_files(path):
        fsync_path(file)
    folders = (
        [path, *(child for child in path.rglob("*") if child.is_dir())] if path.is_dir() else []
    )
    for folder in reversed(folders):
        fsync_path(folder)


def fsync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
