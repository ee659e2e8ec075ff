"""A shard as one HDF5 file.

Each array is a dataset of one-row chunks with fletcher32; the table is a dataset of JSON bytes.
The file has HDF5 1.10's format, whose metadata has checksums, and no timestamps, so that equal
rows give equal bytes.

The dataset `crc32c_<array>` beside each array holds a second checksum of every row. Other
readers use fletcher32. This reader asks HDF5 once for the positions of the chunks and reads them
itself: several times as fast as the library, and without its global lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import google_crc32c
import numpy as np

from pipeline.store.chunks import MAX_RUN_BYTES, MISSING_CHUNK, ChunkReader, split_into_blocks
from pipeline.store.layout import (
    DamageError,
    ShardTable,
    get_column_name,
    reraise_system_errors,
    sign_table,
    verify_table,
)

MAX_BUFFERED_BYTES = 8 << 20
"""Bytes of an entry's rows that are held in memory; more rows are held on disk."""
CHUNK_OVERHEAD_BYTES = 64
"""Bytes per chunk, more than HDF5 needs for its index."""
ARRAY_OVERHEAD_BYTES = 256 << 10
"""Bytes per array, more than HDF5 needs for its headers."""
H5PY_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)
"""Errors that h5py raises on damaged files."""


class Hdf5Sink:
    """Streams rows into the datasets of a new file.

    HDF5 cannot remove rows without a trace. The rows of the open entry are therefore buffered
    outside the file, on disk beyond a few MiB. HDF5 does not survive a full disk either: it loses
    rows without an error, or crashes the process. Space is therefore reserved before each write.

    Args:
        path: The file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self._file = h5py.File(path, "w-", libver=("v110", "v110"), locking=False)
        self._reserved_bytes = 0
        self._checksums: dict[str, list[int]] = {}
        self._entry_buffer: _EntryBuffer | None = None

    def append(self, array: str, rows: np.ndarray) -> None:
        """Buffer rows `[n, *shape]` of the open entry."""
        if self._entry_buffer is None:
            self._entry_buffer = _EntryBuffer(self.path, array, rows)
        self._entry_buffer.append(rows)

    def commit(self) -> None:
        """Write the buffered rows of the open entry to its dataset."""
        buffer = self._entry_buffer
        if buffer is None:
            return

        # After this line the disk cannot run full during the write.
        self._reserve(len(buffer.checksums), buffer.row_bytes)
        if buffer.array not in self._file:
            self._create_rows_dataset(buffer)

        # Append the rows block by block.
        dataset = self._file[buffer.array]
        position = len(dataset)
        dataset.resize(position + len(buffer.checksums), axis=0)
        for rows in buffer.read_blocks():  # [k, *shape]
            dataset[position : position + len(rows)] = rows
            position += len(rows)

        self._checksums.setdefault(buffer.array, []).extend(buffer.checksums)
        self.rollback()

    def rollback(self) -> None:
        """Drop the buffered rows of the open entry."""
        buffer = self._entry_buffer
        self._entry_buffer = None
        if buffer is not None:
            buffer.close()

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None:
        """Write columns, checksums and the table, and close the file."""
        # Everything but the rows, in the order of writing.
        datasets: dict[str, np.ndarray] = {}
        for name, values in columns.items():
            datasets[get_column_name(name)] = values
        for array, checksums in sorted(self._checksums.items()):
            datasets[_checksum_name(array)] = np.array(checksums, "<u4")
        table_json = json.dumps(sign_table(table), ensure_ascii=False).encode()
        datasets["table"] = np.frombuffer(table_json, np.uint8)

        for name, values in datasets.items():
            self._reserve(1, values.nbytes)
            # HDF5 has no chunks, and no checksums, of empty datasets.
            options: dict[str, Any] = {}
            if len(values):
                options = {"chunks": values.shape, "fletcher32": True}
            self._file.create_dataset(name, data=values, track_times=False, **options)

        # Give back the reserved space that HDF5 did not need.
        self._file.flush()
        size = self._file.id.get_filesize()
        self.close()
        os.truncate(self.path, size)

    def close(self) -> None:
        """Close the file; the rows of an open entry are dropped."""
        with suppress(OSError):  # a buffer on a full disk cannot even be closed
            self.rollback()
        self._file.close()

    def _create_rows_dataset(self, buffer: _EntryBuffer) -> None:
        """Create the empty dataset of an entry's rows."""
        self._file.create_dataset(
            buffer.array,
            shape=(0, *buffer.shape),
            dtype=buffer.dtype,
            maxshape=(None, *buffer.shape),
            chunks=(1, *buffer.shape),
            fletcher32=True,
            track_times=False,
        )

    def _reserve(self, num_chunks: int, chunk_bytes: int) -> None:
        """Reserve disk space for more chunks and HDF5's metadata; OSError if the disk is full."""
        size = num_chunks * (chunk_bytes + CHUNK_OVERHEAD_BYTES) + ARRAY_OVERHEAD_BYTES
        file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.posix_fallocate(file, self._reserved_bytes, size)
        finally:
            os.close(file)
        self._reserved_bytes += size


