"""A sweep's table as text: `table.md`, and the cells that the terminal shows too. In percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grounding.metrics.scores import MEAN_METRICS
from grounding.sweep.statistics import ALL_QUERIES, is_significant

MISSING_CELL = "–"
INTERVALS_NOTE = (
    "Means over the seeds' runs with their 95 % intervals, which account for another draw of the videos and for other seeds (how: "
    "`grounding/sweep/statistics.py`); differences are paired, query by query and seed by seed, and **bold** where the interval excludes 0. "
    "An ensemble is one answer: its own interval is over videos alone. Intervals are not corrected for their number."
)
COSTS_NOTE = (
    "All are trained for the same time: the steps of {unit}, divided by what a step takes. Parameters are those of the network, with an"
    " encoder that is part of it; time and memory of a training step, at its peak, are multiples of {unit}'s, as sweeps.yaml states."
)
PUBLISHED_NOTE = "The paper's figures are of other data, features and training: the order of the rows is what compares, not the height."


def render_markdown(table: Mapping[str, Any], image_names: Iterable[str]) -> str:
    """The whole of `table.md`; `pictures` are the names of files beside it."""
    parts = [
        f"# {table['title']}",
        describe_table(table),
        *list_warnings(table),
        INTERVALS_NOTE,
        *format_costs_note(table),
    ]
    parts += ["\n".join(f"![{name}]({name})" for name in image_names)]
    if table["claims"]:
        parts += ["## What the paper says, and what is seen", format_claims_table(table)]
    for section in table["sections"]:
        parts += [
            f"## {section['title']}",
            format_markdown_table(*build_means_table(table, section)),
            _format_differences_table(table, section, ALL_QUERIES, MEAN_METRICS),
            *_format_published_tables(table, section),
        ]
    for group in [name for name in table["groups"] if name != ALL_QUERIES]:
        parts += [f"## Only {group} ({table['groups'][group]['queries']:,} queries)"]
        for section in table["sections"]:
            parts += [
                f"### {section['title']}",
                format_markdown_table(*build_means_table(table, section, group)),
                _format_differences_table(table, section, group, MEAN_METRICS[:3]),
            ]
    return "\n\n".join(parts) + "\n"


def describe_table(table: Mapping[str, Any]) -> str:
    """What a table stands on."""
    count, steps = (
        table["groups"][ALL_QUERIES],
        " or ".join(f"{step:,}" for step in table["steps"]) + " steps each",
    )
    if "unit" in table:
        steps = f"all trained for the time of {table['variants'][table['unit']]['steps']:,} steps of {table['unit']}"
    return (
        f"Data set {table['dataset']}, split {table['split']}: {count['queries']:,} queries about {count['videos']:,} videos. "
        f"{len(table['seeds'])} seeds ({', '.join(map(str, table['seeds']))}), {steps}. Protocol {table['protocol']}."
    )


def list_warnings(table: Mapping[str, Any]) -> list[str]:
    """What makes the rows of a table less comparable."""
    found = []
    if len(table["steps"]) > 1 and "unit" not in table:
        found.append(f"**The runs differ in their steps ({', '.join(map(str, table['steps']))}).**")
    if len(table["codes"]) > 1:
        found.append(
            f"**The runs were trained by {len(table['codes'])} versions of the code: train in a new folder to compare them strictly.**"
        )
    return found


def format_costs_note(table: Mapping[str, Any]) -> list[str]:
    """What the costs of a table are; [] for one without."""
    return [COSTS_NOTE.format(unit=table["unit"])] if "unit" in table else []


def get_cost_columns(table: Mapping[str, Any]) -> list[str]:
    """The columns of `format_cost_cells`."""
    return (
        ["parameters", "steps", f"step ÷ {table['unit']}'s", f"memory ÷ {table['unit']}'s"]
        if "unit" in table
        else []
    )


def format_cost_cells(table: Mapping[str, Any], name: str) -> list[str]:
    """What a variant takes: `0.31 M`, `1,500`, `1.00`, `1.00`; [] where the table has no costs."""
    variant = table["variants"][name]
    if "cost" not in variant:
        return [MISSING_CELL] * len(get_cost_columns(table))
    cost = variant["cost"]
    return [
        f"{variant['parameters'] / 1e6:.2f} M",
        f"{variant['steps']:,}",
        f"{cost['step_time']:.2f}",
        f"{cost['memory']:.2f}",
    ]


def format_variant_label(table: Mapping[str, Any], name: str) -> str:
    """A variant's name and what the paper calls it."""
    shows = table["variants"][name]["shows"]
    return name if shows.replace(" ", "_") == name else f"{name}: {shows}"


