"""Writing of one shard.

A shard is written to a temporary path, fsynced, and renamed: it is complete or absent. Equal
entries give equal bytes. Rows go to disk at once; columns and table stay in memory until the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np

from pipeline.store.disk_errors import translate_disk_full
from pipeline.store.layout import (
    ArraySpec,
    Entry,
    EntryLocation,
    ShardKind,
    ShardSink,
    ShardTable,
    get_array_name,
    get_shard_path,
)
from pipeline.store.manifest import ShardInfo
from pipeline.store.shard import (
    fsync_path,
    fsync_tree,
    has_origin,
    open_sink,
    read_shard_info,
    remove_atomically,
    remove_path,
)

NUMERIC_KINDS = "buif"
"""NumPy's kinds of numbers: bool, unsigned, signed, float."""


def write_shard(
    folder: Path,
    product: str,
    name: str,
    kind: ShardKind,
    entries: Iterable[Entry],
    videos: Sequence[str],
    origin_digest: str,
) -> ShardInfo:
    """Write complete entries as one shard, `<folder>/<product>/<name>.zarr` or `.h5`.

    An existing shard with the same settings (another run of the task was first) is kept, and
    `entries` is not consumed. Otherwise the function works as `ShardBuilder`.

    Args:
        folder: Path of the store.
        product: Name of the product.
        name: Name of the shard.
        kind: File format.
        entries: The entries, in the order of writing.
        videos: Videos of the shard's plan; every entry belongs to one of them.
        origin_digest: Digest of the product's settings.

    Returns:
        The shard's record for the manifest.

    Raises:
        StoreError: The disk is full.
        ValueError: An entry is invalid.
    """
    target_path = get_shard_path(folder, product, name, kind)
    if has_origin(target_path, kind, origin_digest):
        return read_shard_info(target_path, product, kind)

    with ShardBuilder(folder, product, name, kind, videos, origin_digest) as shard:
        for entry in entries:
            shard.begin(entry.key, entry.video)
            shard.append(entry.rows)
            shard.end(entry.columns, entry.facts)
        return shard.finish()


@dataclass
class _OpenEntry:
    """The entry being written: `row_count` rows of `array` so far; no array before the first."""

    key: str
    video: str
    array: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    row_count: int = 0


