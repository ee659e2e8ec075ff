"""One writer per store: a lock the kernel frees when its owner dies, and beside it who the owner is.

The kernel's lock alone decides, on a network file system across hosts; a dead owner's `lock.json` means nothing.
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

from filelock import FileLock, Timeout

from pipeline.errors import StoreError
from pipeline.records import write_json
from pipeline.store.disk import noticing_full_disk


class StoreLock:
    """Context that holds `<store>/lock`; a second owner is refused at once with a StoreError that names the first.

    The owner's pid, host, command and start stand in `<store>/lock.json` while the lock is held.
    """

    def __init__(self, store: Path) -> None:
        self.store = Path(store)
        self._owner = self.store / "lock.json"
        self._lock = FileLock(self.store / "lock", thread_local=False)

    def __enter__(self) -> StoreLock:
        self.store.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(f"store {self.store} is in use by {self._describe_owner()}: wait until it ends, or stop it") from None
        try:
            with noticing_full_disk(self.store):
                write_json(self._owner, _this_process())
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_bytes())
            return f"pid {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process that has not yet written its name"


def _this_process() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
