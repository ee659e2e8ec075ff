"""Chunks of equal size in one file, each followed by its four-byte checksum.

Chunks are written end to end. They are read by position: an index of offsets is held in memory,
chunks go straight into the result, and neighbors in the file are read by one system call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.store.layout import DamageError, reraise_system_errors

MISSING_CHUNK = np.uint64(2**64 - 1)
"""Offset and size of a missing chunk in an index."""
MAX_RUN_CHUNKS = 256
"""Chunks per system call: each takes two buffers, and Linux accepts 1024."""
MAX_RUN_BYTES = 16 << 20
"""Bytes per system call."""
CHECKSUM_BYTES = 4


class ChunkWriter:
    """A new file of chunks, each with its crc32c. The first chunk creates the file.

    Args:
        path: The file; it must not exist.

    Attributes:
        path: As given.
        count: Number of chunks written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = -1
        self._end_offset = 0
        self._commit_state = (0, 0)  # count and end offset at the last commit

    def append(self, chunks: np.ndarray) -> None:
        """Write chunks.

        Args:
            chunks: `[n, *shape]`; each row is one chunk.
        """
        # The first chunk creates the file: an array without chunks has none.
        if len(chunks) and self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)

        # In the file, chunks and checksums alternate.
        for block in split_into_blocks(chunks):
            rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)

            buffers = []
            for row in rows:  # [chunk_bytes]
                buffers.append(row.data)
                buffers.append(memoryview(compute_crc32c(row)))
            self._write(buffers)
            self.count += len(rows)

    def commit(self) -> None:
        """Keep everything written so far; `rollback` returns to this state."""
        self._commit_state = (self.count, self._end_offset)

    def rollback(self) -> bool:
        """Remove everything written since the last `commit`.

        Returns:
            False if nothing is left: the file is deleted then.
        """
        self.count, self._end_offset = self._commit_state
        if self._file >= 0 and self.count:
            os.ftruncate(self._file, self._end_offset)
            os.lseek(self._file, self._end_offset, os.SEEK_SET)
        elif self._file >= 0:
            self.close()
            self.path.unlink()
        return self.count > 0

    def finish(self) -> None:
        """Write zarr's index of a shard behind the chunks, and close the file.

        The index is `[n, 2]` (offset, bytes) as uint64, followed by its crc32c.
        """
        if self._file >= 0:
            stored_bytes = self._end_offset // self.count
            offsets = np.arange(self.count, dtype="<u8") * stored_bytes
            sizes = np.full(self.count, stored_bytes, "<u8")
            index = np.stack([offsets, sizes], -1)  # [n, 2]

            checksum = compute_crc32c(index.view(np.uint8).reshape(-1))
            self._write([memoryview(index.tobytes()), memoryview(checksum)])
        self.close()

    def close(self) -> None:
        """Close the file, if it is open."""
        file = self._file
        self._file = -1
        if file >= 0:
            os.close(file)

    def _write(self, buffers: list[memoryview]) -> None:
        """Write all buffers, in as many system calls as necessary."""

        def write(pending: list[memoryview], done: int) -> int:
            return os.writev(self._file, pending)

        self._end_offset += transfer_all(buffers, write)


