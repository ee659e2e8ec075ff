"""Parts that all commands share: options, log files, signals, and exit codes for errors.

    app = new_app()

    @app.command()
    @handle_errors
    def prepare(
        ...,
        config: ConfigFile = None,
        assignments: Assignments = None,
        debug: Debug = False,
        version: Version = False,
    ) -> None:
        log_to(run / "log.txt")
        ...

    def main() -> None:
        app()

Exit codes:
    0: done.
    1: unexpected error, or more inputs failed than allowed (`raise typer.Exit(1)`).
    2: wrong usage or wrong input.
    130 and 143: stopped by SIGINT or SIGTERM; the same command can be run again.

No heavy library is imported here, because `--help` must answer at once.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec

import typer

from pipeline.errors import InputError, StvgError

P = ParamSpec("P")


def _print_version(requested: bool) -> None:
    """Print the version and leave, if `--version` was given."""
    if not requested:
        return

    import pipeline

    typer.echo(f"stvg {pipeline.__version__}")
    raise typer.Exit


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with one section per command, such as params.yaml.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of this command's section. May be repeated. It overrides --config.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Version = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Print the version and exit.",
        callback=_print_version,
        is_eager=True,
    ),
]

# Threads that spin for a long time while waiting (libgomp's default) slow all work down several
# times as soon as another program uses the machine. Threads that never spin lose a third on an
# idle machine. The variable must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

PROJECT_LOGGERS = ("cli", "grounding", "pipeline")

# Names of mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

TRIM_THRESHOLD_BYTES = 512 << 20
MMAP_THRESHOLD_BYTES = 32 << 20
"""The largest value that glibc accepts."""

log = logging.getLogger("cli")


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` block runs."""


def new_app() -> typer.Typer:
    """Create the typer app of a command.

    The help text is plain: rich formatting takes three times as long as everything else in
    `--help`. Errors are printed by `handle_errors`, not by typer.

    Returns:
        An app without commands.
    """
    context_settings = {"max_content_width": 120, "help_option_names": ["-h", "--help"]}
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=False,
        context_settings=context_settings,
    )


def handle_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command's body, so that errors become messages and exit codes.

    Known errors (`StvgError`) become one line on stderr. The traceback of an unknown error goes
    to the log file.

    Args:
        body: Function of the command.

    Returns:
        A function with the same parameters. It raises `typer.Exit` for exit codes other than 0.
    """

    @functools.wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        start_time = time.monotonic()
        exit_code = 1
        tune_malloc()

        with _handle_signals(), _configure_logging():
            try:
                body(*args, **kwargs)
                exit_code = 0
            except typer.Exit as error:
                exit_code = error.exit_code
            except BaseException as error:
                exit_code = _report_error(error, debug=bool(kwargs.get("debug")))
            finally:
                log.info("exit code %d after %.1f s", exit_code, time.monotonic() - start_time)

        if exit_code:
            raise typer.Exit(exit_code)

    return command


def tune_malloc() -> None:
    """Let glibc reuse freed memory up to `TRIM_THRESHOLD_BYTES`, in one arena for all threads.

    Otherwise the large buffers of a training step or of a batch of frames are returned to the
    kernel, and the next step fetches them again page by page. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return

    mallopt(M_ARENA_MAX, 1)
    mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _report_error(error: BaseException, debug: bool) -> int:
    """Report an error on stderr and in the log, and return the exit code."""
    traceback_text = "".join(traceback.format_exception(error))
    if debug:
        sys.stderr.write(traceback_text)

    # Expected ends: wrong input, a signal, or an explicit exit.
    if isinstance(error, StvgError):
        return _print_error(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _print_error("stopped; run the same command again to go on", 130, word="interrupted")
    if isinstance(error, Terminated):
        return _print_error("stopped; run the same command again to go on", 143, word="terminated")
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)

    # Anything else is a bug: keep its traceback, and say how to see it.
    log.error("unexpected\n%s", traceback_text)
    log_files = [handler.baseFilename for handler in _open_log_files()]
    if log_files:
        hint = f"the traceback is in {log_files[-1]}"
    else:
        hint = "run again with --debug to see the traceback"
    return _print_error(f"unexpected {type(error).__name__}: {error} ({hint})", 1)


def _print_error(message: str, exit_code: int, word: str = "error") -> int:
    """Print one line with the error to stderr and to the log, and return the exit code."""
    from rich.console import Console
    from rich.text import Text

    log.error("%s: %s", word, message)
    line = Text.assemble((f"{word}: ", "bold red"), message)
    Console(stderr=True, soft_wrap=True).print(line)
    return exit_code


def print_info(message: str) -> None:
    """Print a line for the user on stdout, and write it to the log file.

    Args:
        message: The line.
    """
    log.info("%s", message)
    typer.echo(message)


def print_warning(message: str) -> None:
    """Print a warning on stderr, and write it to the log file.

    Args:
        message: The warning, without the word "warning".
    """
    from rich.console import Console
    from rich.text import Text

    log.warning("%s", message)
    line = Text.assemble(("warning: ", "bold yellow"), message)
    Console(stderr=True, soft_wrap=True).print(line)


class _LogFile(logging.FileHandler):
    """The log file of the running command."""


def log_to_run(run: Path) -> None:
    """Log to the run's `log.txt`, if this user may write to the run.

    Args:
        run: Run directory. Without write permission nothing is logged.
    """
    if os.access(run, os.W_OK):
        log_to(run / "log.txt")


def log_to(path: Path) -> None:
    """Append log lines to a file until the command ends.

    A second call adds a second file.

    Args:
        path: The log file. Missing folders are made.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the log file {path} cannot be written: {error.strerror}") from None

    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)

    # The first line is the command, so that the log says how to repeat it.
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    log.info("%s in %s", command, Path.cwd())


def _open_log_files() -> list[_LogFile]:
    """Return the open log files of the running command, in the order they were opened."""
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _LogFile)]


@contextmanager
def _configure_logging() -> Iterator[None]:
    """Set the project's loggers to INFO, and close the log files at the end of the command."""
    for name in PROJECT_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)

    # Without any handler, Python prints warnings to stderr by itself.
    root = logging.getLogger()
    null_handler = logging.NullHandler()
    root.addHandler(null_handler)

    try:
        yield
    finally:
        root.removeHandler(null_handler)
        for handler in _open_log_files():
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _handle_signals() -> Iterator[None]:
    """Raise `Terminated` for the first SIGTERM; a second SIGTERM kills.

    Forked children keep the default action.
    """
    owner_pid = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner_pid:
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    try:
        previous_handler: Any = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # Not the main thread: another part of the program handles signals.
        yield
        return

    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
