"""A sweep's part of the report: what the paper claims and what is seen, and the pictures of its table and curves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from grounding.sweep.markdown import (
    build_means_table,
    describe_table,
    format_claim_cells,
    format_costs_note,
    list_warnings,
)
from pipeline.errors import InputError

SWEEP_DIR = "sweep"
"""In the report: the pictures."""


@dataclass(frozen=True)
class Ablations:
    """What the page shows: `tables` are a head and rows, for a sweep that says what its variants cost, and `notes` of it; `claims`
    rows of (claim, source, difference here, seen); `pictures` (title, path from the page).
    """

    title: str
    description: str
    warnings: list[str]
    notes: list[str]
    tables: list[tuple[list[str], list[list[str]]]]
    claims: list[tuple[str, str, str, str]]
    images: list[tuple[str, str]]


def copy_sweep_outputs(sweep_dir: Path, out: Path) -> Ablations:
    """Read a finished sweep's table and copy its pictures into the report; an InputError where there is none."""
    try:
        table = json.loads((sweep_dir / "table.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{sweep_dir} holds no table.json: let stvg-sweep --out {sweep_dir} finish first"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{sweep_dir / 'table.json'} is damaged ({error}): run stvg-sweep --out {sweep_dir} again"
        ) from None
    if (out / SWEEP_DIR).resolve() == sweep_dir.resolve():
        raise InputError(
            f"--sweep {sweep_dir} is where the report puts its pictures: name another --out"
        )
    (out / SWEEP_DIR).mkdir(parents=True, exist_ok=True)
    for old in (out / SWEEP_DIR).glob("*.png"):
        old.unlink()
    groups = sorted(path.stem.removeprefix("table-") for path in sweep_dir.glob("table-*.png"))
    titles = {"table": "All queries", "curves": "Learning curves"} | {
        f"table-{name}": f"Only {name}" for name in groups
    }
    there = [name for name in titles if (sweep_dir / f"{name}.png").is_file()]
    for name in there:
        shutil.copyfile(sweep_dir / f"{name}.png", out / SWEEP_DIR / f"{name}.png")
    return Ablations(
        title=table["title"],
        description=describe_table(table),
        warnings=[warning.strip("*") for warning in list_warnings(table)],
        notes=format_costs_note(table),
        tables=[build_means_table(table, section) for section in table["sections"]]
        if "unit" in table
        else [],
        claims=[format_claim_cells(claim) for claim in table["claims"]],
        images=[(titles[name], f"{SWEEP_DIR}/{name}.png") for name in there],
    )
