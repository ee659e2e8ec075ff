"""Cache of video file digests, so that unchanged files are not read again by later runs."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.features.stream import compute_file_digest
from pipeline.io.jsonl import write_json
from pipeline.store.disk_errors import translate_disk_full

CACHE_FILE_NAME = ".seen.json"
MIN_CACHED_FILES = 256
"""Smallest number of digests to save: fewer files are read again in little time."""
CachedDigest = tuple[int, int, str]
"""Size in bytes, modification time in nanoseconds, digest."""


class FileDigestCache:
    """Digests of video files; each file is read at most once per run.

    Digests of earlier runs are in a file beside the store's manifest. The file is not part of the
    store: if it is absent or damaged, all videos are read again.

    Args:
        store: directory of the store.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / CACHE_FILE_NAME
        self._previous_digests = _load_cache(self._path)
        self._current_digests: dict[Path, CachedDigest | None] = {}

    def get_digest(self, path: Path) -> str | None:
        """Return the digest of a file.

        Args:
            path: the file.

        Returns:
            The digest, or None if the file cannot be read.
        """
        if path not in self._current_digests:
            self._current_digests[path] = self._get_or_compute(path)
        cached = self._current_digests[path]
        return None if cached is None else cached[2]

    def save(self) -> None:
        """Write the digests for the next run, if they are many and have changed."""
        digests = dict(self._previous_digests)
        for path, cached in self._current_digests.items():
            if cached is not None:
                digests[str(path.absolute())] = cached

        if len(digests) >= MIN_CACHED_FILES and digests != self._previous_digests:
            with translate_disk_full(self._path.parent):
                write_json(self._path, digests)

    def _get_or_compute(self, path: Path) -> CachedDigest | None:
        """Return the previous digest if size and time are the same, otherwise a new one."""
        try:
            # The status is read before the content: a file that changes between the two has an old
            # time in the cache, so the next run reads it again.
            status = path.stat()
            size = status.st_size
            modification_time = status.st_mtime_ns

            previous = self._previous_digests.get(str(path.absolute()))
            if previous is not None and previous[:2] == (size, modification_time):
                return previous
            return size, modification_time, compute_file_digest(path)
        except OSError:
            return None


def _load_cache(path: Path) -> dict[str, CachedDigest]:
    """Return the content of the cache file; nothing if the file is absent or damaged."""
    digests = {}
    try:
        for name, (size, modification_time, digest) in json.loads(path.read_bytes()).items():
            digests[name] = (int(size), int(modification_time), str(digest))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return digests
