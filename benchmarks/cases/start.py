"""How long commands take to begin: `--help` of each, and what importing the heavy libraries costs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cli
from benchmarks.case import Case, Floor, Group, Way
from benchmarks.timing import in_turns, shares

FOLDER = Path(cli.__file__).parent
BARE = "python that does nothing"
COUNTED = """
import os, sys
about = [getattr(module, '__dict__', {}) for module in [*sys.modules.values()]]  # some of torch's make up whatever they are asked for
files = {own.get('__cached__') or own.get('__file__') for own in about}
print(sum(os.path.getsize(file) for file in files if isinstance(file, str) and os.path.isfile(file)))
"""
"""Prints the bytes of the files that the modules so far lie in."""
IMPORTED = re.compile(r"import time: +(?P<own>\d+) \| +\d+ \| +(?P<name>\S+)")
"""A line of `-X importtime`: microseconds of a module itself, then with what it imports."""
IMPORTS = ("torch", "pipeline.store", "pipeline.extraction.run", "grounding.training.train", "grounding.predictor.grounder")


@dataclass
class Start(Case):
    """Whole processes, against a Python that does nothing: every command's `--help`, which is checked to print its usage and must
    take less than half a second, and imports of the heaviest parts, which a command pays once its arguments are known to be good.
    The floor is reading the compiled modules and the extension modules that the process imports, each once; of the libraries that
    those link, which are mapped and not read, nothing is in it. Where the time goes is said of importing alone, by package.
    """

    packages = ("typer", "torch")
    rounds: int = 2
    commands: tuple[str, ...] = tuple(
        sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))
    )
    imports: tuple[str, ...] = IMPORTS

    def agree(self) -> None:
        for command in self.commands:
            assert "Usage" in python(help_of(command)), command

    def measure(self) -> list[Group]:
        helps = {f"{command} --help": partial(python, help_of(command)) for command in self.commands}
        imports = {f"import {module}": partial(python, f"import {module}") for module in self.imports}
        groups = {"commands": helps, "imports": imports}
        return [Group(title, self._ways({BARE: partial(python, "pass"), **programs})) for title, programs in groups.items()]

    def _ways(self, programs: dict[str, partial[str]]) -> dict[str, Way]:
        found = {name: Way(seconds) for name, seconds in in_turns(programs, self.rounds).items()}
        for name, way in found.items():
            way.floor = Floor(bytes=bytes_imported(*programs[name].args))
            way.top = [] if name == BARE else importing(*programs[name].args)
        return found


def help_of(command: str) -> str:
    return f"import sys; sys.argv = ['command', '--help']; from cli.{command} import main; main()"


def bytes_imported(program: str) -> int:
    """Of the files that the modules a program imports lie in: compiled, or machine code."""
    return int(python(f"try: {program}\nexcept SystemExit: pass\n{COUNTED}").splitlines()[-1])


def importing(program: str) -> list[tuple[str, float]]:
    """The packages (their first two names) whose modules take most of the time of importing, without what they import of others."""
    times: defaultdict[str, float] = defaultdict(float)
    for line in fresh_python("-X", "importtime", "-c", program).stderr.splitlines():
        found = IMPORTED.fullmatch(line)
        if found:
            times[".".join(found["name"].split(".")[:2])] += int(found["own"])
    return shares(times)


def python(program: str) -> str:
    """What a fresh Python prints."""
    return fresh_python("-c", program).stdout


def fresh_python(*given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *given], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
