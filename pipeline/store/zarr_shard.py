"""A shard as a Zarr v3 group.

Each array is one zarr shard (sharding codec) of one-row chunks, bytes + crc32c. zarr-python
writes the metadata. The chunks are streamed into the shard file, because zarr can write a shard
only from memory as a whole.

The file is the one that zarr-python would have written, byte for byte: n × (chunk, crc32c), then
the index, n × (offset, bytes) as uint64, and the index's crc32c. Chunks of zeros are stored, too.
An array without chunks has no file: this is zarr's form of an empty array.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.store.chunks import (
    CHECKSUM_BYTES,
    ChunkReader,
    ChunkWriter,
    compute_crc32c,
    fill_buffers,
)
from pipeline.store.layout import (
    ArraySpec,
    DamageError,
    ShardTable,
    get_column_name,
    reraise_system_errors,
    sign_table,
    verify_table,
)


class ZarrSink:
    """Streams rows into the arrays of a new group. A rollback cuts off the entry's rows.

    Args:
        path: Directory of the group; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chunk_writers: dict[str, ChunkWriter] = {}
        self._current_array = ""
        path.mkdir()

    def append(self, array: str, rows: np.ndarray) -> None:
        """Write rows `[n, *shape]` of the open entry."""
        if array not in self._chunk_writers:
            self._chunk_writers[array] = ChunkWriter(_chunk_file(self.path, array, rows.ndim))
        self._current_array = array
        self._chunk_writers[array].append(rows)

    def commit(self) -> None:
        """Keep the rows of the open entry."""
        self._chunk_writers[self._current_array].commit()

    def rollback(self) -> None:
        """Remove the rows of the open entry, and its array if nothing else is in it."""
        writer = self._chunk_writers.get(self._current_array)
        if writer is not None and not writer.rollback():
            shutil.rmtree(self.path / self._current_array, ignore_errors=True)

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None:
        """Write metadata, columns and indices, and close all files."""
        import zarr

        # zarr-python writes the metadata of the group and of each array.
        group = zarr.create_group(self.path, attributes=sign_table(table))
        for name, spec in table.arrays.items():
            _create_array(group, name, spec, rows_per_chunk=1)

        # A column is one chunk.
        for name, values in columns.items():
            array = get_column_name(name)
            _create_array(group, array, table.columns[name], rows_per_chunk=max(1, len(values)))
            writer = ChunkWriter(_chunk_file(self.path, array, 1))
            self._chunk_writers[array] = writer
            writer.append(values[None] if len(values) else values)

        for writer in self._chunk_writers.values():
            writer.finish()

    def close(self) -> None:
        """Close all files."""
        for writer in self._chunk_writers.values():
            writer.close()


class ZarrSource:
    """Reads the arrays of one group. Files are opened on first use and stay open.

    Args:
        path: Directory of the group.
        table: Its table.
    """

    def __init__(self, path: Path, table: ShardTable) -> None:
        self.path = path
        self._table = table
        self._chunk_readers: dict[str, ChunkReader] = {}

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        """Read rows of an array, as `ShardSource.read`."""
        if not len(rows):
            return
        if array not in self._chunk_readers:
            spec = self._table.arrays[array]
            path = _chunk_file(self.path, array, len(spec.shape))
            self._chunk_readers[array] = _open_chunks(path, spec.shape[0], spec.chunk_bytes)

        out_bytes = out.reshape(len(out), -1).view(np.uint8)  # [m, chunk_bytes]
        self._chunk_readers[array].read(rows, out_indices, out_bytes)

    def read_column(self, name: str) -> np.ndarray:
        """Read a column, as `ShardSource.read_column`."""
        spec = self._table.columns[name]
        values = np.empty(spec.shape, spec.dtype)
        if len(values):
            path = _chunk_file(self.path, get_column_name(name), 1)
            reader = _open_chunks(path, 1, values.nbytes)
            only_index = np.zeros(1, np.int64)
            reader.read(only_index, only_index, values.view(np.uint8)[None])
        return values


def read_zarr_table(path: Path) -> ShardTable:
    """Read the table of a shard from the attributes of its group.

    Args:
        path: Directory of the group.

    Returns:
        The table.

    Raises:
        DamageError: The group's metadata or its table is damaged.
        OSError: The system refuses the read (permissions, too many open files, …).
    """
    try:
        document = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError) as error:
        reraise_system_errors(error)
        raise DamageError(f"its zarr.json cannot be read ({error})") from None
    return verify_table(document.get("attributes") if isinstance(document, dict) else None)


def _open_chunks(path: Path, count: int, chunk_bytes: int) -> ChunkReader:
    """Open a shard file of `count` chunks of `chunk_bytes`, and read its index."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reraise_system_errors(error)
        raise DamageError(f"its rows cannot be read ({error.strerror})") from None

    # The reader owns the descriptor; without a reader it is closed here.
    try:
        return ChunkReader(file, _read_index(path, file, count), chunk_bytes)
    except BaseException:
        os.close(file)
        raise


def _read_index(path: Path, file: int, count: int) -> np.ndarray:
    """Read offset and bytes of each chunk of a shard file, uint64 `[count, 2]`."""
    # The file ends with the index: 16 bytes per chunk, and the checksum of the index.
    data = np.empty(count * 16 + CHECKSUM_BYTES, np.uint8)
    begin = os.fstat(file).st_size - len(data)
    if begin < 0:
        raise DamageError(f"{path.parent.name}/{path.name} is too short for its index")

    try:
        fill_buffers(file, [data], begin)
    except OSError as error:
        reraise_system_errors(error)
        raise DamageError(f"its rows cannot be read ({error.strerror})") from None

    index = data[:-CHECKSUM_BYTES]
    if compute_crc32c(index) != data[-CHECKSUM_BYTES:].tobytes():
        raise DamageError("the index of its rows does not match its checksum (damaged or cut)")
    return index.view("<u8").reshape(count, 2)


def _create_array(group: object, name: str, spec: ArraySpec, rows_per_chunk: int) -> None:
    """Write the metadata of an array: one shard with chunks of `rows_per_chunk`."""
    import zarr
    from zarr.codecs import Crc32cCodec

    assert isinstance(group, zarr.Group)
    group.create_array(
        name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(rows_per_chunk, *spec.shape[1:]),
        shards=(max(1, spec.shape[0]), *spec.shape[1:]),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def _chunk_file(group: Path, array: str, num_dimensions: int) -> Path:
    """Return the file of an array's only shard: `<array>/c/0/0/…`."""
    return group.joinpath(array, "c", *["0"] * num_dimensions)