def format_mean(estimate: Mapping[str, Any] | None, separator: str = " ") -> str:
    """`62.0 [58.1, 65.9]`."""
    return _format_estimate(estimate, separator, "")


def format_difference(estimate: Mapping[str, Any] | None, separator: str = " ") -> str:
    """`-3.1 [-5.0, -1.2]`."""
    return _format_estimate(estimate, separator, "+")


def _format_estimate(estimate: Mapping[str, Any] | None, separator: str, sign: str) -> str:
    if estimate is None:
        return MISSING_CELL
    mean, low, high = (
        None if estimate[key] is None else f"{round(100 * estimate[key], 1) + 0.0:{sign}.1f}"
        for key in ("mean", "low", "high")
    )
    return f"{mean}" if low is None else f"{mean}{separator}[{low}, {high}]"


def format_published(section: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> str:
    """The paper's figure and its difference to the paper's reference: `36.4 (-2.3)`."""
    value = row["published"].get(metric)
    if value is None:
        return MISSING_CELL
    against = next(
        (
            other["published"].get(metric)
            for other in section["rows"]
            if other["variant"] == section["reference"]
        ),
        None,
    )
    return f"{value:.1f}" + (
        ""
        if against is None or row["variant"] == section["reference"]
        else f" ({value - against:+.1f})"
    )


def format_claim_cells(claim: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """A claim's cells: what is said, by whom, the difference here, and whether it is seen."""
    said = f"{claim['higher']} > {claim['lower']} by {claim['metric']}"
    here = (
        MISSING_CELL
        if claim["difference"] is None
        else format_difference({**claim, "mean": claim["difference"]})
    )
    return said, claim["source"], here, claim["seen"]


def format_claims_table(table: Mapping[str, Any]) -> str:
    """All claims; `yes` and `no` where the interval excludes 0."""
    return format_markdown_table(
        ["claim", "source", "difference here", "seen"],
        [format_claim_cells(claim) for claim in table["claims"]],
    )


def format_markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; what could end a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def build_means_table(
    table: Mapping[str, Any], section: Mapping[str, Any], group: str = ALL_QUERIES
) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a section's means, with what they cost (for all queries) and seed by seed."""
    rows = []
    for row in section["rows"]:
        found = table["variants"][row["variant"]]["groups"][group]
        first = next(iter(found), None)
        seeds = (
            ", ".join(f"{100 * one:.1f}" for one in found[first]["seeds"])
            if first
            else MISSING_CELL
        )
        costs = format_cost_cells(table, row["variant"]) if group == ALL_QUERIES else []
        rows.append(
            [
                format_variant_label(table, row["variant"]),
                *(format_mean(found.get(metric)) for metric in MEAN_METRICS),
                *costs,
                f"{first}: {seeds}",
            ]
        )
    return [
        "",
        *MEAN_METRICS,
        *(get_cost_columns(table) if group == ALL_QUERIES else []),
        "seed by seed",
    ], rows


def _format_differences_table(
    table: Mapping[str, Any], section: Mapping[str, Any], group: str, metrics: Sequence[str]
) -> str:
    rows = []
    for row in section["rows"]:
        if "differences" in row:
            found = [row["differences"][group].get(metric) for metric in metrics]
            rows.append(
                [
                    format_variant_label(table, row["variant"]),
                    *(
                        f"**{format_difference(one)}**"
                        if is_significant(one)
                        else format_difference(one)
                        for one in found
                    ),
                ]
            )
    return format_markdown_table([f"minus {section['reference']}", *metrics], rows)


def _format_published_tables(table: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    """What the paper prints, with differences to its own reference."""
    source = section["published"]
    if source is None:
        return []
    rows = [
        [
            format_variant_label(table, row["variant"]),
            *(format_published(section, row, metric) for metric in MEAN_METRICS),
        ]
        for row in section["rows"]
        if row["published"]
    ]
    return [
        f"{source['method']} on {source['dataset']}, {source['split']} (published). {PUBLISHED_NOTE}",
        format_markdown_table(["published", *MEAN_METRICS], rows),
    ]
