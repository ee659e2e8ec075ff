"""One writer per store: the second is told who the first is, and a dead owner holds nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.store import StoreLock, StoreWriter

SECOND = """
import sys
from pathlib import Path
from pipeline.errors import StoreError
from pipeline.store import StoreWriter
try:
    with StoreWriter(Path(sys.argv[1]), "shapes", "data"):
        print("got it")
except StoreError as error:
    print(error)
"""
LEAVE_CHILD = """
import os, sys, time
from pathlib import Path
from pipeline.store import StoreLock
lock = StoreLock(Path(sys.argv[1])).__enter__()
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
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
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_told_who_the_first_is(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    message = (
        rf"is in use by pid {owner.pid} on \S+ since 20\S+ \(-c .*\): "
        "wait until it ends, or stop it"
    )
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path, "shapes", "data").__enter__()
    (tmp_path / "lock.json").unlink()
    with pytest.raises(
        StoreError, match="in use by another process that has not yet written its name"
    ):
        StoreLock(tmp_path).__enter__()


def test_a_killed_owner_holds_nothing(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with StoreLock(tmp_path):
        assert (tmp_path / "lock.json").exists()
    assert not (tmp_path / "lock.json").exists()


def second_writer(store: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", SECOND, str(store)], capture_output=True, text=True, check=True
    ).stdout


def test_a_second_process_is_told_who_the_first_is(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, "shapes", "data"):
        messages = second_writer(tmp_path)
    assert re.fullmatch(
        rf"store {tmp_path} is in use by pid {os.getpid()} "
        rf"on {re.escape(socket.gethostname())} since 20\S+ "
        rf"\({re.escape(shlex.join(sys.argv))}\): wait until it ends, or stop it\n",
        messages,
    )
    assert second_writer(tmp_path) == "got it\n"


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_what_a_dead_owner_left_means_nothing(tmp_path: Path, host: str) -> None:
    left = {
        "pid": 1 << 30,
        "host": host,
        "command": "stvg-extract",
        "since": "2026-01-01T00:00:00+00:00",
    }
    (tmp_path / "lock.json").write_text(json.dumps(left))
    (tmp_path / "lock").touch()
    with StoreLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_an_owner_on_another_host_is_named_by_it(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    """The lock is held, on a file system that two hosts share; the pid is that of nobody here."""
    named = {
        "pid": 1 << 30,
        "host": "elsewhere",
        "command": "stvg-extract --dataset vidstg",
        "since": "2026-01-01T00:00:00+00:00",
    }
    (tmp_path / "lock.json").write_text(json.dumps(named))
    with pytest.raises(
        StoreError,
        match=r"in use by pid 1073741824 on elsewhere since 2026-\S+ "
        r"\(stvg-extract --dataset vidstg\): wait",
    ):
        StoreLock(tmp_path).__enter__()


def test_a_child_that_outlives_its_owner_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVE_CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(StoreError, match=f"in use by pid {process.pid} on "):
                StoreLock(tmp_path).__enter__()
            process.kill()
            process.wait()
            with StoreLock(tmp_path):
                assert Path(f"/proc/{child}").exists()
        finally:
            os.kill(child, signal.SIGKILL)
