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

from pipeline.store.layout import DamageError, raise_unless_damage

MISSING = np.uint64(2**64 - 1)
RUN_CHUNKS = 256  # chunks per system call; two buffers each, and Linux takes 1024
RUN_BYTES = 16 << 20


class ChunkWriter:
    """A new file of chunks, each with its crc32c. It comes to be with the first chunk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._kept = (0, 0)
        self.count, self._end = 0, 0

    def append(self, chunks: np.ndarray) -> None:
        """Write `[n, *shape]`, row by row a chunk."""
        if len(chunks) and self._file < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        for block in blocks_of(chunks):
            rows = np.ascontiguousarray(block).reshape(len(block), -1).view(np.uint8)
            self._write([part for row in rows for part in (row.data, memoryview(crc(row)))])
            self.count += len(rows)

    def keep(self) -> None:
        """What was written until now stays."""
        self._kept = (self.count, self._end)

    def rewind(self) -> bool:
        """Take back what was written since `keep`; False if nothing is left of the file."""
        self.count, self._end = self._kept
        if self._file >= 0 and self.count:
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
        elif self._file >= 0:
            self.close()
            self.path.unlink()
        return self.count > 0

    def finish(self) -> None:
        """Write zarr's index of a shard, n × (offset, bytes) as uint64 and its crc32c, behind the chunks."""
        if self._file >= 0:
            size = self._end // self.count
            index = np.stack([np.arange(self.count, dtype="<u8") * size, np.full(self.count, size, "<u8")], -1)
            self._write([memoryview(index.tobytes()), memoryview(crc(index.view(np.uint8).reshape(-1)))])
        self.close()

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _write(self, parts: list[memoryview]) -> None:
        """Write all parts, whatever the system takes at once."""
        self._end += advance(parts, lambda pending, done: os.writev(self._file, pending))


class ChunkReader:
    """The chunks of one open file, of `chunk_bytes` each, where `index` `[n, 2]` (offset, bytes) says. Owns the file.

    The sum of a chunk is the crc32c behind it, or, where given, `sums[chunk]` (uint32).
    """

    def __init__(self, file: int, index: np.ndarray, chunk_bytes: int, sums: np.ndarray | None = None) -> None:
        self.chunk_bytes = chunk_bytes
        self._file = file
        self._index = index
        self._sums = sums

    def __del__(self) -> None:
        os.close(self._file)

    def read(self, chunks: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Read ascending `chunks` into the byte rows `places` of `out` `[m, chunk_bytes]`."""
        stored = self.chunk_bytes + 4
        offsets, sizes = self._index[chunks].T
        for chunk in chunks[sizes != stored][:1]:
            raise DamageError(f"row {chunk} is missing" if self._index[chunk, 1] == MISSING else f"row {chunk} has a wrong size")
        longest = max(1, min(RUN_CHUNKS, RUN_BYTES // stored))
        apart = np.flatnonzero(np.diff(offsets) != stored) + 1
        ends = [*apart.tolist(), len(chunks)]
        for begin, end in zip([0, *ends], ends, strict=False):
            for part in range(begin, end, longest):
                here = slice(part, min(part + longest, end))
                self._read_run(int(offsets[part]), chunks[here], places[here], out)

    def _read_run(self, offset: int, chunks: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Read chunks that lie end to end, each with the four bytes behind it, and compare the checksums."""
        behind = np.empty((len(chunks), 4), np.uint8)
        rows = [out[place] for place in places.tolist()]
        try:
            fill(self._file, [buffer for row, four in zip(rows, behind, strict=True) for buffer in (row, four)], offset)
        except (OSError, OverflowError) as error:
            raise_unless_damage(error)
            raise DamageError(f"row {chunks[0]} cannot be read ({error})") from None
        sums = behind.view("<u4")[:, 0] if self._sums is None else self._sums[chunks]
        for chunk, row, total in zip(chunks.tolist(), rows, sums.tolist(), strict=True):
            if google_crc32c.value(row) != total:
                raise DamageError(f"row {chunk} does not match its checksum")


def blocks_of(rows: np.ndarray) -> list[np.ndarray]:
    """Views of consecutive rows, each small enough to be copied and to be written by one call."""
    if not len(rows):
        return []
    step = max(1, min(RUN_CHUNKS, RUN_BYTES // max(1, rows[0].nbytes)))
    return [rows[begin : begin + step] for begin in range(0, len(rows), step)]


def fill(file: int, buffers: list[np.ndarray], offset: int) -> None:
    """Read from `offset` until all buffers are full; a file that ends before is damage."""

    def read(pending: list[memoryview], done: int) -> int:
        count = os.preadv(file, pending, offset + done)
        if count == 0:
            raise DamageError("the file ends before its rows do")
        return count

    advance([buffer.data for buffer in buffers], read)


def advance(pending: list[memoryview], move: Callable[[list[memoryview], int], int]) -> int:
    """Call `move(pending, done)`, which says how many bytes it moved, until nothing is pending; the bytes in all."""
    done = 0
    while pending:
        count = move(pending, done)
        done += count
        whole = 0
        while whole < len(pending) and count >= len(pending[whole]):
            count -= len(pending[whole])
            whole += 1
        del pending[:whole]
        if count:
            pending[0] = pending[0][count:]
    return done


def crc(data: np.ndarray | bytes) -> bytes:
    """crc32c as zarr stores it: 4 bytes, little-endian."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")
