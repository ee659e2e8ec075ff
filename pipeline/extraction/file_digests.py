"""Which video files were read before: a file whose size and time of change are the same is not read again for its digest."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.features.stream import compute_file_digest
from pipeline.io.jsonl import write_json
from pipeline.store.disk_errors import translate_disk_full

CACHE_FILE_NAME = ".seen.json"
MIN_CACHED_FILES = 256
"""Digests of fewer files are not kept: they are soon read again."""
CachedDigest = tuple[int, int, str]
"""Bytes, time of the last change in nanoseconds, digest."""


class FileDigestCache:
    """Digests of video files, each file looked at once. What earlier runs on the store read is in a file beside its manifest.

    That file is a memory, no part of the store: one that is absent or damaged costs a reading of all videos.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / CACHE_FILE_NAME
        self._previous_digests = _load_cache(self._path)
        self._current_digests: dict[Path, CachedDigest | None] = {}

    def get_digest(self, path: Path) -> str | None:
        """The digest of a file; None where it cannot be read now."""
        if path not in self._current_digests:
            self._current_digests[path] = self._get_or_compute(path)
        seen = self._current_digests[path]
        return seen[2] if seen else None

    def save(self) -> None:
        """Remember them for the next run."""
        seen = self._previous_digests | {
            str(path.absolute()): seen for path, seen in self._current_digests.items() if seen
        }
        if len(seen) >= MIN_CACHED_FILES and seen != self._previous_digests:
            with translate_disk_full(self._path.parent):
                write_json(self._path, seen)

    def _get_or_compute(self, path: Path) -> CachedDigest | None:
        try:
            facts = (
                path.stat()
            )  # before reading: a file that changes in between is read again the next time
            before = self._previous_digests.get(str(path.absolute()))
            if before is not None and before[:2] == (facts.st_size, facts.st_mtime_ns):
                return before
            return facts.st_size, facts.st_mtime_ns, compute_file_digest(path)
        except OSError:
            return None


def _load_cache(path: Path) -> dict[str, CachedDigest]:
    """What the file holds; nothing if it is absent or not as it was written."""
    try:
        held = json.loads(path.read_bytes()).items()
        return {
            name: (int(size), int(changed), str(digest)) for name, (size, changed, digest) in held
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
