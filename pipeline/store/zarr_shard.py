"""A shard as a Zarr v3 group: each array is one zarr shard (sharding codec) of one-row chunks, bytes + crc32c.

zarr-python writes the metadata; the chunks are streamed into the shard file, because zarr can fill a shard only from
memory as a whole. The file is what zarr-python would have written, byte for byte: n × (chunk, crc32c), then the
index, n × (offset, bytes) as uint64, and its crc32c. Every chunk is stored, also one of zeros.

Reading asks the index once and reads chunks straight into the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from pipeline.store.layout import ArraySpec, DamageError, Table, column_name, raise_unless_damage, seal, unseal

MISSING = np.uint64(2**64 - 1)
RUN_CHUNKS = 256  # chunks per system call; two buffers each, and Linux takes 1024
RUN_BYTES = 16 << 20


class ZarrSink:
    """Streams rows into the arrays of a new group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: dict[str, ChunkWriter] = {}
        path.mkdir()

    def append(self, array: str, rows: np.ndarray) -> None:
        if array not in self._streams:
            self._streams[array] = ChunkWriter(_chunk_file(self.path, array, rows.ndim))
        for row in rows:
            self._streams[array].append(row)

    def finish(self, table: Table, columns: Mapping[str, np.ndarray]) -> None:
        import zarr

        group = zarr.create_group(self.path, attributes=seal(table))
        for name, spec in table.arrays.items():
            _declare(group, name, spec, rows_per_chunk=1)
        for name, values in columns.items():
            _declare(group, column_name(name), table.columns[name], rows_per_chunk=max(1, len(values)))
            self._streams[column_name(name)] = ChunkWriter(_chunk_file(self.path, column_name(name), 1))
            if len(values):
                self._streams[column_name(name)].append(values)
        for stream in self._streams.values():
            stream.finish()

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


class ZarrSource:
    """Reads the arrays of one group. Files are opened when first asked for and kept open."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path = path
        self._table = table
        self._files: dict[str, ChunkReader] = {}

    def read(self, array: str, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        if not len(rows):
            return
        if array not in self._files:
            spec = self._table.arrays[array]
            self._files[array] = ChunkReader(_chunk_file(self.path, array, len(spec.shape)), spec.shape[0], spec.chunk_bytes)
        self._files[array].read(rows, places, out.reshape(len(out), -1).view(np.uint8))

    def column(self, name: str) -> np.ndarray:
        spec = self._table.columns[name]
        values = np.empty(spec.shape, spec.dtype)
        if len(values):
            file = ChunkReader(_chunk_file(self.path, column_name(name), 1), 1, values.nbytes)
            file.read(np.zeros(1, np.int64), np.zeros(1, np.int64), values.view(np.uint8)[None])
        return values


class ChunkWriter:
    """One zarr shard file, written front to back. No chunk, no file: that is how zarr stores an empty array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._sizes: list[int] = []

    def append(self, chunk: np.ndarray) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True)
            self._file = self.path.open("wb")
        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        self._file.write(data.data)
        self._file.write(_crc(data))
        self._sizes.append(data.nbytes + 4)

    def finish(self) -> None:
        if self._file is not None:
            sizes = np.array(self._sizes, "<u8")
            index = np.stack([np.cumsum(sizes, dtype="<u8") - sizes, sizes], -1).tobytes()
            self._file.write(index + _crc(index))
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class ChunkReader:
    """One zarr shard file of `count` chunks of `chunk_bytes`: the index is read once, chunks by position."""

    def __init__(self, path: Path, count: int, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            index = np.empty(count * 16 + 4, np.uint8)
            begin = os.fstat(self._file).st_size - len(index)
            if begin < 0:
                raise DamageError(f"{path.parent.name}/{path.name} is too short for its index")
            _fill(self._file, [index], begin)
        except OSError as error:
            raise_unless_damage(error)
            raise DamageError(f"its rows cannot be read ({error.strerror})") from None
        if _crc(index[:-4]) != index[-4:].tobytes():
            raise DamageError("the index of its rows does not match its checksum (damaged or cut)")
        self._index = index[:-4].view("<u8").reshape(count, 2)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, chunks: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Read ascending `chunks` into the byte rows `places` of `out` `[m, chunk_bytes]`; neighbours in one call."""
        stored = self.chunk_bytes + 4
        offsets, sizes = self._index[chunks].T
        for chunk in chunks[sizes != stored][:1]:
            raise DamageError(f"row {chunk} is missing" if self._index[chunk, 1] == MISSING else f"row {chunk} has a wrong size")
        longest = max(1, min(RUN_CHUNKS, RUN_BYTES // stored))
        apart = np.flatnonzero(np.diff(offsets) != stored) + 1
        for run in np.split(np.arange(len(chunks)), apart):
            for part in range(run[0], run[-1] + 1, longest):
                here = slice(part, min(part + longest, run[-1] + 1))
                self._read_run(int(offsets[part]), chunks[here], places[here], out)

    def _read_run(self, offset: int, chunks: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Read chunks that lie end to end, each followed by its checksum, and compare the checksums."""
        sums = np.empty((len(chunks), 4), np.uint8)
        buffers = [buffer for place, total in zip(places, sums, strict=True) for buffer in (out[place], total)]
        try:
            _fill(self._file, buffers, offset)
        except (OSError, OverflowError) as error:
            raise_unless_damage(error)
            raise DamageError(f"row {chunks[0]} cannot be read ({error})") from None
        for chunk, place, total in zip(chunks, places, sums, strict=True):
            if _crc(out[place]) != total.tobytes():
                raise DamageError(f"row {chunk} does not match its checksum")


def read_zarr_table(path: Path) -> Table:
    """The table of a group, from its attributes."""
    try:
        document = json.loads((path / "zarr.json").read_bytes())
    except (OSError, ValueError) as error:
        raise_unless_damage(error)
        raise DamageError(f"its zarr.json cannot be read ({error})") from None
    return unseal(document.get("attributes") if isinstance(document, dict) else None)


def _declare(group: object, name: str, spec: ArraySpec, rows_per_chunk: int) -> None:
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


def _fill(file: int, buffers: list[np.ndarray], offset: int) -> None:
    """Read from `offset` until all buffers are full; a file that ends before is damage."""
    pending = [buffer.data for buffer in buffers]
    while pending:
        count = os.preadv(file, pending, offset)
        if count == 0:
            raise DamageError("the file ends before its rows do")
        offset += count
        while pending and count >= len(pending[0]):
            count -= len(pending.pop(0))
        if count:
            pending[0] = pending[0][count:]


def _crc(data: np.ndarray | bytes) -> bytes:
    """crc32c as zarr stores it: 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")
