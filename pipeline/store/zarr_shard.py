"""A shard as a Zarr v3 group: each array is one zarr shard (sharding codec) of one-row chunks, bytes + crc32c.

zarr-python writes the metadata; the chunks are streamed into the shard file, because zarr can fill a shard only from
memory as a whole. The file is what zarr-python would have written, byte for byte: n × (chunk, crc32c), then the
index, n × (offset, bytes) as uint64, and its crc32c. Every chunk is stored, also one of zeros. No chunk, no file:
that is how zarr stores an empty array.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.store.chunks import ChunkReader, ChunkWriter, compute_crc32c, fill_buffers
from pipeline.store.layout import (
    ArraySpec,
    DamageError,
    ShardTable,
    column_name,
    reraise_system_errors,
    sign_table,
    verify_table,
)


class ZarrSink:
    """Streams rows into the arrays of a new group; an entry's rows that are taken back are cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chunk_writers: dict[str, ChunkWriter] = {}
        self._current_array = ""
        path.mkdir()

    def append(self, array: str, rows: np.ndarray) -> None:
        if array not in self._chunk_writers:
            self._chunk_writers[array] = ChunkWriter(_chunk_file(self.path, array, rows.ndim))
        self._current_array = array
        self._chunk_writers[array].append(rows)

    def commit(self) -> None:
        self._chunk_writers[self._current_array].commit()

    def rollback(self) -> None:
        if (
            self._current_array in self._chunk_writers
            and not self._chunk_writers[self._current_array].rollback()
        ):
            shutil.rmtree(self.path / self._current_array, ignore_errors=True)

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None:
        import zarr

        group = zarr.create_group(self.path, attributes=sign_table(table))
        for name, spec in table.arrays.items():
            _create_array(group, name, spec, rows_per_chunk=1)
        for name, values in columns.items():
            _create_array(
                group, column_name(name), table.columns[name], rows_per_chunk=max(1, len(values))
            )
            self._chunk_writers[column_name(name)] = ChunkWriter(
                _chunk_file(self.path, column_name(name), 1)
            )
            self._chunk_writers[column_name(name)].append(values[None] if len(values) else values)
        for stream in self._chunk_writers.values():
            stream.finish()

    def close(self) -> None:
        for stream in self._chunk_writers.values():
            stream.close()


class ZarrSource:
    """Reads the arrays of one group. Files are opened when first asked for and kept open."""

    def __init__(self, path: Path, table: ShardTable) -> None:
        self.path = path
        self._table = table
        self._chunk_readers: dict[str, ChunkReader] = {}

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        if not len(rows):
            return
        if array not in self._chunk_readers:
            spec = self._table.arrays[array]
            self._chunk_readers[array] = _open_chunks(
                _chunk_file(self.path, array, len(spec.shape)), spec.shape[0], spec.chunk_bytes
            )
        self._chunk_readers[array].read(rows, out_indices, out.reshape(len(out), -1).view(np.uint8))

    def read_column(self, name: str) -> np.ndarray:
        spec = self._table.columns[name]
        values = np.empty(spec.shape, spec.dtype)
        if len(values):
            file = _open_chunks(_chunk_file(self.path, column_name(name), 1), 1, values.nbytes)
            file.read(np.zeros(1, np.int64), np.zeros(1, np.int64), values.view(np.uint8)[None])
        return values


def read_zarr_table(path: Path) -> ShardTable:
    """The table of a group, from its attributes."""
    try:
        document = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError) as error:
        reraise_system_errors(error)
        raise DamageError(f"its zarr.json cannot be read ({error})") from None
    return verify_table(document.get("attributes") if isinstance(document, dict) else None)


def _open_chunks(path: Path, count: int, chunk_bytes: int) -> ChunkReader:
    """Open a shard file of `count` chunks of `chunk_bytes` and read its index."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reraise_system_errors(error)
        raise DamageError(f"its rows cannot be read ({error.strerror})") from None
    try:
        return ChunkReader(file, _read_index(path, file, count), chunk_bytes)
    except BaseException:
        os.close(file)
        raise


def _read_index(path: Path, file: int, count: int) -> np.ndarray:
    """Offset and bytes of each of a shard file's chunks, `[count, 2]`."""
    index = np.empty(count * 16 + 4, np.uint8)
    begin = os.fstat(file).st_size - len(index)
    if begin < 0:
        raise DamageError(f"{path.parent.name}/{path.name} is too short for its index")
    try:
        fill_buffers(file, [index], begin)
    except OSError as error:
        reraise_system_errors(error)
        raise DamageError(f"its rows cannot be read ({error.strerror})") from None
    if compute_crc32c(index[:-4]) != index[-4:].tobytes():
        raise DamageError("the index of its rows does not match its checksum (damaged or cut)")
    return index[:-4].view("<u8").reshape(count, 2)


def _create_array(group: object, name: str, spec: ArraySpec, rows_per_chunk: int) -> None:
    """Write the metadata of one array: all of it is one shard, chunks of `rows_per_chunk`."""
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


def _chunk_file(group: Path, array: str, dimensions: int) -> Path:
    """The file of an array's only shard: `<array>/c/0/0/…`."""
    return group.joinpath(array, "c", *["0"] * dimensions)
