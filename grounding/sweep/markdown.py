"""A sweep's table as text: `table.md`, and the cells that the terminal shows too. In percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grounding.metrics.scores import MEANS
from grounding.sweep.statistics import ALL, is_sure

NONE = "–"
INTERVALS = (
    "Means over the seeds' runs with their 95 % intervals, which account for another draw of the videos and for other seeds (how: "
    "`grounding/sweep/statistics.py`); differences are paired, query by query and seed by seed, and **bold** where the interval excludes 0. "
    "An ensemble is one answer: its own interval is over videos alone. Intervals are not corrected for their number."
)
COSTS = (
    "All are trained for the same time: the steps of {unit}, divided by what a step takes. Parameters are those of the network, with an"
    " encoder that is part of it; time and memory of a training step, at its peak, are multiples of {unit}'s, as sweeps.yaml states."
)
PAPER = "The paper's figures are of other data, features and training: the order of the rows is what compares, not the height."


def markdown(table: Mapping[str, Any], pictures: Iterable[str]) -> str:
    """The whole of `table.md`; `pictures` are the names of files beside it."""
    parts = [f"# {table['title']}", about(table), *warnings(table), INTERVALS, *costs_text(table)]
    parts += ["\n".join(f"![{name}]({name})" for name in pictures)]
    if table["claims"]:
        parts += ["## What the paper says, and what is seen", claims_text(table)]
    for section in table["sections"]:
        parts += [
            f"## {section['title']}",
            grid(*means(table, section)),
            _differences(table, section, ALL, MEANS),
            *_published(table, section),
        ]
    for group in [name for name in table["groups"] if name != ALL]:
        parts += [f"## Only {group} ({table['groups'][group]['queries']:,} queries)"]
        for section in table["sections"]:
            parts += [f"### {section['title']}", grid(*means(table, section, group)), _differences(table, section, group, MEANS[:3])]
    return "\n\n".join(parts) + "\n"


def about(table: Mapping[str, Any]) -> str:
    """What a table stands on."""
    count, steps = table["groups"][ALL], " or ".join(f"{step:,}" for step in table["steps"]) + " steps each"
    if "unit" in table:
        steps = f"all trained for the time of {table['variants'][table['unit']]['steps']:,} steps of {table['unit']}"
    return (
        f"Data set {table['dataset']}, split {table['split']}: {count['queries']:,} queries about {count['videos']:,} videos. "
        f"{len(table['seeds'])} seeds ({', '.join(map(str, table['seeds']))}), {steps}. Protocol {table['protocol']}."
    )


def warnings(table: Mapping[str, Any]) -> list[str]:
    """What makes the rows of a table less comparable."""
    found = []
    if len(table["steps"]) > 1 and "unit" not in table:
        found.append(f"**The runs differ in their steps ({', '.join(map(str, table['steps']))}).**")
    if len(table["codes"]) > 1:
        found.append(
            f"**The runs were trained by {len(table['codes'])} versions of the code: train in a new folder to compare them strictly.**"
        )
    return found


def costs_text(table: Mapping[str, Any]) -> list[str]:
    """What the costs of a table are; [] for one without."""
    return [COSTS.format(unit=table["unit"])] if "unit" in table else []


def cost_head(table: Mapping[str, Any]) -> list[str]:
    """The columns of `cost_cells`."""
    return ["parameters", "steps", f"step ÷ {table['unit']}'s", f"memory ÷ {table['unit']}'s"] if "unit" in table else []


def cost_cells(table: Mapping[str, Any], name: str) -> list[str]:
    """What a variant takes: `0.31 M`, `1,500`, `1.00`, `1.00`; [] where the table has no costs."""
    variant = table["variants"][name]
    if "cost" not in variant:
        return [NONE] * len(cost_head(table))
    cost = variant["cost"]
    return [f"{variant['parameters'] / 1e6:.2f} M", f"{variant['steps']:,}", f"{cost['step']:.2f}", f"{cost['memory']:.2f}"]


def label(table: Mapping[str, Any], name: str) -> str:
    """A variant's name and what the paper calls it."""
    shows = table["variants"][name]["shows"]
    return name if shows.replace(" ", "_") == name else f"{name}: {shows}"


def mean_text(one: Mapping[str, Any] | None, gap: str = " ") -> str:
    """`62.0 [58.1, 65.9]`."""
    return _text(one, gap, "")


def difference_text(one: Mapping[str, Any] | None, gap: str = " ") -> str:
    """`-3.1 [-5.0, -1.2]`."""
    return _text(one, gap, "+")


def _text(one: Mapping[str, Any] | None, gap: str, sign: str) -> str:
    if one is None:
        return NONE
    mean, low, high = (None if one[key] is None else f"{round(100 * one[key], 1) + 0.0:{sign}.1f}" for key in ("mean", "low", "high"))
    return f"{mean}" if low is None else f"{mean}{gap}[{low}, {high}]"


def published_text(section: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> str:
    """The paper's figure and its difference to the paper's reference: `36.4 (-2.3)`."""
    value = row["published"].get(metric)
    if value is None:
        return NONE
    against = next((other["published"].get(metric) for other in section["rows"] if other["variant"] == section["reference"]), None)
    return f"{value:.1f}" + ("" if against is None or row["variant"] == section["reference"] else f" ({value - against:+.1f})")


def claim_text(claim: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A claim's cells: what is said, by whom, the difference here, and whether it is seen."""
    said = f"{claim['more']} > {claim['less']} by {claim['metric']}"
    here = NONE if claim["difference"] is None else difference_text({**claim, "mean": claim["difference"]})
    return said, claim["source"], here, claim["seen"]


def claims_text(table: Mapping[str, Any]) -> str:
    """All claims; `yes` and `no` where the interval excludes 0."""
    return grid(["claim", "source", "difference here", "seen"], [claim_text(claim) for claim in table["claims"]])


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; what could end a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def means(table: Mapping[str, Any], section: Mapping[str, Any], group: str = ALL) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a section's means, with what they cost (for all queries) and seed by seed."""
    rows = []
    for row in section["rows"]:
        found = table["variants"][row["variant"]]["groups"][group]
        first = next(iter(found), None)
        seeds = ", ".join(f"{100 * one:.1f}" for one in found[first]["seeds"]) if first else NONE
        costs = cost_cells(table, row["variant"]) if group == ALL else []
        rows.append([label(table, row["variant"]), *(mean_text(found.get(metric)) for metric in MEANS), *costs, f"{first}: {seeds}"])
    return ["", *MEANS, *(cost_head(table) if group == ALL else []), "seed by seed"], rows


def _differences(table: Mapping[str, Any], section: Mapping[str, Any], group: str, metrics: Sequence[str]) -> str:
    rows = []
    for row in section["rows"]:
        if "differences" in row:
            found = [row["differences"][group].get(metric) for metric in metrics]
            rows.append(
                [label(table, row["variant"]), *(f"**{difference_text(one)}**" if is_sure(one) else difference_text(one) for one in found)]
            )
    return grid([f"minus {section['reference']}", *metrics], rows)


def _published(table: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    """What the paper prints, with differences to its own reference."""
    source = section["published"]
    if source is None:
        return []
    rows = [
        [label(table, row["variant"]), *(published_text(section, row, metric) for metric in MEANS)]
        for row in section["rows"]
        if row["published"]
    ]
    return [f"{source['method']} on {source['dataset']}, {source['split']} (published). {PAPER}", grid(["published", *MEANS], rows)]
