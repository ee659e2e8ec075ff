"""The frame of every command: errors become one line and an exit code, tracebacks go to the log,
signals unwind.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

COMMAND = """
import sys, time, typer
from pathlib import Path
from cli.console.app import Debug, handle_errors, log_to, new_app, print_info, print_warning
from pipeline.errors import InputError, StoreError

app = new_app()

@app.command()
@handle_errors
def command(log: str = "", debug: Debug = False):
    try:
        if log:
            log_to(Path(log))
        print_info("begun")
        sys.stdout.flush()
        {body}
    finally:
        print("cleaned up")

app()
"""
INPUT_ERROR = "raise InputError('query [bold]x[/bold] has no words: give it some')"


def start(body: str, *arguments: str) -> subprocess.Popen[str]:
    program = COMMAND.format(body=body)
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(body: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_done_command_exits_0_and_logs(tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.txt"
    code, out, err = run("print_warning('mind the gap')", "--log", str(log))
    assert (code, out, err) == (0, "begun\ncleaned up\n", "warning: mind the gap\n")
    text = log.read_text()
    assert "begun" in text
    assert "WARNING mind the gap" in text
    assert "exit code 0 after" in text.splitlines()[-1]


def test_a_known_error_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code, out, err = run(INPUT_ERROR, "--log", str(log))
    assert (code, err) == (2, "error: query [bold]x[/bold] has no words: give it some\n")
    assert out.endswith("cleaned up\n")
    assert "ERROR   error: query [bold]x[/bold] has no words" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_debug_shows_the_traceback() -> None:
    code, _, err = run(INPUT_ERROR, "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in err


def test_an_unexpected_error_names_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code, _, err = run("1 / 0", "--log", str(log))
    assert (code, err) == (
        1,
        f"error: unexpected ZeroDivisionError: division by zero (the traceback is in {log})\n",
    )
    assert "Traceback (most recent call last)" in log.read_text()


def test_an_unexpected_error_without_a_log_file_points_at_debug() -> None:
    code, _, err = run("1 / 0")
    assert code == 1
    assert (
        err == "error: unexpected ZeroDivisionError: division by zero (run again with --debug"
        " to see the traceback)\n"
    )


def test_a_command_may_choose_its_exit_code() -> None:
    assert run("raise typer.Exit(1)")[::2] == (1, "")


def test_wrong_usage_exits_2() -> None:
    code, _, err = run("pass", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("pass", "--log", str(tmp_path / "file" / "log.txt"))
    assert code == 2
    assert "log.txt cannot be written" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_cleans_up(number: signal.Signals, code: int, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    process = start("time.sleep(60)", "--log", str(log))
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == "cleaned up\n"
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert f"exit code {code}" in log.read_text()


def test_a_forked_child_dies_of_sigterm_as_ever() -> None:
    body = (
        "import os, signal; pid = os.fork(); os.kill(os.getpid(), signal.SIGTERM) if"
        " pid == 0 else print('child', os.waitpid(pid, 0)[1])"
    )
    code, out, _ = run(body)
    assert (code, out) == (0, f"begun\nchild {int(signal.SIGTERM)}\ncleaned up\n")


def test_signals_are_given_back() -> None:
    from cli.console.app import handle_errors

    before = signal.getsignal(signal.SIGTERM)
    handle_errors(lambda: None)()
    with pytest.raises(typer.Exit):
        handle_errors(_interrupt)()
    assert signal.getsignal(signal.SIGTERM) is before


def _interrupt() -> None:
    raise KeyboardInterrupt
