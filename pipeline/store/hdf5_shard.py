"""A shard as one HDF5 file: each array a dataset of one-row chunks with fletcher32, the table a dataset of JSON bytes.

Written in HDF5 1.10's form, whose metadata has checksums, and without times, so the same rows give the same bytes.
Beside each array `crc32c_<array>` has a second checksum of every row: fletcher32 is for other readers, this one asks
HDF5 once where the chunks lie and reads them itself, several times as fast as the library and without its one lock.
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
    column_name,
    reraise_system_errors,
    sign_table,
    verify_table,
)

MAX_BUFFERED_BYTES = 8 << 20  # of an entry's rows are held in memory
CHUNK_OVERHEAD_BYTES, ARRAY_OVERHEAD_BYTES = (
    64,
    256 << 10,
)  # bytes, more than HDF5 needs for its indices and headers
H5PY_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)  # what h5py raises on damaged files


class Hdf5Sink:
    """Streams rows into the datasets of a new file.

    HDF5 cannot forget rows without a trace, so those of the open entry wait beside it, on disk beyond a few MiB. Nor
    does it survive a full disk (it loses rows without an error, or crashes the process), so room is reserved before it
    writes.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        self._file = h5py.File(path, "w-", libver=("v110", "v110"), locking=False)
        self._reserved_bytes = 0
        self._checksums: dict[str, list[int]] = {}
        self._entry_buffer: _EntryBuffer | None = None

    def append(self, array: str, rows: np.ndarray) -> None:
        if self._entry_buffer is None:
            self._entry_buffer = _EntryBuffer(self.path, array, rows)
        self._entry_buffer.append(rows)

    def commit(self) -> None:
        if self._entry_buffer is None:
            return
        array, shape, dtype = (
            self._entry_buffer.array,
            self._entry_buffer.shape,
            self._entry_buffer.dtype,
        )
        self._reserve(len(self._entry_buffer.checksums), self._entry_buffer.row_bytes)
        if array not in self._file:
            spec: dict[str, Any] = {
                "maxshape": (None, *shape),
                "chunks": (1, *shape),
                "fletcher32": True,
                "track_times": False,
            }
            self._file.create_dataset(array, shape=(0, *shape), dtype=dtype, **spec)
        dataset = self._file[array]
        place = len(dataset)
        dataset.resize(place + len(self._entry_buffer.checksums), axis=0)
        for rows in self._entry_buffer.read_blocks():
            dataset[place : place + len(rows)] = rows
            place += len(rows)
        self._checksums.setdefault(array, []).extend(self._entry_buffer.checksums)
        self.rollback()

    def rollback(self) -> None:
        waiting, self._entry_buffer = self._entry_buffer, None
        if waiting is not None:
            waiting.close()

    def finish(self, table: ShardTable, columns: Mapping[str, np.ndarray]) -> None:
        sums = {
            _checksum_name(array): np.array(values, "<u4")
            for array, values in sorted(self._checksums.items())
        }
        document = np.frombuffer(
            json.dumps(sign_table(table), ensure_ascii=False).encode(), np.uint8
        )
        whole = {
            **{column_name(name): values for name, values in columns.items()},
            **sums,
            "table": document,
        }
        for name, values in whole.items():
            self._reserve(1, values.nbytes)
            checked: dict[str, Any] = (
                {"chunks": values.shape, "fletcher32": True} if len(values) else {}
            )
            self._file.create_dataset(name, data=values, track_times=False, **checked)
        self._file.flush()
        size = self._file.id.get_filesize()
        self.close()
        os.truncate(self.path, size)

    def close(self) -> None:
        with suppress(OSError):  # of what waits: on a full disk it cannot even be closed
            self.rollback()
        self._file.close()

    def _reserve(self, chunks: int, chunk_bytes: int) -> None:
        """Give the file room for so many chunks more with all that HDF5 puts around them; OSError if the disk has none."""
        room = chunks * (chunk_bytes + CHUNK_OVERHEAD_BYTES) + ARRAY_OVERHEAD_BYTES
        file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.posix_fallocate(file, self._reserved_bytes, room)
        finally:
            os.close(file)
        self._reserved_bytes += room


