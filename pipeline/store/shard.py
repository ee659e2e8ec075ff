"""Writing one shard: aside, fsynced, then renamed. It is complete or absent, and the same entries give the same bytes.

Rows are streamed to disk entry by entry; only the columns and the table stay in memory until the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pipeline.errors import StoreError
from pipeline.store.layout import (
    ArraySpec,
    DamageError,
    Entry,
    Kind,
    Place,
    ShardSink,
    ShardSource,
    Table,
    array_name,
    shard_path,
)
from pipeline.store.manifest import ShardInfo


def write_shard(folder: Path, product: str, name: str, kind: Kind, entries: Iterable[Entry], videos: Sequence[str]) -> ShardInfo:
    """Write `<folder>/<product>/<name>.zarr` (or `.h5`), `folder` being the store's; every entry's video is one of `videos`.

    Where the shard is there already (another run of the task was first) it is kept, `entries` is not touched. Without
    any entry nothing is written and the info is empty: a later retry of the same videos needs the name.
    """
    target = shard_path(folder, product, name, kind)
    if target.exists():
        return shard_info(target, product, kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        table = _write_entries(aside, kind, entries, set(videos))
        if not table.entries:
            return ShardInfo(videos=(), entries=0, bytes=0, digest=hashlib.sha256().hexdigest())
        _sync_tree(aside)
        try:
            os.rename(aside, target)
        except OSError:
            if not target.exists():
                raise
        _sync(target.parent)
    finally:
        remove(aside)
    return shard_info(target, product, kind)


def shard_info(path: Path, product: str, kind: Kind) -> ShardInfo:
    """What the manifest says about a complete shard: from its table and its bytes."""
    try:
        table = read_table(path, kind)
    except DamageError as error:
        raise StoreError(
            f"{path}: product {product!r}, shard {path.name} is damaged: {error}. Delete it and run stvg-extract again"
        ) from None
    files = shard_files(path)
    videos = tuple(sorted({place.video for place in table.entries}))
    size = sum(file.stat().st_size for file in files)
    return ShardInfo(videos=videos, entries=len(table.entries), bytes=size, digest=files_digest(files))


def read_table(path: Path, kind: Kind) -> Table:
    if kind == "zarr":
        from pipeline.store.zarr_shard import read_zarr_table

        return read_zarr_table(path)
    from pipeline.store.hdf5_shard import read_hdf5_table

    return read_hdf5_table(path)


def open_source(path: Path, kind: Kind, table: Table) -> ShardSource:
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSource

        return ZarrSource(path, table)
    from pipeline.store.hdf5_shard import Hdf5Source

    return Hdf5Source(path, table)


def shard_files(path: Path) -> list[Path]:
    """The files of a shard in the order of their names: one for HDF5, a tree for zarr."""
    if not path.is_dir():
        return [path]
    return sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.relative_to(path).as_posix())


def files_digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    block = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(memoryview(block)[:count])
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a shard or what is left of one, file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_entries(path: Path, kind: Kind, entries: Iterable[Entry], videos: set[str]) -> Table:
    """Stream the entries into a new shard at `path` and close it with its table."""
    sink = _open_sink(path, kind)
    try:
        places: dict[str, Place] = {}
        arrays: dict[str, ArraySpec] = {}
        columns: dict[str, list[np.ndarray]] = {}
        lengths: dict[str, int] = {}
        for entry in entries:
            rows = _check(entry, places, videos)
            array = array_name(rows.dtype, rows.shape[1:])
            begin = arrays[array].shape[0] if array in arrays else 0
            arrays[array] = ArraySpec(dtype=rows.dtype.name, shape=(begin + len(rows), *rows.shape[1:]))
            sink.append(array, rows)
            spans = _append_columns(entry, columns, lengths)
            places[entry.key] = Place(
                key=entry.key, video=entry.video, array=array, begin=begin, end=begin + len(rows), columns=spans, facts=_plain(entry)
            )
        whole = {name: np.concatenate(parts) for name, parts in sorted(columns.items())}
        specs = {name: ArraySpec(dtype=values.dtype.name, shape=values.shape) for name, values in whole.items()}
        table = Table(arrays=dict(sorted(arrays.items())), columns=specs, entries=tuple(places.values()))
        sink.finish(table, whole)
    finally:
        sink.close()
    return table


def _open_sink(path: Path, kind: Kind) -> ShardSink:
    if kind == "zarr":
        from pipeline.store.zarr_shard import ZarrSink

        return ZarrSink(path)
    from pipeline.store.hdf5_shard import Hdf5Sink

    return Hdf5Sink(path)


def _check(entry: Entry, places: dict[str, Place], videos: set[str]) -> np.ndarray:
    """The entry's rows, little-endian; ValueError for an entry that has no place in this shard."""
    rows = entry.rows
    if entry.key in places:
        raise ValueError(f"entry {entry.key!r} comes twice")
    if entry.video not in videos:
        raise ValueError(f"entry {entry.key!r} is of video {entry.video!r}, which this shard was not planned for")
    if rows.ndim < 2 or 0 in rows.shape[1:] or rows.dtype.kind not in "buif":
        raise ValueError(f"entry {entry.key!r}: rows must be numbers [n, *shape], not {rows.dtype}{list(rows.shape)}")
    return rows.astype(rows.dtype.newbyteorder("<"), copy=False)


def _append_columns(entry: Entry, columns: dict[str, list[np.ndarray]], lengths: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Add the entry's columns to those of the shard and say where they lie."""
    spans = {}
    for name, given in sorted(entry.columns.items()):
        values = np.asarray(given)
        if values.ndim != 1 or values.dtype.kind not in "buif":
            raise ValueError(f"entry {entry.key!r}: column {name!r} must be numbers [n], not {values.dtype}{list(values.shape)}")
        parts = columns.setdefault(name, [])
        if parts and parts[0].dtype != values.dtype:
            raise ValueError(f"entry {entry.key!r}: column {name!r} is {values.dtype}, but {parts[0].dtype} in the entries before")
        begin = lengths.get(name, 0)
        lengths[name] = begin + len(values)
        parts.append(values.astype(values.dtype.newbyteorder("<")))
        spans[name] = (begin, lengths[name])
    return spans


def _plain(entry: Entry) -> dict[str, Any]:
    """The facts as JSON gives them back, keys sorted."""
    try:
        facts: dict[str, Any] = json.loads(json.dumps(entry.facts, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"entry {entry.key!r}: its facts are not JSON ({error})") from None
    return facts


def _sync_tree(path: Path) -> None:
    """fsync every file, then every folder."""
    for file in shard_files(path):
        _sync(file)
    folders = [path, *(child for child in path.rglob("*") if child.is_dir())] if path.is_dir() else []
    for folder in reversed(folders):
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
