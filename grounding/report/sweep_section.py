"""A sweep's section of the report: the paper's claims, and the images of its table and curves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding.sweep.markdown import (
    build_means_table,
    describe_table,
    format_claim_cells,
    format_costs_note,
    list_warnings,
)
from pipeline.errors import InputError

SWEEP_DIR = "sweep"
"""Folder of the images in the report."""


@dataclass(frozen=True)
class Ablations:
    """Content of the sweep's section.

    Attributes:
        title: Title of the sweep.
        description: Its data set, split, protocol, seeds and steps.
        warnings: Reasons to distrust the table.
        notes: Notes on costs, for a sweep with costs.
        tables: `(header, rows)` of each table, for a sweep with costs.
        claims: `(claim, source, difference here, seen)` of each claim of the paper.
        images: `(title, path from the page)` of each image.
    """

    title: str
    description: str
    warnings: list[str]
    notes: list[str]
    tables: list[tuple[list[str], list[list[str]]]]
    claims: list[tuple[str, str, str, str]]
    images: list[tuple[str, str]]


def copy_sweep_outputs(sweep_dir: Path, out: Path) -> Ablations:
    """Read a finished sweep's table and copy its images into the report.

    Args:
        sweep_dir: The sweep's folder.
        out: The report's folder.

    Returns:
        Content of the sweep's section.

    Raises:
        InputError: If the sweep has not finished, its table is damaged, or `sweep_dir` is the
            folder of the report's images.
    """
    table = _read_table(sweep_dir)

    image_dir = out / SWEEP_DIR
    if image_dir.resolve() == sweep_dir.resolve():
        raise InputError(
            f"--sweep {sweep_dir} is the folder of the report's own images: choose another --out"
        )

    image_titles = _list_image_titles(sweep_dir)
    _replace_images(sweep_dir, image_dir, list(image_titles))
    images = [(title, f"{SWEEP_DIR}/{name}.png") for name, title in image_titles.items()]

    # Tables of numbers are shown for sweeps with costs only.
    tables = []
    if "unit" in table:
        tables = [build_means_table(table, section) for section in table["sections"]]

    return Ablations(
        title=table["title"],
        description=describe_table(table),
        warnings=[warning.strip("*") for warning in list_warnings(table)],
        notes=format_costs_note(table),
        tables=tables,
        claims=[format_claim_cells(claim) for claim in table["claims"]],
        images=images,
    )


def _read_table(sweep_dir: Path) -> dict[str, Any]:
    """Read `table.json` of a sweep."""
    path = sweep_dir / "table.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{sweep_dir} holds no table.json: let stvg-sweep --out {sweep_dir} finish first"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}): run stvg-sweep --out {sweep_dir} again"
        ) from None


def _list_image_titles(sweep_dir: Path) -> dict[str, str]:
    """Return the titles of a sweep's images by file name without suffix, in display order."""
    titles = {"table": "All queries", "curves": "Learning curves"}

    # One more table per group of queries.
    groups = sorted(path.stem.removeprefix("table-") for path in sweep_dir.glob("table-*.png"))
    for group in groups:
        titles[f"table-{group}"] = f"Only {group}"

    return {name: title for name, title in titles.items() if (sweep_dir / f"{name}.png").is_file()}


def _replace_images(sweep_dir: Path, image_dir: Path, names: Sequence[str]) -> None:
    """Copy images of a sweep, in place of an earlier report's."""
    image_dir.mkdir(parents=True, exist_ok=True)

    for old_path in image_dir.glob("*.png"):
        old_path.unlink()

    for name in names:
        shutil.copyfile(sweep_dir / f"{name}.png", image_dir / f"{name}.png")
