"""Commands in processes of their own that start at once, for tests that kill and signal them.

The processes are forked from one server per test process. The server has imported the libraries
that take seconds to import, and has started no threads.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

PRELOADED = (
    "cli.extract",
    "cli.console.dataset_options",
    "cli.prepare",
    "cli.train",
    "distributed",
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "grounding.predictor.grounder",
    "grounding.training.train",
    "pipeline.datasets.prepare",
    "pipeline.datasets.shapes.make",
    "pipeline.encoders.appearance",
    "pipeline.extraction.run",
    "pytorchvideo.models.slowfast",
    "torch.distributed",
    "transformers.models.roberta.modeling_roberta",
)
"""Modules that the server imports."""


def get_fork_server() -> ForkServerContext:
    """Start the server if it is not running, and return the context of its processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    ensure_running()
    return context


def list_forked_processes() -> list[psutil.Process]:
    """Return the live processes that were forked from the server."""
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    return psutil.Process(server._forkserver_pid).children()


class ForkedCommand:
    """`python -m MODULE ARGUMENTS` in a forked process, with the interface of `subprocess.Popen`.

    A program's file may stand in place of the module.

    Attributes:
        output_path: File that receives stdout and stderr.
        process: The process, as `multiprocessing` shows it.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        output_path: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.output_path = output_path
        self.process = start_command(module, arguments, output_path, environment, cwd)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything that the command has printed so far."""
        return self.output_path.read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return the exit code.

        Raises:
            TimeoutError: The process still runs after `timeout` seconds.
        """
        self.process.join(timeout)
        exit_code = self.process.exitcode
        if exit_code is None:
            raise TimeoutError(f"still running after {timeout} s:\n{self.output}")
        return exit_code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, if it runs, and wait for its end."""
        self.process.kill()
        self.process.join()


def start_command(
    module: str,
    arguments: Sequence[str],
    output_path: Path,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> BaseProcess:
    """Fork a process that runs a command.

    Args:
        module: Module with a function `main`, or the file of a program.
        arguments: Arguments of the command.
        output_path: File to which stdout and stderr are appended.
        environment: Environment variables; by default those of this process.
        cwd: Working directory; by default that of this process.

    Returns:
        The started process, the leader of a session of its own.
    """
    output_path.touch()
    variables = dict(os.environ if environment is None else environment)
    process = get_fork_server().Process(
        target=_run_command,
        args=(module, list(arguments), output_path, variables, cwd or Path.cwd()),
    )
    process.start()
    return process


def _run_command(
    module: str,
    arguments: list[str],
    output_path: Path,
    environment: dict[str, str],
    cwd: Path,
) -> None:
    """Run the command in the forked process, whose state becomes that of a new process."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)

    # The server ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    output = os.open(output_path, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115

    # The console script of `cli.extract` is `stvg-extract`.
    sys.argv = [module.replace("cli.", "stvg-"), *arguments]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        importlib.import_module(module).main()


def wait_until(
    condition: Callable[[], object], timeout: float, commands: Sequence[ForkedCommand] = ()
) -> None:
    """Wait until a function returns a true value, while all commands run.

    Args:
        condition: Function without arguments.
        timeout: Seconds after which the test fails.
        commands: Commands that must still run.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        outputs = [command.output for command in commands]
        assert time.monotonic() < deadline, outputs
        assert all(command.poll() is None for command in commands), outputs
        time.sleep(0.02)
