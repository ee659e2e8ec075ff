"""The layout of a shard, independent of its file format.

Rows of all entries with the same dtype and trailing shape lie end to end in one array,
`rows_<dtype>_<shape>`; a shard has one array per map size. Each column lies end to end over all
entries in `column_<name>`. The table holds the positions of each entry's rows and column values,
and its own checksum.
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
"""Errors of the system (permissions, limits, network), which say nothing about a file's bytes."""
PROJECTION_FILE = "basis.safetensors"
"""The projection of a reduced product, in the product's folder; new videos need it, too."""
SHARD_SUFFIXES: dict[ShardKind, str] = {"zarr": ".zarr", "hdf5": ".h5"}


class DamageError(Exception):
    """Bytes of a shard differ from the written ones.

    The reader adds product, shard and key, and raises a StoreError.
    """


def reraise_system_errors(error: BaseException) -> None:
    """Raise an error again if the system caused it; return if damaged bytes may be the cause.

    Args:
        error: The error of a read.
    """
    if getattr(error, "errno", None) in SYSTEM_ERRNOS:
        raise error


@dataclass(frozen=True)
class Entry:
    """Everything that is written under one key.

    Attributes:
        key: Identifier of the video (visual products) or of the query (text).
        video: Identifier of the video that the entry belongs to.
        rows: `[n, *shape]`: appearance `[n, H, W, C]`, motion `[n, h, w, C]` and text `[L, C]` in
            float16, frames `[pages, 4096]` in uint8. A memory map is possible: rows are written
            one by one.
        columns: 1-D numbers of any length by name, usually one per row (`frame`, `second`,
            `token`).
        facts: Small JSON values by name.
    """

    key: str
    video: str
    rows: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class EntryLocation(StrictModel):
    """The position of an entry in a shard.

    Attributes:
        key: Key of the entry.
        video: Identifier of the entry's video.
        array: Name of the array with the entry's rows.
        begin: First row in the array.
        end: End (exclusive) of the rows in the array.
        columns: `[begin, end)` of the entry's values in each column.
        facts: Facts of the entry.
    """

    key: str
    video: str
    array: str
    begin: int
    end: int
    columns: dict[str, tuple[int, int]]
    facts: dict[str, Any]


class ArraySpec(StrictModel):
    """The form of one array of a shard.

    Attributes:
        dtype: NumPy's name of the element type; little-endian on disk.
        shape: Shape of the array.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one row."""
        row_size = int(np.prod(self.shape[1:], dtype=np.int64))
        return row_size * np.dtype(self.dtype).itemsize


class ShardTable(StrictModel):
    """The table of contents of one shard.

    Attributes:
        format: Version of the table.
        made_from: Digest of the product's settings. The shard's name depends on its videos
            alone.
        arrays: Row arrays by name.
        columns: Columns (1-D) by name.
        entries: Positions of all entries, in the order of writing.
    """

    format: Literal[1] = 1
    made_from: str
    arrays: dict[str, ArraySpec]
    columns: dict[str, ArraySpec]
    entries: tuple[EntryLocation, ...]


class ShardSink(Protocol):
    """Writes the arrays of one new shard, front to back; all rows of an entry go to one array."""

    def append(self, array: str, rows: np.ndarray) -> None:
        """Add rows to the open entry.

        Args:
            array: Name of the array.
            rows: `[n, *shape]`, little-endian.
        """

    def commit(self) -> None:
        """End the open entry. At least one `append` came before, possibly without rows."""

    def rollback(self) -> None:
        """Remove all rows since the last `commit`, without a trace in the shard's bytes."""

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None:
        """Write everything but the rows.

        Args:
            table: Table of the shard.
            columns: Values of each column of the table.
        """

    def close(self) -> None:
        """Close all files."""


class ShardSource(Protocol):
    """Reads the arrays of one shard. Damage is always an error, never a value."""

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        """Read rows of an array.

        Args:
            array: Name of the array.
            rows: `[k]`, ascending row indices without repeats.
            out_indices: `[k]`: row `rows[i]` is written to `out[out_indices[i]]`.
            out: `[m, *shape]`, contiguous.

        Raises:
            DamageError: A row is damaged.
            OSError: The system refuses the read.
        """

    def read_column(self, name: str) -> np.ndarray:
        """Read a column over all entries.

        Args:
            name: Name of the column.

        Returns:
            The column's values, 1-D.

        Raises:
            DamageError: The column is damaged.
            OSError: The system refuses the read.
        """


def get_shard_path(store: Path, product: str, name: str, kind: ShardKind) -> Path:
    """Return the path of a shard: `<store>/<product>/<name>.zarr` or `.h5`.

    Args:
        store: Path of the store.
        product: Name of the product.
        name: Name of the shard.
        kind: File format.

    Returns:
        The path.
    """
    return Path(store) / product / f"{name}{SHARD_SUFFIXES[kind]}"


def get_array_name(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Return the name of the array for rows of a dtype and shape.

    Args:
        dtype: Element type.
        shape: Shape of one row.

    Returns:
        A name such as `rows_float16_10x18x2048`.
    """
    sides = "x".join(str(side) for side in shape)
    return f"rows_{dtype.name}_{sides}"


def get_column_name(name: str) -> str:
    """Return the name of a column's array.

    Args:
        name: Name of the column.

    Returns:
        `column_<name>`.
    """
    return f"column_{name}"


def sign_table(table: ShardTable) -> dict[str, Any]:
    """Convert a table to JSON with a checksum.

    Args:
        table: The table.

    Returns:
        The table as JSON values, and `crc32c` of its canonical text.
    """
    document = table.model_dump(mode="json")
    return {**document, "crc32c": _compute_checksum(document)}


def verify_table(document: Any) -> ShardTable:
    """Convert JSON back to a table, and verify its checksum.

    Args:
        document: Result of `sign_table`, or any JSON value of a damaged file.

    Returns:
        The table.

    Raises:
        DamageError: The checksum or the form is wrong, or the format is unknown.
    """
    if not isinstance(document, dict) or "format" not in document:
        raise DamageError("its table is missing")
    if document["format"] != FORMAT:
        raise DamageError(
            f"its table has format {document['format']!r}, which is unknown; "
            f"this version reads {FORMAT}"
        )

    document = dict(document)
    checksum = document.pop("crc32c", None)
    if checksum != _compute_checksum(document):
        raise DamageError("its table does not match its checksum")

    try:
        return ShardTable.model_validate(document)
    except ValidationError as error:
        raise DamageError(f"its table is malformed: {format_first_error(error)}") from None


def _compute_checksum(document: dict[str, Any]) -> int:
    """Compute the crc32c of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return int(google_crc32c.value(canonical.encode()))