class ChunkReader:
    """The chunks of one open file.

    Args:
        file: File descriptor; the reader owns and closes it.
        index: `[n, 2]` (offset, bytes) of each chunk with its checksum.
        chunk_bytes: Bytes of each chunk without its checksum.
        checksums: uint32 `[n]`, crc32c of each chunk. By default the crc32c follows each chunk
            in the file.
    """

    def __init__(
        self, file: int, index: np.ndarray, chunk_bytes: int, checksums: np.ndarray | None = None
    ) -> None:
        self.chunk_bytes = chunk_bytes
        self._file = file
        self._index = index
        self._checksums = checksums

    def __del__(self) -> None:
        os.close(self._file)

    def read(self, chunks: np.ndarray, out_indices: np.ndarray, out: np.ndarray) -> None:
        """Read chunks into rows of an array.

        Args:
            chunks: `[k]`, ascending chunk indices.
            out_indices: `[k]`, row of `out` for each chunk.
            out: uint8 `[m, chunk_bytes]`, written in place.

        Raises:
            DamageError: A chunk is missing, unreadable, or does not match its checksum.
        """
        stored_bytes = self.chunk_bytes + CHECKSUM_BYTES
        offsets = self._index[chunks, 0]
        sizes = self._index[chunks, 1]

        # A chunk that the index does not describe as written is missing or damaged.
        wrong_sized = chunks[sizes != stored_bytes]
        if len(wrong_sized):
            chunk = wrong_sized[0]
            is_missing = self._index[chunk, 1] == MISSING_CHUNK
            raise DamageError(f"row {chunk} {'is missing' if is_missing else 'has a wrong size'}")

        # Chunks that lie end to end form a run; a long run is cut into several system calls.
        max_chunks = max(1, min(MAX_RUN_CHUNKS, MAX_RUN_BYTES // stored_bytes))
        run_starts = np.flatnonzero(np.diff(offsets) != stored_bytes) + 1
        begin = 0
        for end in [*run_starts.tolist(), len(chunks)]:
            for part_begin in range(begin, end, max_chunks):
                part = slice(part_begin, min(part_begin + max_chunks, end))
                offset = int(offsets[part_begin])
                self._read_run(offset, chunks[part], out_indices[part], out)
            begin = end

    def _read_run(
        self, offset: int, chunks: np.ndarray, out_indices: np.ndarray, out: np.ndarray
    ) -> None:
        """Read chunks that lie end to end, and compare their checksums."""
        rows = [out[out_index] for out_index in out_indices.tolist()]
        trailers = np.empty((len(chunks), CHECKSUM_BYTES), np.uint8)

        # Rows of `out` and trailers take turns, as chunks and checksums do in the file.
        buffers = []
        for row, trailer in zip(rows, trailers, strict=True):
            buffers.append(row)
            buffers.append(trailer)

        try:
            fill_buffers(self._file, buffers, offset)
        except (OSError, OverflowError) as error:
            reraise_system_errors(error)
            raise DamageError(f"row {chunks[0]} cannot be read ({error})") from None

        # HDF5 shards keep their crc32c in a dataset; there the trailer is HDF5's fletcher32.
        if self._checksums is None:
            checksums = trailers.view("<u4")[:, 0]
        else:
            checksums = self._checksums[chunks]
        for chunk, row, checksum in zip(chunks.tolist(), rows, checksums.tolist(), strict=True):
            if google_crc32c.value(row) != checksum:
                raise DamageError(f"row {chunk} does not match its checksum")


def split_into_blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Split rows into blocks that are small enough for one copy and one system call.

    Args:
        rows: `[n, *shape]`.

    Returns:
        Views `[k, *shape]` of consecutive rows.
    """
    if not len(rows):
        return []

    step = max(1, min(MAX_RUN_CHUNKS, MAX_RUN_BYTES // max(1, rows[0].nbytes)))
    return [rows[begin : begin + step] for begin in range(0, len(rows), step)]


def fill_buffers(file: int, buffers: list[np.ndarray], offset: int) -> None:
    """Read from a file until all buffers are full.

    Args:
        file: File descriptor.
        buffers: uint8 arrays, filled in order.
        offset: Position of the first byte in the file.

    Raises:
        DamageError: The file ends first.
        OSError: The file cannot be read.
    """

    def read(pending: list[memoryview], done: int) -> int:
        count = os.preadv(file, pending, offset + done)
        if count == 0:
            raise DamageError("the file ends before its last row")
        return count

    transfer_all([buffer.data for buffer in buffers], read)


def transfer_all(
    pending: list[memoryview], transfer: Callable[[list[memoryview], int], int]
) -> int:
    """Repeat a partial transfer until all buffers are done.

    Args:
        pending: Buffers to transfer; emptied by the call.
        transfer: Called with the remaining buffers and the number of bytes done. Returns the
            number of bytes that it transferred.

    Returns:
        The number of bytes of all buffers.
    """
    done = 0
    while pending:
        count = transfer(pending, done)
        done += count

        # Drop the completed buffers, and the completed beginning of the next one.
        num_completed = 0
        while num_completed < len(pending) and count >= len(pending[num_completed]):
            count -= len(pending[num_completed])
            num_completed += 1
        del pending[:num_completed]
        if count:
            pending[0] = pending[0][count:]
    return done


def compute_crc32c(data: np.ndarray | bytes) -> bytes:
    """Compute the crc32c of bytes in zarr's form.

    Args:
        data: Bytes, or a contiguous uint8 array.

    Returns:
        4 bytes, little-endian.
    """
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
