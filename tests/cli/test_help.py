"""`--help` says what typer's own drawing says, in its colours, on a terminal of any width."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand

import cli
from cli.app import Command

COMMANDS = sorted(path.stem for path in Path(cli.__file__).parent.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))
FRAME = "│─╭╮╰╯"
CYAN = "\x1b[1;36m"


def command_named(name: str) -> tuple[Any, Any]:
    """A command and a context of it."""
    command = typer.main.get_command(import_module(f"cli.{name}").app)
    return command, typer.Context(command, info_name=name)


def words_of(drawn: str) -> list[str]:
    """Without the frame and the marks between facts, in alphabetical order."""
    return sorted(word for part in drawn.split() if (word := part.strip(f"{FRAME}[];")))


@pytest.mark.parametrize("name", COMMANDS)
def test_it_says_what_typers_says(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    command, context = command_named(name)
    assert isinstance(command, Command)
    command.get_help(context)
    ours = capsys.readouterr().out
    TyperCommand.format_help(command, context, None)  # type: ignore[arg-type]
    typers = capsys.readouterr().out
    assert words_of(ours) == words_of(typers.replace("<bool>", ""))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_longer_than_the_terminal(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    command, context = command_named("evaluate")
    command.get_help(context)
    lines = capsys.readouterr().out.splitlines()
    assert {len(line) for line in lines if line.startswith(tuple(FRAME))} == {width}
    assert "…" not in "".join(lines)


def test_options_are_coloured_where_colours_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    command, context = command_named("report")
    command.get_help(context)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    command.get_help(context)
    assert f"{CYAN}--run" in capsys.readouterr().out
