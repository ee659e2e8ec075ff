"""One writer per store: the second is told who the first is, and a dead owner holds nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import StoreLock, StoreWriter

HOLD = """
import sys, time
from pathlib import Path
from pipeline.store import StoreLock
with StoreLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    message = rf"is in use by pid {owner.pid} on \S+ since 20\S+ \(-c .*\): wait until it ends, or stop it"
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path, "shapes", "data").__enter__()
    (tmp_path / "lock.json").unlink()
    with pytest.raises(StoreError, match="in use by another process that has not yet written its name"):
        StoreLock(tmp_path).__enter__()


def test_a_killed_owner_holds_nothing(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with StoreLock(tmp_path):
        assert (tmp_path / "lock.json").exists()
    assert not (tmp_path / "lock.json").exists()
