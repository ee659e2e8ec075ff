"""Writing one shard: aside, fsynced, then renamed. It is complete or absent, and the same entries give the same bytes.

Rows go to disk as they come; only the columns and the table stay in memory until the end.
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
    array_name,
    shard_path,
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

NUMERIC_KINDS = "buif"  # NumPy's kinds: bool, unsigned, int, float


def write_shard(
    folder: Path,
    product: str,
    name: str,
    kind: ShardKind,
    entries: Iterable[Entry],
    videos: Sequence[str],
    origin_digest: str,
) -> ShardInfo:
    """Write whole entries as `<folder>/<product>/<name>.zarr` (or `.h5`), `folder` being the store's.

    Where the shard, made from the same, is there already (another run of the task was first) it is kept, `entries` is
    not touched. Otherwise as `ShardBuilder`.
    """
    target = shard_path(folder, product, name, kind)
    if has_origin(target, kind, origin_digest):
        return read_shard_info(target, product, kind)
    with ShardBuilder(folder, product, name, kind, videos, origin_digest) as shard:
        for entry in entries:
            shard.begin(entry.key, entry.video)
            shard.append(entry.rows)
            shard.end(entry.columns, entry.facts)
        return shard.finish()


@dataclass
class _OpenEntry:
    """The entry that is being written: its rows go to `array`, `count` of them until now."""

    key: str
    video: str
    array: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    row_count: int = 0


class ShardBuilder:
    """Context that streams one shard to disk; every entry's video is one of `videos`, `made_from` the product's digest.

        with ShardBuilder(store, "appearance", "00000-0123abcd", "zarr", videos, made_from) as shard:
            shard.begin(video, video)
            shard.append(maps)                        # any number of times
            shard.end({"frame": numbers}, facts)      # or shard.abandon()
            info = shard.finish()

    Leaving without `finish` discards everything. A full disk is a StoreError, an entry out of place a ValueError.
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
        self._product, self._kind, self._origin_digest = product, kind, origin_digest
        self._target_path = shard_path(folder, product, name, kind)
        self._temporary_path = self._target_path.with_name(
            f".{self._target_path.name}.{uuid4().hex}.part"
        )
        self._videos = frozenset(videos)
        self._sink: ShardSink | None = None
        self._open_entry: _OpenEntry | None = None
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
        """Open the entry `key` of `video`."""
        if self._sink is None:
            raise ValueError(f"entry {key!r} comes to a shard that is not open for writing")
        if self._open_entry is not None:
            raise ValueError(
                f"entry {key!r} comes while {self._open_entry.key!r} is open: end or abandon that first"
            )
        if key in self._locations:
            raise ValueError(f"entry {key!r} comes twice")
        if video not in self._videos:
            raise ValueError(
                f"entry {key!r} is of video {video!r}, which this shard was not planned for"
            )
        self._open_entry = _OpenEntry(key, video)

    def append(self, rows: np.ndarray) -> None:
        """Write rows `[k, *shape]` of the open entry; all its rows have one shape and one dtype."""
        entry, sink = self._require_open_entry("append")
        if rows.ndim < 2 or 0 in rows.shape[1:] or rows.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(
                f"entry {entry.key!r}: rows must be numbers [n, *shape], not {rows.dtype}{list(rows.shape)}"
            )
        if entry.array and (rows.dtype.name, rows.shape[1:]) != (entry.dtype, entry.shape):
            raise ValueError(
                f"entry {entry.key!r}: rows of {rows.dtype}{list(rows.shape[1:])} after {entry.dtype}{list(entry.shape)}"
            )
        entry.array, entry.dtype, entry.shape = (
            array_name(rows.dtype, rows.shape[1:]),
            rows.dtype.name,
            rows.shape[1:],
        )
        with self._discard_on_error():
            sink.append(entry.array, rows.astype(rows.dtype.newbyteorder("<"), copy=False))
        entry.row_count += len(rows)

    def end(self, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """The open entry is whole. `columns` are 1-D numbers of any length, `facts` small and JSON."""
        entry, sink = self._require_open_entry("end")
        if not entry.array:
            raise ValueError(
                f"entry {entry.key!r} ends without rows: append an array of none to say their shape"
            )
        plain = _normalize_facts(entry.key, facts)
        checked = {
            name: self._check_column(entry.key, name, values)
            for name, values in sorted(columns.items())
        }
        with self._discard_on_error():
            sink.commit()
        spans = {}
        for name, values in checked.items():
            begin = self._column_lengths.get(name, 0)
            spans[name] = (begin, begin + len(values))
            self._column_lengths[name] = begin + len(values)
            self._columns.setdefault(name, []).append(values)
        begin = self._arrays[entry.array].shape[0] if entry.array in self._arrays else 0
        end = begin + entry.row_count
        self._arrays[entry.array] = ArraySpec(dtype=entry.dtype, shape=(end, *entry.shape))
        self._locations[entry.key] = EntryLocation(
            key=entry.key,
            video=entry.video,
            array=entry.array,
            begin=begin,
            end=end,
            columns=spans,
            facts=plain,
        )
        self._open_entry = None

    def abandon(self) -> None:
        """The open entry never was: the shard will be, byte for byte, one without it."""
        entry, sink = self._require_open_entry("abandon")
        if entry.array:
            with self._discard_on_error():
                sink.rollback()
        self._open_entry = None

    def finish(self) -> ShardInfo:
        """Write the table and put the shard in its place; one that is there already is kept if it was made from the same.

        Without any entry nothing is written and the info is empty: a later retry of the same videos needs the name.
        """
        if self._sink is None:
            raise ValueError(f"shard {self._target_path.name} is not open for writing")
        if self._open_entry is not None:
            raise ValueError(
                f"shard {self._target_path.name} is finished while entry {self._open_entry.key!r} is open: end or abandon it first"
            )
        if not self._locations:
            self._discard()
            return ShardInfo(
                videos=(), entries=0, rows=0, bytes=0, digest=hashlib.sha256().hexdigest()
            )
        with self._discard_on_error():
            columns = {name: np.concatenate(parts) for name, parts in sorted(self._columns.items())}
            specs = {
                name: ArraySpec(dtype=values.dtype.name, shape=values.shape)
                for name, values in columns.items()
            }
            arrays, entries = dict(sorted(self._arrays.items())), tuple(self._locations.values())
            self._sink.finish(
                ShardTable(
                    made_from=self._origin_digest, arrays=arrays, columns=specs, entries=entries
                ),
                columns,
            )
            fsync_tree(self._temporary_path)
            self._move_to_target()
        self._discard()
        return read_shard_info(self._target_path, self._product, self._kind)

    def _move_to_target(self) -> None:
        """Rename what lies aside to the target; one of other settings, or damaged, makes way and leaves nothing torn."""
        while not has_origin(self._target_path, self._kind, self._origin_digest):
            remove_atomically(self._target_path)
            try:
                os.rename(self._temporary_path, self._target_path)
                break
            except OSError:  # another was quicker: look at that one
                if not self._target_path.exists():
                    raise
        fsync_path(self._target_path.parent)

    @contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        """What goes wrong in here leaves the file in no known state: all is discarded at once, which frees the disk."""
        try:
            with translate_disk_full(self._target_path.parent):
                yield
        except BaseException:
            self._open_entry = None
            self._discard()
            raise

    def _require_open_entry(self, what: str) -> tuple[_OpenEntry, ShardSink]:
        if self._open_entry is None or self._sink is None:
            raise ValueError(f"{what}: no entry is open; begin one first")
        return self._open_entry, self._sink

    def _check_column(self, key: str, name: str, given: np.ndarray) -> np.ndarray:
        """A column's values, little-endian, once they go with those of the entries before."""
        values = np.asarray(given)
        if values.ndim != 1 or values.dtype.kind not in NUMERIC_KINDS:
            raise ValueError(
                f"entry {key!r}: column {name!r} must be numbers [n], not {values.dtype}{list(values.shape)}"
            )
        parts = self._columns.get(name)
        if parts and parts[0].dtype != values.dtype:
            raise ValueError(
                f"entry {key!r}: column {name!r} is {values.dtype}, but {parts[0].dtype} in the entries before"
            )
        return values.astype(values.dtype.newbyteorder("<"))

    def _discard(self) -> None:
        """Close and remove what lies aside; a file that cannot even be closed (the disk is full) is removed all the same."""
        sink, self._sink = self._sink, None
        if sink is not None:
            with suppress(OSError, RuntimeError):
                sink.close()
        remove_path(self._temporary_path)


def _normalize_facts(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back, keys sorted."""
    try:
        facts: dict[str, Any] = json.loads(json.dumps(dict(given), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"entry {key!r}: its facts are not JSON ({error})") from None
    return facts
