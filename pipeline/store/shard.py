"""One shard on disk, independent of its format: table, files, digest, removal."""

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
"""Attempts to remove a folder that other threads still write into."""


def read_shard_info(path: Path, product: str, kind: ShardKind) -> ShardInfo:
    """Compute the manifest's record of a complete shard from its table and bytes.

    Args:
        path: The shard.
        product: Name of the product, for error messages.
        kind: File format.

    Returns:
        The record, without dropped entries.

    Raises:
        StoreError: The shard's table is damaged or cannot be read.
    """
    files = list_shard_files(path)
    table = read_valid_table(path, product, kind)

    videos, num_entries, num_rows = count_entries(table.entries)
    size = sum(file.stat().st_size for file in files)
    return ShardInfo(
        videos=videos,
        entries=num_entries,
        rows=num_rows,
        bytes=size,
        digest=compute_files_digest(files),
    )


def has_origin(path: Path, kind: ShardKind, origin_digest: str) -> bool:
    """Check that a shard exists and was made with given settings.

    Args:
        path: The shard.
        kind: File format.
        origin_digest: Digest of the settings.

    Returns:
        False if the shard is absent, damaged, or made with other settings.
    """
    if not path.exists():
        return False
    try:
        return read_table(path, kind).made_from == origin_digest
    except DamageError:
        return False


def read_valid_table(path: Path, product: str, kind: ShardKind) -> ShardTable:
    """Read the table of a shard; every fault is a StoreError.

    Args:
        path: The shard.
        product: Name of the product, for error messages.
        kind: File format.

    Returns:
        The table.

    Raises:
        StoreError: The table is damaged or cannot be read.
    """
    try:
        return read_table(path, kind)
    except DamageError as damage:
        raise StoreError(
            f"{path}: product {product!r}, shard {path.name} is damaged: {damage}. "
            "Delete it and run stvg-extract again"
        ) from None
    except OSError as error:
        raise StoreError(
            f"product {product!r}: {describe_read_error(path, error)}: its content was not checked"
        ) from None


def describe_read_error(path: Path, error: OSError) -> str:
    """Describe a refusal of the system (permissions, too many open files, …).

    Args:
        path: The file, if the error names none.
        error: The error; it says nothing about the file's bytes.

    Returns:
        The description.
    """
    reason = os.strerror(error.errno) if error.errno else error
    return f"{error.filename or path} cannot be read ({reason})"


def select_active_entries(table: ShardTable, dropped: Collection[str]) -> list[EntryLocation]:
    """Return the entries of a shard without dropped ones.

    Args:
        table: Table of the shard.
        dropped: Keys of dropped entries.

    Returns:
        The other entries, in the order of the table.
    """
    dropped_keys = set(dropped)
    return [location for location in table.entries if location.key not in dropped_keys]


def count_entries(locations: Iterable[EntryLocation]) -> tuple[tuple[str, ...], int, int]:
    """Count videos, entries and rows.

    Args:
        locations: The entries.

    Returns:
        The sorted videos, the number of entries and the number of rows.
    """
    videos: set[str] = set()
    num_entries = 0
    num_rows = 0
    for location in locations:
        videos.add(location.video)
        num_entries += 1
        num_rows += location.end - location.begin
    return tuple(sorted(videos)), num_entries, num_rows


def open_sink(path: Path, kind: ShardKind) -> ShardSink:
    """Create a shard for writing.

    Args:
        path: The shard; it must not exist.
        kind: File format.

    Returns:
        The open sink.
    """
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSink

        return ZarrSink(path)

    from pipeline.store.hdf5_shard import Hdf5Sink

    return Hdf5Sink(path)


def read_table(path: Path, kind: ShardKind) -> ShardTable:
    """Read the table of a shard.

    Args:
        path: The shard.
        kind: File format.

    Returns:
        The table.

    Raises:
        DamageError: The table is damaged.
        OSError: The system refuses the read.
    """
    if kind == "zarr":
        from pipeline.store.zarr_shard import read_zarr_table

        return read_zarr_table(path)

    from pipeline.store.hdf5_shard import read_hdf5_table

    return read_hdf5_table(path)


def open_source(path: Path, kind: ShardKind, table: ShardTable) -> ShardSource:
    """Open a shard for reading.

    Args:
        path: The shard.
        kind: File format.
        table: Table of the shard.

    Returns:
        The open source.
    """
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSource

        return ZarrSource(path, table)

    from pipeline.store.hdf5_shard import Hdf5Source

    return Hdf5Source(path, table)


def list_shard_files(path: Path) -> list[Path]:
    """List the files of a shard.

    Args:
        path: The shard.

    Returns:
        The files in the order of their relative names: one for HDF5, a tree for zarr.
    """
    if not path.is_dir():
        return [path]

    files = [file for file in path.rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def remove_atomically(path: Path) -> None:
    """Remove a shard, or a folder of shards.

    The path is renamed first, so that a kill leaves it complete or absent.

    Args:
        path: File or folder; it may be absent.
    """
    temporary_path = path.with_name(f".{path.name}.{uuid4().hex}.part")
    with suppress(FileNotFoundError):
        os.rename(path, temporary_path)
        remove_path(temporary_path)


def remove_path(path: Path) -> None:
    """Remove a shard or its remains.

    Args:
        path: File or folder; it may be absent.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return

    # After a signal zarr's threads may still write: the folder fills while it is removed.
    for attempt in range(1, MAX_REMOVE_ATTEMPTS + 1):
        try:
            return shutil.rmtree(path)
        except OSError as error:
            if not path.exists():
                return
            is_race = error.errno in (errno.ENOTEMPTY, errno.ENOENT)
            if not is_race or attempt == MAX_REMOVE_ATTEMPTS:
                raise
            time.sleep(0.05 * attempt)


def fsync_tree(path: Path) -> None:
    """Fsync every file of a shard, then every folder.

    Args:
        path: The shard.
    """
    for file in list_shard_files(path):
        fsync_path(file)

    if path.is_dir():
        folders = [path, *(child for child in path.rglob("*") if child.is_dir())]
        for folder in reversed(folders):
            fsync_path(folder)


def fsync_path(path: Path) -> None:
    """Fsync one file or folder.

    Args:
        path: The file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