class _EntryBuffer:
    """The rows of the open entry in a file without a name, and the crc32c of each."""

    def __init__(self, shard: Path, array: str, rows: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, rows.shape[1:], rows.dtype
        self.row_bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.checksums: list[int] = []
        self._file = SpooledTemporaryFile(  # noqa: SIM115 - it lives as long as the entry is open
            MAX_BUFFERED_BYTES,
            "w+b",
            dir=str(shard.parent),
            prefix=f".{shard.name}.",
            suffix=".part",
        )

    def append(self, rows: np.ndarray) -> None:
        for block in split_into_blocks(rows):
            data = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
            self._file.write(data.data)
            self.checksums.extend(google_crc32c.value(row) for row in data)

    def read_blocks(self) -> Iterator[np.ndarray]:
        """All rows again, `[k, *shape]` at a time."""
        self._file.seek(0)
        while block := self._file.read(max(1, MAX_RUN_BYTES // self.row_bytes) * self.row_bytes):
            yield np.frombuffer(block, self.dtype).reshape(-1, *self.shape)

    def close(self) -> None:
        self._file.close()


class Hdf5Source:
    """Reads the datasets of one file. HDF5 is asked once per array where its chunks lie."""

    def __init__(self, path: Path, table: ShardTable) -> None:
        self.path = path
        self._file = _open_file(path)
        self._table = table
        self._chunk_readers: dict[str, ChunkReader] = {}

    def read(self, array: str, rows: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        if not len(rows):
            return
        if array not in self._chunk_readers:
            self._chunk_readers[array] = self._open_chunks(array)
        self._chunk_readers[array].read(rows, out_indices, out.reshape(len(out), -1).view(np.uint8))

    def read_column(self, name: str) -> np.ndarray:
        spec = self._table.columns[name]
        try:
            values = np.asarray(self._file[column_name(name)][...])
        except H5PY_ERRORS as error:
            reraise_system_errors(error)
            raise DamageError(f"column {name!r} cannot be read ({error})") from None
        if values.shape != spec.shape or values.dtype != np.dtype(spec.dtype):
            raise DamageError(
                f"column {name!r} is {values.dtype}{list(values.shape)}, not {spec.dtype}{list(spec.shape)}"
            )
        return values

    def _open_chunks(self, array: str) -> ChunkReader:
        """The chunks of an array, once its form is as written; those that are not there are marked as missing."""
        spec = self._table.arrays[array]
        index = np.full((spec.shape[0], 2), MISSING_CHUNK)
        try:
            dataset = self._file[array]
            found = (dataset.shape, dataset.dtype, dataset.chunks, dataset.fletcher32)
            dataset.id.chunk_iter(
                lambda chunk: index.__setitem__(
                    chunk.chunk_offset[0], (chunk.byte_offset, chunk.size)
                )
            )
            sums = np.asarray(self._file[_checksum_name(array)][...])
        except H5PY_ERRORS as error:
            reraise_system_errors(error)
            raise DamageError(f"its rows cannot be read ({error})") from None
        if (
            found != (spec.shape, np.dtype(spec.dtype), (1, *spec.shape[1:]), True)
            or sums.shape != spec.shape[:1]
        ):
            raise DamageError(f"array {array} is not as written")
        return ChunkReader(
            os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), index, spec.chunk_bytes, sums
        )


def _checksum_name(array: str) -> str:
    return f"crc32c_{array}"


def read_hdf5_table(path: Path) -> ShardTable:
    """The table of a file, from its dataset of JSON bytes."""
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
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except H5PY_ERRORS as error:
        reraise_system_errors(error)
        raise DamageError(f"it cannot be opened ({error})") from None