class _EntryBuffer:
    """The rows of the open entry in a nameless file, and the crc32c of each row."""

    def __init__(self, shard_file: Path, array: str, rows: np.ndarray) -> None:
        self.array = array
        self.shape = rows.shape[1:]
        self.dtype = rows.dtype
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.checksums: list[int] = []
        self._file = SpooledTemporaryFile(  # noqa: SIM115 - open as long as the entry
            MAX_BUFFERED_BYTES,
            "w+b",
            dir=str(shard_file.parent),
            prefix=f".{shard_file.name}.",
            suffix=".part",
        )

    def append(self, rows: np.ndarray) -> None:
        """Add rows `[n, *shape]`."""
        for block in split_into_blocks(rows):
            data = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
            self._file.write(data.data)
            self.checksums.extend(google_crc32c.value(row) for row in data)

    def read_blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows again, `[k, *shape]` at a time."""
        self._file.seek(0)
        block_bytes = max(1, MAX_RUN_BYTES // self.row_bytes) * self.row_bytes
        while block := self._file.read(block_bytes):
            yield np.frombuffer(block, self.dtype).reshape(-1, *self.shape)

    def close(self) -> None:
        """Close, and so delete, the file."""
        self._file.close()


class Hdf5Source:
    """Reads the datasets of one file. HDF5 is asked once per array for its chunks' positions.

    Args:
        path: The file.
        table: Its table.
    """

    def __init__(self, path: Path, table: ShardTable) -> None:
        self.path = path
        self._file = _open_file(path)
        self._table = table
        self._chunk_readers: dict[str, ChunkReader] = {}

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        """Read rows of an array, as `ShardSource.read`."""
        if not len(rows):
            return
        if array not in self._chunk_readers:
            self._chunk_readers[array] = self._open_chunks(array)

        out_bytes = out.reshape(len(out), -1).view(np.uint8)  # [m, chunk_bytes]
        self._chunk_readers[array].read(rows, out_indices, out_bytes)

    def read_column(self, name: str) -> np.ndarray:
        """Read a column, as `ShardSource.read_column`."""
        spec = self._table.columns[name]
        try:
            values = np.asarray(self._file[get_column_name(name)][...])
        except H5PY_ERRORS as error:
            reraise_system_errors(error)
            raise DamageError(f"column {name!r} cannot be read ({error})") from None

        if values.shape != spec.shape or values.dtype != np.dtype(spec.dtype):
            raise DamageError(
                f"column {name!r} is {values.dtype}{list(values.shape)}, "
                f"not {spec.dtype}{list(spec.shape)}"
            )
        return values

    def _open_chunks(self, array: str) -> ChunkReader:
        """Open the chunks of an array after a check of its form; absent chunks become missing."""
        spec = self._table.arrays[array]
        index = np.full((spec.shape[0], 2), MISSING_CHUNK)  # [n, 2], offset and bytes

        def add_chunk(chunk: Any) -> None:
            index[chunk.chunk_offset[0]] = (chunk.byte_offset, chunk.size)

        try:
            dataset = self._file[array]
            form = (dataset.shape, dataset.dtype, dataset.chunks, dataset.fletcher32)
            dataset.id.chunk_iter(add_chunk)  # one call for all chunks
            checksums = np.asarray(self._file[_checksum_name(array)][...])
        except H5PY_ERRORS as error:
            reraise_system_errors(error)
            raise DamageError(f"its rows cannot be read ({error})") from None

        expected_form = (spec.shape, np.dtype(spec.dtype), (1, *spec.shape[1:]), True)
        if form != expected_form or checksums.shape != spec.shape[:1]:
            raise DamageError(f"array {array} is not as written")

        # A second descriptor of the file: rows are read past the library.
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return ChunkReader(file, index, spec.chunk_bytes, checksums)


def _checksum_name(array: str) -> str:
    """Return the name of the dataset with the checksums of an array's rows."""
    return f"crc32c_{array}"


def read_hdf5_table(path: Path) -> ShardTable:
    """Read the table of a shard from its dataset of JSON bytes.

    Args:
        path: The file.

    Returns:
        The table.

    Raises:
        DamageError: The file or its table is damaged.
        OSError: The system refuses the read (permissions, too many open files, …).
    """
    file = _open_file(path)
    try:
        document = json.loads(file["table"][...].tobytes())
    except H5PY_ERRORS as error:
        reraise_system_errors(error)
        raise DamageError(f"its table cannot be read ({error})") from None
    finally:
        file.close()
    return verify_table(document)


def _open_file(path: Path) -> Any:
    """Open a file with h5py for reading."""
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except H5PY_ERRORS as error:
        reraise_system_errors(error)
        raise DamageError(f"it cannot be opened ({error})") from None
