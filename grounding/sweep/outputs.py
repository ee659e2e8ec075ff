"""Files of a sweep's table: `table.json`, `table.md`, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grounding.sweep.figures import plot_learning_curves, plot_table, save_png
from grounding.sweep.markdown import render_markdown
from grounding.sweep.statistics import ALL_QUERIES
from pipeline.io.atomic import atomic_write
from pipeline.io.jsonl import write_json


def write_table(table: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the table and its figures into the sweep's folder.

    Args:
        table: Content of `table.json`.
        out: Folder of the sweep.

    Returns:
        The files: `table.json`, `table.md`, `table.png` for all queries, `table-<group>.png` for
        each group, and `curves.png` if there are curves.
    """
    figure_paths = []
    for group in table["groups"]:
        file_name = "table.png" if group == ALL_QUERIES else f"table-{group}.png"
        figure_paths.append(out / file_name)
        save_png(plot_table(table, group), out / file_name)

    curves = plot_learning_curves(table, out)
    if curves is not None:
        figure_paths.append(out / "curves.png")
        save_png(curves, out / "curves.png")

    write_json(out / "table.json", table)
    text = render_markdown(table, [path.name for path in figure_paths])
    with atomic_write(out / "table.md") as temporary_path:
        temporary_path.write_text(text, encoding="utf-8")
    return [out / "table.json", out / "table.md", *figure_paths]
