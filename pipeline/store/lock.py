"""Exclusive locks of stores and runs: one writer at a time.

The kernel releases a lock when its owner dies. The kernel's lock alone decides, across hosts on
a network file system. A description of the owner is written beside the lock file; the
description of a dead owner has no effect.
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
    """Context manager that holds a lock file.

    While the lock is held, `<path>.json` contains pid, host, command and start of the owner.

    Args:
        path: The lock file. Missing parent directories are created.
        resource: Name of the locked resource in error messages.
        error_type: Class of the error if the lock is taken. The error is raised at once and
            names the resource and the owner.
    """

    def __init__(self, path: Path, resource: str, error_type: type[StvgError]) -> None:
        self._path = path
        self._resource = resource
        self._error_type = error_type
        self._owner_path = path.with_name(f"{path.name}.json")
        self._lock = FileLock(path, thread_local=False)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # No waiting: the owner may run for days.
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise self._error_type(
                f"{self._resource} is in use by {self._describe_owner()}: "
                "wait until it ends, or stop it"
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
        # The description goes first: afterwards the next owner may write its own.
        self._owner_path.unlink(missing_ok=True)
        self._lock.release()

    def _describe_owner(self) -> str:
        """Describe the owner of the lock by its file."""
        try:
            owner = json.loads(self._owner_path.read_bytes())
            return (
                f"pid {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"
            )
        except (OSError, ValueError, KeyError, TypeError):
            return "another process that has not yet written its name"


class StoreLock(ExclusiveLock):
    """The lock of a store: `<store>/lock`, with `<store>/lock.json`.

    Args:
        store: Path of the store.

    Raises:
        StoreError: On entry, if the lock is taken, the store's path is a file, or the disk is
            full.
    """

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        super().__init__(self.store / "lock", f"store {self.store}", StoreError)

    def __enter__(self) -> Self:
        check_is_directory(self.store)
        with translate_disk_full(self.store):
            return super().__enter__()


def _describe_process() -> dict[str, str | int]:
    """Describe this process for the file beside the lock."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
