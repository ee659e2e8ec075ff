"""Start-up time of the commands: `--help` of each, and imports of heavy libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cli
from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.timing import compute_top_shares, time_interleaved

CLI_DIR = Path(cli.__file__).parent
EMPTY_PROGRAM = "python that does nothing"
COUNT_BYTES_CODE = """
import os, sys
# `__dict__`, because some modules of torch invent every attribute
variables = [getattr(module, '__dict__', {}) for module in [*sys.modules.values()]]
paths = {names.get('__cached__') or names.get('__file__') for names in variables}
files = [path for path in paths if isinstance(path, str) and os.path.isfile(path)]
print(sum(os.path.getsize(file) for file in files))
"""
"""Program that prints the bytes of the files of all imported modules."""
IMPORT_TIME_LINE = re.compile(r"import time: +(?P<microseconds>\d+) \| +\d+ \| +(?P<name>\S+)")
"""A line of `-X importtime`: microseconds of a module itself, then with what it imports."""
HEAVY_MODULES = (
    "torch",
    "pipeline.store",
    "pipeline.extraction.run",
    "grounding.training.train",
    "grounding.predictor.grounder",
)


@dataclass
class Start(Case):
    """Start-up time of the commands and of heavy imports.

    Whole processes, against a Python that does nothing: every command's `--help`, which is checked
    to print its usage and must take less than half a second, and imports of the heaviest parts,
    which a command pays once its arguments are known to be good. The floor is reading the compiled
    modules and the extension modules that the process imports, each once; of the libraries that
    those link, which are mapped and not read, nothing is in it. Where the time goes is said of
    importing alone, by package.
    """

    packages = ("typer", "torch")
    rounds: int = 2
    commands: tuple[str, ...] = tuple(
        sorted(
            path.stem
            for path in CLI_DIR.glob("*.py")
            if "\ndef main(" in path.read_text(encoding="utf-8")
        )
    )
    imports: tuple[str, ...] = HEAVY_MODULES

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        for command in self.commands:
            assert "Usage" in run_program(build_help_program(command)), command

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        helps = {
            f"{command} --help": partial(run_program, build_help_program(command))
            for command in self.commands
        }
        imports = {
            f"import {module}": partial(run_program, f"import {module}") for module in self.imports
        }
        groups = {"commands": helps, "imports": imports}
        return [
            Comparison(
                title,
                self._build_measurements({EMPTY_PROGRAM: partial(run_program, "pass"), **programs}),
            )
            for title, programs in groups.items()
        ]

    def _build_measurements(self, programs: dict[str, partial[str]]) -> dict[str, Measurement]:
        found = {
            name: Measurement(seconds)
            for name, seconds in time_interleaved(programs, self.rounds).items()
        }
        for name, way in found.items():
            way.lower_bound = LowerBound(bytes=count_imported_bytes(*programs[name].args))
            way.hotspots = [] if name == EMPTY_PROGRAM else profile_imports(*programs[name].args)
        return found


def build_help_program(command: str) -> str:
    """Return a program that runs a command with `--help`.

    Args:
        command: Module of the command in `cli`.

    Returns:
        Python code.
    """
    return f"import sys; sys.argv = ['command', '--help']; from cli.{command} import main; main()"


def count_imported_bytes(program: str) -> int:
    """Count the bytes of the compiled files of all modules that a program imports.

    Args:
        program: Python code.

    Returns:
        Number of bytes.
    """
    return int(
        run_program(f"try: {program}\nexcept SystemExit: pass\n{COUNT_BYTES_CODE}").splitlines()[-1]
    )


def profile_imports(program: str) -> list[tuple[str, float]]:
    """Profile the imports of a program.

    Args:
        program: Python code.

    Returns:
        Pairs (first two names of a package, share of the import time without nested imports).
    """
    times: defaultdict[str, float] = defaultdict(float)
    for line in run_python("-X", "importtime", "-c", program).stderr.splitlines():
        match = IMPORT_TIME_LINE.fullmatch(line)
        if match:
            times[".".join(match["name"].split(".")[:2])] += int(match["microseconds"])
    return compute_top_shares(times)


def run_program(program: str) -> str:
    """Run a program in a fresh Python process.

    Args:
        program: Python code.

    Returns:
        Its standard output.
    """
    return run_python("-c", program).stdout


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python process.

    Args:
        *args: Arguments of the interpreter.

    Returns:
        The finished process with its output.
    """
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, check=True, cwd=CLI_DIR.parent
    )
