"""The files of a sweep's table: `table.json`, `table.md`, and pictures."""

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
    """Write the table into the sweep's folder and give the paths: all queries in `table.png`, a group's in `table-<group>.png`."""
    pictures = []
    for group in table["groups"]:
        pictures.append(out / ("table.png" if group == ALL_QUERIES else f"table-{group}.png"))
        save_png(plot_table(table, group), pictures[-1])
    curves = plot_learning_curves(table, out)
    if curves is not None:
        pictures.append(out / "curves.png")
        save_png(curves, pictures[-1])
    write_json(out / "table.json", table)
    with atomic_write(out / "table.md") as aside:
        aside.write_text(render_markdown(table, [path.name for path in pictures]), encoding="utf-8")
    return [out / "table.json", out / "table.md", *pictures]
