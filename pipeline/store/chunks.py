"""Chunks of equal size in one file, each followed by four bytes: written end to end, read by position.

Reading asks an index of offsets that is held in memory, and brings chunks straight into the result; neighbours in
the file come in one system call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np

from pipeline.store.layout import DamageError, reraise_system_errors

MISSING_CHUNK = np.uint64(2**64 - 1)
MAX_RUN_CHUNKS = 256  # chunks per system call; two buffers each, and Linux takes 1024
MAX_RUN_BYTES = 16 << 20


class ChunkWriter:
    """A new file of chunks, each with its crc32c. It comes to be with the first chunk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._commit_state = (0, 0)
        self.count, self._end_offset = 0, 0

    def append(self, chunks: np.ndarray) -> None:
        """Write `[n, *shape]`, row by row a chunk."""
        if len(chunks) and self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
            )
        for block in split_into_blocks(chunks):
            rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
            self._write(
                [part for row in rows for part in (row.data, memoryview(compute_crc32c(row)))]
            )
            self.count += len(rows)

    def commit(self) -> None:
        """What was written until now stays."""
        self._commit_state = (self.count, self._end_offset)

    def rollback(self) -> bool:
        """Take back what was written since `keep`; False if nothing is left of the file."""
        self.count, self._end_offset = self._commit_state
        if self._file >= 0 and self.count:
            os.ftruncate(self._file, self._end_offset)
            os.lseek(self._file, self._end_offset, os.SEEK_SET)
        elif self._file >= 0:
            self.close()
            self.path.unlink()
        return self.count > 0

    def finish(self) -> None:
        """Write zarr's index of a shard, n × (offset, bytes) as uint64 and its crc32c, behind the chunks."""
        if self._file >= 0:
            size = self._end_offset // self.count
            index = np.stack(
                [np.arange(self.count, dtype="<u8") * size, np.full(self.count, size, "<u8")], -1
            )
            self._write(
                [
                    memoryview(index.tobytes()),
                    memoryview(compute_crc32c(index.view(np.uint8).reshape(-1))),
                ]
            )
        self.close()

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write(self, parts: list[memoryview]) -> None:
        """Write all parts, whatever the system takes at once."""
        self._end_offset += transfer_all(
            parts, lambda pending, done: os.writev(self._file, pending)
        )


class ChunkReader:
    """The chunks of one open file, of `chunk_bytes` each, where `index` `[n, 2]` (offset, bytes) says. Owns the file.

    The sum of a chunk is the crc32c behind it, or, where given, `sums[chunk]` (uint32).
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
        """Read ascending `chunks` into the byte rows `places` of `out` `[m, chunk_bytes]`."""
        stored = self.chunk_bytes + 4
        offsets, sizes = self._index[chunks].T
        for chunk in chunks[sizes != stored][:1]:
            raise DamageError(
                f"row {chunk} is missing"
                if self._index[chunk, 1] == MISSING_CHUNK
                else f"row {chunk} has a wrong size"
            )
        longest = max(1, min(MAX_RUN_CHUNKS, MAX_RUN_BYTES // stored))
        apart = np.flatnonzero(np.diff(offsets) != stored) + 1
        ends = [*apart.tolist(), len(chunks)]
        for begin, end in zip([0, *ends], ends, strict=False):
            for part in range(begin, end, longest):
                here = slice(part, min(part + longest, end))
                self._read_run(int(offsets[part]), chunks[here], out_indices[here], out)

    def _read_run(
        self, offset: int, chunks: np.ndarray, places: np.ndarray, out: np.ndarray
    ) -> None:
        """Read chunks that lie end to end, each with the four bytes behind it, and compare the checksums."""
        behind = np.empty((len(chunks), 4), np.uint8)
        rows = [out[place] for place in places.tolist()]
        try:
            fill_buffers(
                self._file,
                [buffer for row, four in zip(rows, behind, strict=True) for buffer in (row, four)],
                offset,
            )
        except (OSError, OverflowError) as error:
            reraise_system_errors(error)
            raise DamageError(f"row {chunks[0]} cannot be read ({error})") from None
        sums = behind.view("<u4")[:, 0] if self._checksums is None else self._checksums[chunks]
        for chunk, row, total in zip(chunks.tolist(), rows, sums.tolist(), strict=True):
            if google_crc32c.value(row) != total:
                raise DamageError(f"row {chunk} does not match its checksum")


def split_into_blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Views of consecutive rows, each small enough to be copied and to be written by one call."""
    if not len(rows):
        return []
    step = max(1, min(MAX_RUN_CHUNKS, MAX_RUN_BYTES // max(1, rows[0].nbytes)))
    return [rows[begin : begin + step] for begin in range(0, len(rows), step)]


def fill_buffers(file: int, buffers: list[np.ndarray], offset: int) -> None:
    """Read from `offset` until all buffers are full; a file that ends before is damage."""

    def read(pending: list[memoryview], done: int) -> int:
        count = os.preadv(file, pending, offset + done)
        if count == 0:
            raise DamageError("the file ends before its rows do")
        return count

    transfer_all([buffer.data for buffer in buffers], read)


def transfer_all(
    pending: list[memoryview], transfer: Callable[[list[memoryview], int], int]
) -> int:
    """Call `move(pending, done)`, which says how many bytes it moved, until nothing is pending; the bytes in all."""
    done = 0
    while pending:
        count = transfer(pending, done)
        done += count
        whole = 0
        while whole < len(pending) and count >= len(pending[whole]):
            count -= len(pending[whole])
            whole += 1
        del pending[:whole]
        if count:
            pending[0] = pending[0][count:]
    return done


def compute_crc32c(data: np.ndarray | bytes) -> bytes:
    """crc32c as zarr stores it: 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")
