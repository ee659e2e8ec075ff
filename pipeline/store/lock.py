"""One writer per store or run: a lock the kernel frees when its owner dies, and beside it who the owner is.

The kernel's lock alone decides, on a network file system across hosts; what a dead owner left beside it means nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from pipeline.errors import StoreError, StvgError
from pipeline.io.jsonl import write_json
from pipeline.store.disk_errors import check_is_directory, translate_disk_full


class ExclusiveLock:
    """Context that holds the lock file `path`; a second owner is refused at once with an `error` that names `what` and the first.

    The owner's pid, host, command and start stand in `<path>.json` while the lock is held.
    """

    def __init__(self, path: Path, resource: str, error_type: type[StvgError]) -> None:
        self._path, self._resource, self._error_type = path, resource, error_type
        self._owner_path = path.with_name(f"{path.name}.json")
        self._lock = FileLock(path, thread_local=False)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._error_type(
                f"{self._resource} is in use by {self._describe_owner()}: wait until it ends, or stop it"
            ) from None
        try:
            write_json(self._owner_path, _describe_process())
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner_path.unlink(missing_ok=True)
        self._lock.release()

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner_path.read_bytes())
            return (
                f"pid {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            return "another process that has not yet written its name"


class StoreLock(ExclusiveLock):
    """A store's: `<store>/lock`, with `<store>/lock.json`; refused with a StoreError."""

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        super().__init__(self.store / "lock", f"store {self.store}", StoreError)

    def __enter__(self) -> Self:
        check_is_directory(self.store)
        with translate_disk_full(self.store):
            return super().__enter__()


def _describe_process() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
