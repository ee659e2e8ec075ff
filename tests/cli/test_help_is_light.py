"""`--help` must answer at once: no command imports what is heavy before its body runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cli

HEAVY = {
    *(
        "torch",
        "torchvision",
        "transformers",
        "dask",
        "distributed",
        "zarr",
        "h5py",
        "matplotlib",
        "decord",
        "av",
        "numpy",
    ),
    *("pydantic", "yaml", "pygments", "markdown_it"),
}
FOLDER = Path(cli.__file__).parent
COMMANDS = sorted(
    path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")
)
PROGRAM = """
import json, sys
{before}
sys.argv = ["command", "--help"]
from cli.{command} import main
try:
    main()
except SystemExit as leave:
    assert not leave.code, leave.code
print("\\n" + json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""


def modules_after_help(command: str, before: str = "") -> set[str]:
    """Top-level modules a fresh interpreter has loaded once `--help` was printed."""
    program = PROGRAM.format(command=command, before=before)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=FOLDER.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_there_are_commands() -> None:
    assert {"evaluate", "prepare", "report"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert not modules_after_help(command) & HEAVY


def test_this_check_can_fail() -> None:
    assert modules_after_help("report", before="import h5py") & HEAVY >= {"h5py", "numpy"}
