"""How long commands take to begin: `--help` of each, and what importing the heavy libraries costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cli
from benchmarks.case import Case, Group, Way
from benchmarks.measuring import in_turns

FOLDER = Path(cli.__file__).parent
BARE = "python that does nothing"
IMPORTS = ("torch", "pipeline.store", "pipeline.run", "grounding.train", "grounding.ask")


@dataclass
class Start(Case):
    """Whole processes, against a Python that does nothing: every command's `--help`, which is checked to print its usage and must
    take less than half a second, and imports of the heaviest parts, which a command pays once its arguments are known to be good.
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
        return {name: Way(seconds) for name, seconds in in_turns(programs, self.rounds).items()}


def help_of(command: str) -> str:
    return f"import sys; sys.argv = ['command', '--help']; from cli.{command} import main; main()"


def python(program: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=FOLDER.parent).stdout