class ShardBuilder:
    """Context manager that streams one shard to disk.

        with ShardBuilder(store, "appearance", "00000-0123abcd", "zarr", videos, digest) as shard:
            shard.begin(video, video)
            shard.append(maps)                        # any number of times
            shard.end({"frame": indices}, facts)      # or shard.abandon()
            info = shard.finish()

    Leaving the context without `finish` discards everything.

    Args:
        folder: Path of the store.
        product: Name of the product.
        name: Name of the shard.
        kind: File format.
        videos: Videos of the shard's plan; every entry belongs to one of them.
        origin_digest: Digest of the product's settings.

    Raises:
        StoreError: By all methods, if the disk is full.
        ValueError: By all methods, for a wrong order of calls or an invalid entry.
    """

    def __init__(
        self,
        folder: Path,
        product: str,
        name: str,
        kind: ShardKind,
        videos: Sequence[str],
        origin_digest: str,
    ) -> None:
        self._product = product
        self._kind = kind
        self._origin_digest = origin_digest
        self._target_path = get_shard_path(folder, product, name, kind)
        temporary_name = f".{self._target_path.name}.{uuid4().hex}.part"
        self._temporary_path = self._target_path.with_name(temporary_name)
        self._videos = frozenset(videos)
        self._sink: ShardSink | None = None
        self._open_entry: _OpenEntry | None = None

        # The table and the columns of all finished entries.
        self._locations: dict[str, EntryLocation] = {}
        self._arrays: dict[str, ArraySpec] = {}
        self._columns: dict[str, list[np.ndarray]] = {}
        self._column_lengths: dict[str, int] = {}

    def __enter__(self) -> ShardBuilder:
        with self._discard_on_error():
            self._target_path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = open_sink(self._temporary_path, self._kind)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

    def begin(self, key: str, video: str) -> None:
        """Open an entry.

        Args:
            key: Key of the entry, unique in the shard.
            video: Video that the entry belongs to.

        Raises:
            ValueError: Another entry is open, the key is taken, or the video is not planned.
        """
        if self._sink is None:
            raise ValueError(f"entry {key!r} is begun in a shard that is not open for writing")
        if self._open_entry is not None:
            raise ValueError(
                f"entry {key!r} is begun while {self._open_entry.key!r} is open: "
                "end or abandon the open entry first"
            )
        if key in self._locations:
            raise ValueError(f"entry {key!r} is begun twice")
        if video not in self._videos:
            raise ValueError(
                f"entry {key!r} is of video {video!r}, which this shard was not planned for"
            )
        self._open_entry = _OpenEntry(key, video)

    def append(self, rows: np.ndarray) -> None:
        """Write rows of the open entry.

        Args:
            rows: `[n, *shape]`, numbers. All rows of an entry have one shape and dtype.

        Raises:
            StoreError: The disk is full.
            ValueError: No entry is open, or the rows are invalid.
        """
        entry, sink = self._require_open_entry("append")
        row_shape = rows.shape[1:]
        if rows.ndim < 2 or 0 in row_shape or rows.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(
                f"entry {entry.key!r}: rows must be numbers [n, *shape], "
                f"not {rows.dtype}{list(rows.shape)}"
            )
        if entry.array and (rows.dtype.name, row_shape) != (entry.dtype, entry.shape):
            raise ValueError(
                f"entry {entry.key!r}: rows of {rows.dtype}{list(row_shape)} "
                f"after {entry.dtype}{list(entry.shape)}"
            )

        entry.array = get_array_name(rows.dtype, row_shape)
        entry.dtype = rows.dtype.name
        entry.shape = row_shape

        # Shards are little-endian on every machine.
        little_endian = rows.dtype.newbyteorder("<")
        with self._discard_on_error():
            sink.append(entry.array, rows.astype(little_endian, copy=False))
        entry.row_count += len(rows)

    def end(self, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """End the open entry.

        Args:
            columns: 1-D numbers of any length, by name.
            facts: Small JSON values, by name.

        Raises:
            StoreError: The disk is full.
            ValueError: No entry is open, it has no rows, or columns or facts are invalid.
        """
        entry, sink = self._require_open_entry("end")
        if not entry.array:
            raise ValueError(
                f"entry {entry.key!r} ends without rows: "
                "append an array without rows to state their shape"
            )

        # Validate everything before anything is kept.
        normalized_facts = _normalize_facts(entry.key, facts)
        checked_columns = {}
        for name, values in sorted(columns.items()):
            checked_columns[name] = self._check_column(entry.key, name, values)

        with self._discard_on_error():
            sink.commit()

        # Columns are kept in memory until `finish`.
        column_spans = {}
        for name, values in checked_columns.items():
            column_spans[name] = self._add_column_values(name, values)

        # The entry's rows follow those of earlier entries in the same array.
        begin = self._arrays[entry.array].shape[0] if entry.array in self._arrays else 0
        end = begin + entry.row_count
        self._arrays[entry.array] = ArraySpec(dtype=entry.dtype, shape=(end, *entry.shape))
        self._locations[entry.key] = EntryLocation(
            key=entry.key,
            video=entry.video,
            array=entry.array,
            begin=begin,
            end=end,
            columns=column_spans,
            facts=normalized_facts,
        )
        self._open_entry = None

    def abandon(self) -> None:
        """Discard the open entry: the shard's bytes are those of a shard without the entry.

        Raises:
            ValueError: No entry is open.
        """
        entry, sink = self._require_open_entry("abandon")
        if entry.array:
            with self._discard_on_error():
                sink.rollback()
        self._open_entry = None

    def finish(self) -> ShardInfo:
        """Write the table and move the shard to its place.

        An existing shard with the same settings is kept. Without any entry nothing is written,
        because a later retry of the same videos needs the name.

        Returns:
            The shard's record for the manifest; empty without entries.

        Raises:
            StoreError: The disk is full.
            ValueError: The shard is not open, or an entry is open.
        """
        if self._sink is None:
            raise ValueError(f"shard {self._target_path.name} is not open for writing")
        if self._open_entry is not None:
            raise ValueError(
                f"shard {self._target_path.name} is finished while entry "
                f"{self._open_entry.key!r} is open: end or abandon it first"
            )

        # Nothing to write: an empty record, and no file.
        if not self._locations:
            self._discard()
            empty_digest = hashlib.sha256().hexdigest()
            return ShardInfo(videos=(), entries=0, rows=0, bytes=0, digest=empty_digest)

        with self._discard_on_error():
            # Names are sorted, so that equal entries give equal bytes.
            columns = {}
            specs = {}
            for name, parts in sorted(self._columns.items()):
                values = np.concatenate(parts)
                columns[name] = values
                specs[name] = ArraySpec(dtype=values.dtype.name, shape=values.shape)

            table = ShardTable(
                made_from=self._origin_digest,
                arrays=dict(sorted(self._arrays.items())),
                columns=specs,
                entries=tuple(self._locations.values()),
            )
            self._sink.finish(table, columns)

            # Bytes must be on disk before the name points to them.
            fsync_tree(self._temporary_path)
            self._move_to_target()
        self._discard()
        return read_shard_info(self._target_path, self._product, self._kind)

    def _move_to_target(self) -> None:
        """Rename the temporary path to the target.

        A target that is damaged, or made with other settings, is removed atomically first.
        """
        while not has_origin(self._target_path, self._kind, self._origin_digest):
            remove_atomically(self._target_path)
            try:
                os.rename(self._temporary_path, self._target_path)
                break
            except OSError:
                # Another process was faster: check its shard in the next turn.
                if not self._target_path.exists():
                    raise
        fsync_path(self._target_path.parent)

    @contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        """Discard everything on an error.

        The state of the file is unknown then, and its space on the disk may be needed.
        """
        try:
            with translate_disk_full(self._target_path.parent):
                yield
        except BaseException:
            self._open_entry = None
            self._discard()
            raise

    def _require_open_entry(self, method: str) -> tuple[_OpenEntry, ShardSink]:
        """Return the open entry and the sink; `method` is the caller in the error message."""
        if self._open_entry is None or self._sink is None:
            raise ValueError(f"{method}: no entry is open; begin one first")
        return self._open_entry, self._sink

    def _check_column(self, key: str, name: str, column: np.ndarray) -> np.ndarray:
        """Return a column's values, little-endian, if they fit those of earlier entries."""
        values = np.asarray(column)

        # 1-D numbers, of the same dtype in all entries.
        if values.ndim != 1 or values.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(
                f"entry {key!r}: column {name!r} must be numbers [n], "
                f"not {values.dtype}{list(values.shape)}"
            )

        parts = self._columns.get(name)
        if parts and parts[0].dtype != values.dtype:
            raise ValueError(
                f"entry {key!r}: column {name!r} is {values.dtype}, "
                f"but {parts[0].dtype} in the entries before"
            )
        return values.astype(values.dtype.newbyteorder("<"))

    def _add_column_values(self, name: str, values: np.ndarray) -> tuple[int, int]:
        """Add an entry's values to a column, and return their position `[begin, end)`."""
        begin = self._column_lengths.get(name, 0)
        end = begin + len(values)
        self._column_lengths[name] = end
        self._columns.setdefault(name, []).append(values)
        return begin, end

    def _discard(self) -> None:
        """Close the sink and remove the temporary path."""
        sink = self._sink
        self._sink = None
        if sink is not None:
            # On a full disk a file cannot even be closed; it is removed all the same.
            with suppress(OSError, RuntimeError):
                sink.close()
        remove_path(self._temporary_path)


def _normalize_facts(key: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts as JSON restores them, with sorted keys."""
    try:
        text = json.dumps(dict(facts), sort_keys=True, allow_nan=False)
        normalized: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"entry {key!r}: its facts are not JSON ({error})") from None
    return normalized
