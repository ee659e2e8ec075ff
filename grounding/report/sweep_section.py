"""A sweep's part of the report: what the paper claims and what is seen, and the pictures of its table and curves."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from grounding.sweep.markdown import about, claim_text, costs_text, means, warnings
from pipeline.errors import InputError

FOLDER = "sweep"
"""In the report: the pictures."""


@dataclass(frozen=True)
class Ablations:
    """What the page shows: `tables` are a head and rows, for a sweep that says what its variants cost, and `notes` of it; `claims`
    rows of (claim, source, difference here, seen); `pictures` (title, path from the page)."""

    title: str
    about: str
    warnings: list[str]
    notes: list[str]
    tables: list[tuple[list[str], list[list[str]]]]
    claims: list[tuple[str, str, str, str]]
    pictures: list[tuple[str, str]]


def take_over(sweep: Path, out: Path) -> Ablations:
    """Read a finished sweep's table and copy its pictures into the report; an InputError where there is none."""
    try:
        table = json.loads((sweep / "table.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{sweep} holds no table.json: let stvg-sweep --out {sweep} finish first") from None
    except ValueError as error:
        raise InputError(f"{sweep / 'table.json'} is damaged ({error}): run stvg-sweep --out {sweep} again") from None
    if (out / FOLDER).resolve() == sweep.resolve():
        raise InputError(f"--sweep {sweep} is where the report puts its pictures: name another --out")
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    for old in (out / FOLDER).glob("*.png"):
        old.unlink()
    groups = sorted(path.stem.removeprefix("table-") for path in sweep.glob("table-*.png"))
    titles = {"table": "All queries", "curves": "Learning curves"} | {f"table-{name}": f"Only {name}" for name in groups}
    there = [name for name in titles if (sweep / f"{name}.png").is_file()]
    for name in there:
        shutil.copyfile(sweep / f"{name}.png", out / FOLDER / f"{name}.png")
    return Ablations(
        title=table["title"],
        about=about(table),
        warnings=[warning.strip("*") for warning in warnings(table)],
        notes=costs_text(table),
        tables=[means(table, section) for section in table["sections"]] if "unit" in table else [],
        claims=[claim_text(claim) for claim in table["claims"]],
        pictures=[(titles[name], f"{FOLDER}/{name}.png") for name in there],
    )
