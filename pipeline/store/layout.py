"""What a shard looks like, whatever its file format.

Rows of all entries with one dtype and one trailing shape lie end to end in one array, `rows_<dtype>_<shape>`; so a
shard holds one array per map size. A column lies end to end over all entries in `column_<name>`. The table says
where each entry's rows and column values are, and carries its own checksum.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import google_crc32c
import numpy as np
from pydantic import ValidationError

from pipeline.records import FORMAT
from pipeline.validation import StrictModel, format_first_error

ShardKind = Literal["zarr", "hdf5"]
SYSTEM_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOLCK,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
PROJECTION_FILE = "basis.safetensors"
"""Beside a product's shards, where its rows were projected: the projection, which new videos need too."""
SHARD_SUFFIXES: dict[ShardKind, str] = {"zarr": ".zarr", "hdf5": ".h5"}


class DamageError(Exception):
    """Bytes of a shard are not what was written; the reader adds product, shard and key, and raises a StoreError."""


def reraise_system_errors(error: BaseException) -> None:
    """Let through what is the machine's doing (permissions, too many open files, memory), not the bytes'."""
    if getattr(error, "errno", None) in SYSTEM_ERRNOS:
        raise error


@dataclass(frozen=True)
class Entry:
    """All that is written under one key.

    `key` is the video's id (visual products) or the query's id (text); `video` the video it belongs to. `rows` is
    `[n, *shape]`: appearance `[n, H, W, C]` and motion `[n, h, w, C]` float16, text `[L, C]` float16, frames
    `[pages, 4096]` uint8; a memory map will do, rows are written one by one. `columns` are 1-D numbers, usually one
    per row (`frame`, `second`, `token`), but any length is kept. `facts` are small and JSON.
    """

    key: str
    video: str
    rows: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class EntryLocation(StrictModel):
    """Where an entry lies: rows `[begin, end)` of `array`, values `[begin, end)` of each column."""

    key: str
    video: str
    array: str
    begin: int
    end: int
    columns: dict[str, tuple[int, int]]
    facts: dict[str, Any]


class ArraySpec(StrictModel):
    """dtype (NumPy's name, little-endian on disk) and shape of one array of a shard."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize


class ShardTable(StrictModel):
    """The contents of one shard: its row arrays, its columns (1-D) and its entries in the order they were written.

    `made_from` is the digest of the settings it was made with: its name tells of the videos alone.
    """

    format: Literal[1] = 1
    made_from: str
    arrays: dict[str, ArraySpec]
    columns: dict[str, ArraySpec]
    entries: tuple[EntryLocation, ...]


class ShardSink(Protocol):
    """Writes the arrays of one new shard, front to back. An entry's rows all go into one array."""

    def append(self, array: str, rows: np.ndarray) -> None:
        """More rows `[n, *shape]` of the open entry."""

    def commit(self) -> None:
        """The open entry is whole; called after `append`, if only of no rows."""

    def rollback(self) -> None:
        """Take back what was appended since `keep`, so that no byte tells of it."""

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None: ...

    def close(self) -> None: ...


class ShardSource(Protocol):
    """Reads the arrays of one shard; damage is raised, never returned."""

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        """Put row `rows[i]` (ascending, each once) into `out[places[i]]`."""

    def read_column(self, name: str) -> np.ndarray: ...


def shard_path(store: Path, product: str, name: str, kind: ShardKind) -> Path:
    """`<store>/<product>/<name>.zarr` or `.h5`."""
    return Path(store) / product / f"{name}{SHARD_SUFFIXES[kind]}"


def array_name(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """`rows_float16_10x18x2048`: one name per dtype and trailing shape."""
    return f"rows_{dtype.name}_{'x'.join(str(side) for side in shape)}"


def column_name(name: str) -> str:
    return f"column_{name}"


def sign_table(table: ShardTable) -> dict[str, Any]:
    """The table as JSON with the crc32c of its canonical text."""
    document = table.model_dump(mode="json")
    return {**document, "crc32c": _compute_checksum(document)}


def verify_table(document: Any) -> ShardTable:
    """The table out of its JSON; DamageError where the checksum or the form is wrong, or the format unknown."""
    if not isinstance(document, dict) or "format" not in document:
        raise DamageError("its table is not there")
    if document["format"] != FORMAT:
        raise DamageError(
            f"its table has format {document['format']!r}, which is unknown; this version reads {FORMAT}"
        )
    document = dict(document)
    if document.pop("crc32c", None) != _compute_checksum(document):
        raise DamageError("its table does not match its checksum")
    try:
        return ShardTable.model_validate(document)
    except ValidationError as error:
        raise DamageError(f"its table is malformed: {format_first_error(error)}") from None


def _compute_checksum(document: dict[str, Any]) -> int:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return int(google_crc32c.value(canonical.encode()))
