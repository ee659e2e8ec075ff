"""What every command shares: common options, a log file, signals, and errors turned into exit codes.

    app = new_app()

    @app.command()
    @guarded
    def prepare(..., config: ConfigFile = None, assignments: Assignments = None, debug: Debug = False) -> None:
        log_to(run / "log.txt")
        ...

    def main() -> None:
        app()

Exit codes: 0 done; 1 unexpected error, or more inputs failed than allowed (`raise typer.Exit(1)`); 2 wrong usage
or input; 130 and 143 stopped by SIGINT or SIGTERM, can be run again. Nothing heavy is imported here: `--help` must
stay quick.
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
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML with one section per command (`params.yaml` is one)."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of this command's section; may be repeated.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

# Threads that wait by spinning for long (libgomp's default) slow everything down several times as soon as something else
# runs on the machine; ones that never spin lose a third on a quiet one. It must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
PROJECT_LOGGERS = ("cli", "grounding", "pipeline")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
TRIM_THRESHOLD_BYTES, MMAP_THRESHOLD_BYTES = (
    512 << 20,
    32 << 20,
)  # bytes; glibc takes no more for LARGE
log = logging.getLogger("cli")


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that every `finally` on the way out runs."""


def new_app() -> typer.Typer:
    """A typer app whose errors are ours to print. Its help is plain: drawing it takes three times as long as everything else it needs."""
    settings = {"max_content_width": 120}
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=False,
        context_settings=settings,
    )


def handle_errors(body: Callable[P, None]) -> Callable[P, None]:
    """Run a command's body: known errors become one line and an exit code, others go to the log file."""

    @functools.wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        began = time.monotonic()
        code = 1
        tune_malloc()
        with _handle_signals(), _configure_logging():
            try:
                body(*args, **kwargs)
                code = 0
            except typer.Exit as leave:
                code = leave.exit_code
            except BaseException as error:
                code = _report_error(error, debug=bool(kwargs.get("debug")))
            finally:
                log.info("exit code %d after %.1f s", code, time.monotonic() - began)
        if code:
            raise typer.Exit(code)

    return command


def tune_malloc() -> None:
    """Let glibc keep what is freed, up to `KEPT` bytes, for all threads together: the buffers of a step, or of a batch of frames, are
    else given back to the system and fetched again, page by page, by the next one. Nothing where there is another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in (
            (M_ARENA_MAX, 1),
            (M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
            (M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        ):
            mallopt(setting, value)


def _report_error(error: BaseException, debug: bool) -> int:
    """Say what went wrong on stderr and in the log; returns the exit code."""
    trace = "".join(traceback.format_exception(error))
    if debug:
        sys.stderr.write(trace)
    if isinstance(error, StvgError):
        return _print_error(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _print_error("stopped; run the same command again to go on", 130, word="interrupted")
    if isinstance(error, Terminated):
        return _print_error("stopped; run the same command again to go on", 143, word="terminated")
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    log.error("unexpected\n%s", trace)
    files = [
        handler.baseFilename
        for handler in logging.getLogger().handlers
        if isinstance(handler, _LogFile)
    ]
    where = (
        f"the traceback is in {files[-1]}"
        if files
        else "run again with --debug to see the traceback"
    )
    return _print_error(f"unexpected {type(error).__name__}: {error} ({where})", 1)


def _print_error(message: str, code: int, word: str = "error") -> int:
    from rich.console import Console
    from rich.text import Text

    log.error("%s: %s", word, message)
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{word}: ", "bold red"), message))
    return code


def print_info(message: str) -> None:
    """A line for the user on stdout, and in the log file."""
    log.info("%s", message)
    typer.echo(message)


def print_warning(message: str) -> None:
    """A warning on stderr, and in the log file."""
    from rich.console import Console
    from rich.text import Text

    log.warning("%s", message)
    Console(stderr=True, soft_wrap=True).print(Text.assemble(("warning: ", "bold yellow"), message))


class _LogFile(logging.FileHandler):
    """The log file of the running command."""


def log_to_run(run: Path) -> None:
    """`log_to` the run's log; not where the run is another's, which may be read and not written."""
    if os.access(run, os.W_OK):
        log_to(run / "log.txt")


def log_to(path: Path) -> None:
    """From here on write plain lines to `path` too (appended; folders are made). A second call adds a second file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the log file {path} cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)
    log.info("%s in %s", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), Path.cwd())


@contextmanager
def _configure_logging() -> Iterator[None]:
    """Our loggers at INFO while a command runs; its log files are closed after it."""
    for name in PROJECT_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    root = logging.getLogger()
    quiet = logging.NullHandler()
    root.addHandler(quiet)
    try:
        yield
    finally:
        root.removeHandler(quiet)
        for handler in [handler for handler in root.handlers if isinstance(handler, _LogFile)]:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _handle_signals() -> Iterator[None]:
    """SIGTERM raises `Terminated` once in this process; a second one kills, and forked children keep the default."""
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    try:
        before: Any = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
