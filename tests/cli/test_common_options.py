"""Options of every command: `-h`, `--version`, and names in the help texts that tables define."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

import pipeline
from grounding.metrics.protocols import PROTOCOLS
from grounding.sweep.tables import load_tables
from grounding.systems.registry import SYSTEMS
from pipeline.datasets import PARSERS
from tests.cli.test_help_is_light import COMMANDS, FOLDER, HEAVY

VERSION_PROGRAM = """
import sys
sys.argv = ["command", "--version"]
from cli.{command} import main
try:
    main()
except SystemExit as leave:
    assert not leave.code, leave.code
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def call(command: str, *arguments: str) -> Result:
    return CliRunner().invoke(importlib.import_module(f"cli.{command}").app, arguments)


def help_words(command: str) -> set[str]:
    """The words of a command's help text; names keep their digits, dashes and underscores."""
    return set(re.findall(r"[A-Za-z][\w-]*", call(command, "--help").stdout))


@pytest.mark.parametrize("command", COMMANDS)
def test_h_is_help(command: str) -> None:
    short, long = call(command, "-h"), call(command, "--help")
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "-h, --help" in short.stdout
    assert "--version" in short.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_version_needs_no_other_option_and_nothing_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VERSION_PROGRAM.format(command=command)],
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, modules = done.stdout.splitlines()
    assert version == f"stvg {pipeline.__version__}"
    assert not set(modules.split()) & HEAVY


@pytest.mark.parametrize("command", ["prepare", "extract"])
def test_help_names_every_data_set(command: str) -> None:
    assert PARSERS.keys() <= help_words(command)


def test_help_names_every_system_and_preset() -> None:
    words = help_words("train")
    assert SYSTEMS.keys() <= words
    for system in SYSTEMS.values():
        assert system.presets.keys() <= words


def test_help_names_every_table_of_sweeps() -> None:
    assert load_tables().keys() <= help_words("sweep")


def test_help_names_every_protocol() -> None:
    assert set(PROTOCOLS) <= help_words("evaluate")
