"""`--help`: usage, what the command does, and a panel each of arguments and options, as typer draws them.

Typer's own drawing begins by importing all that it might draw, Markdown and the source code of tracebacks among it, which takes
as long as everything else that a command does to answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

THEME = Theme({"help.option": "bold cyan", "help.kind": "bold yellow", "help.usage": "yellow"})


class Words(RegexHighlighter):
    """Options, kinds of values, and the word before the usage."""

    base_style = "help."
    highlights = (r"(^|\W)(?P<option>--[\w-]+)", r"(?P<kind><[^>]+>)", r"(?P<usage>Usage: )")


words = Words()


def show_help(command: Any, context: Any) -> None:
    """Print a command's help on stdout; both are click's, whichever typer brings."""
    console = Console(theme=THEME, highlighter=words)
    console.print(Padding(words(command.get_usage(context)), 1), style="bold")
    first, *more = (" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n"))
    said = [words(first), *(words(Text(f"\n{part}", style="dim")) for part in more)]
    console.print(Padding(Text("\n").join(said), (0, 1, 1, 1)))
    shown = [(param, param.get_help_record(context)) for param in command.get_params(context)]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        rows = [_row(param.required, *record) for param, record in shown if record and param.param_type_name == kind]
        if rows:
            console.print(Panel(_table(rows), title=Text(title), title_align="left", border_style="dim"))


def _row(required: bool, head: str, said: str) -> tuple[Text, Text, Text, Columns]:
    """A parameter's record, such as `--out DIR` and `The folder.  [required]`, in its parts. Facts in brackets stay whole."""
    name, _, kind = head.partition(" ")
    text, gap, facts = said.rpartition("  [")
    about = [words(text), Text(f"[{facts}", "red" if required else "dim")] if gap else [words(said)]
    return Text("*" if required else "", "red"), words(name), Text(kind, "help.kind"), Columns(about)


def _table(rows: Sequence[tuple[Text, Text, Text, Columns]]) -> Table:
    """As wide as the terminal, names and kinds whole; stars stand before names where there is any."""
    table = Table(show_header=False, expand=True, box=None, pad_edge=False)
    starred = any(star for star, *_ in rows)
    for _ in range(2 + starred):
        table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for row in rows:
        table.add_row(*(row if starred else row[1:]))
    return table
