"""Text of a sweep's table: `table.md`, and the cells of the terminal's tables. In percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grounding.metrics.scores import MEAN_METRICS
from grounding.sweep.statistics import ALL_QUERIES, is_significant

MISSING_CELL = "–"
INTERVALS_NOTE = (
    "Means over the seeds' runs with their 95 % intervals, which account for another draw of the"
    " videos and for other seeds (how: `grounding/sweep/statistics.py`); differences are paired,"
    " query by query and seed by seed, and **bold** where the interval excludes 0. An ensemble is"
    " one answer: its own interval is over videos alone. Intervals are not corrected for their"
    " number."
)
COSTS_NOTE = (
    "All are trained for the same time: the steps of {unit}, divided by what a step takes."
    " Parameters are those of the network, with an encoder that is part of it; time and memory of"
    " a training step, at its peak, are multiples of {unit}'s, as sweeps.yaml states."
)
PUBLISHED_NOTE = (
    "The paper's figures are of other data, features and training: the order of the rows is what"
    " compares, not the height."
)


def render_markdown(table: Mapping[str, Any], image_names: Iterable[str]) -> str:
    """Render `table.md`.

    Args:
        table: Content of `table.json`.
        image_names: Names of the image files beside the text.

    Returns:
        The text.
    """
    # Introduction and images.
    paragraphs = [
        f"# {table['title']}",
        describe_table(table),
        *list_warnings(table),
        INTERVALS_NOTE,
        *format_costs_note(table),
        "\n".join(f"![{name}]({name})" for name in image_names),
    ]
    if table["claims"]:
        paragraphs.append("## What the paper says, and what is seen")
        paragraphs.append(format_claims_table(table))

    # Sections, for all queries.
    for section in table["sections"]:
        paragraphs += [
            f"## {section['title']}",
            format_markdown_table(*build_means_table(table, section)),
            _format_differences_table(table, section, ALL_QUERIES, MEAN_METRICS),
            *_format_published_tables(table, section),
        ]

    # The same sections for each group of queries.
    for group, counts in table["groups"].items():
        if group == ALL_QUERIES:
            continue
        paragraphs.append(f"## Only {group} ({counts['queries']:,} queries)")
        for section in table["sections"]:
            paragraphs += [
                f"### {section['title']}",
                format_markdown_table(*build_means_table(table, section, group)),
                _format_differences_table(table, section, group, MEAN_METRICS[:3]),
            ]
    return "\n\n".join(paragraphs) + "\n"


def describe_table(table: Mapping[str, Any]) -> str:
    """Describe the data, seeds and steps of a table.

    Args:
        table: Content of `table.json`.

    Returns:
        One paragraph.
    """
    if "unit" in table:
        unit = table["unit"]
        unit_steps = table["variants"][unit]["steps"]
        training = f"all trained for the time of {unit_steps:,} steps of {unit}"
    else:
        training = " or ".join(f"{steps:,}" for steps in table["steps"]) + " steps each"

    counts = table["groups"][ALL_QUERIES]
    seeds = ", ".join(map(str, table["seeds"]))
    return (
        f"Data set {table['dataset']}, split {table['split']}: {counts['queries']:,} queries about"
        f" {counts['videos']:,} videos. {len(table['seeds'])} seeds ({seeds}), {training}."
        f" Protocol {table['protocol']}."
    )


def list_warnings(table: Mapping[str, Any]) -> list[str]:
    """List the differences between runs that make the rows of a table less comparable.

    Args:
        table: Content of `table.json`.

    Returns:
        Warnings in bold; empty if all runs are comparable.
    """
    warnings = []
    if len(table["steps"]) > 1 and "unit" not in table:
        steps = ", ".join(map(str, table["steps"]))
        warnings.append(f"**The runs differ in their steps ({steps}).**")
    if len(table["codes"]) > 1:
        warnings.append(
            f"**The runs were trained by {len(table['codes'])} versions of the code: train in a new"
            " folder to compare them strictly.**"
        )
    return warnings


def format_costs_note(table: Mapping[str, Any]) -> list[str]:
    """Format the note on costs.

    Args:
        table: Content of `table.json`.

    Returns:
        One paragraph; empty for a table without costs.
    """
    if "unit" not in table:
        return []
    return [COSTS_NOTE.format(unit=table["unit"])]


def get_cost_columns(table: Mapping[str, Any]) -> list[str]:
    """Return the headers of the columns of `format_cost_cells`.

    Args:
        table: Content of `table.json`.

    Returns:
        The headers; empty for a table without costs.
    """
    if "unit" not in table:
        return []
    unit = table["unit"]
    return ["parameters", "steps", f"step ÷ {unit}'s", f"memory ÷ {unit}'s"]


def format_cost_cells(table: Mapping[str, Any], name: str) -> list[str]:
    """Format the costs of a variant.

    Args:
        table: Content of `table.json`.
        name: Name of the variant.

    Returns:
        Cells such as `0.31 M`, `1,500`, `1.00`, `1.00`; empty for a table without costs.
    """
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
    """Format a variant's name with the paper's name for it.

    Args:
        table: Content of `table.json`.
        name: Name of the variant.

    Returns:
        `name: label`, or the name alone if the label says the same.
    """
    label = table["variants"][name]["shows"]
    if label.replace(" ", "_") == name:
        return name
    return f"{name}: {label}"


def format_mean(estimate: Mapping[str, Any] | None, separator: str = " ") -> str:
    """Format a mean with its interval: `62.0 [58.1, 65.9]`.

    Args:
        estimate: The mean, in [0, 1]; None if unknown.
        separator: Text between mean and interval.

    Returns:
        The cell.
    """
    return _format_estimate(estimate, separator, "")


def format_difference(estimate: Mapping[str, Any] | None, separator: str = " ") -> str:
    """Format a difference with its interval: `-3.1 [-5.0, -1.2]`.

    Args:
        estimate: The difference, in [-1, 1]; None if unknown.
        separator: Text between difference and interval.

    Returns:
        The cell.
    """
    return _format_estimate(estimate, separator, "+")


def _format_estimate(estimate: Mapping[str, Any] | None, separator: str, sign: str) -> str:
    """Format a value with its interval; `sign` is the sign option of Python's format."""
    if estimate is None:
        return MISSING_CELL

    mean = _format_percentage(estimate["mean"], sign)
    if estimate["low"] is None:
        return mean
    low = _format_percentage(estimate["low"], sign)
    high = _format_percentage(estimate["high"], sign)
    return f"{mean}{separator}[{low}, {high}]"


def _format_percentage(value: float | None, sign: str) -> str:
    """Format a share in percent; adding 0.0 turns -0.0 into 0.0."""
    if value is None:
        return f"{None}"
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"


def format_published(section: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> str:
    """Format the paper's figure with its difference from the paper's reference: `36.4 (-2.3)`.

    Args:
        section: A section of the table.
        row: A row of the section.
        metric: The metric.

    Returns:
        The cell.
    """
    value = row["published"].get(metric)
    if value is None:
        return MISSING_CELL
    if row["variant"] == section["reference"]:
        return f"{value:.1f}"

    for other_row in section["rows"]:
        if other_row["variant"] == section["reference"]:
            reference_value = other_row["published"].get(metric)
            break
    else:
        reference_value = None
    if reference_value is None:
        return f"{value:.1f}"
    return f"{value:.1f} ({value - reference_value:+.1f})"


def format_claim_cells(claim: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Format the cells of a claim.

    Args:
        claim: A claim of the table.

    Returns:
        The statement, its source, the difference here, and the verdict.
    """
    statement = f"{claim['higher']} > {claim['lower']} by {claim['metric']}"
    difference = MISSING_CELL
    if claim["difference"] is not None:
        difference = format_difference({**claim, "mean": claim["difference"]})
    return statement, claim["source"], difference, claim["seen"]


def format_claims_table(table: Mapping[str, Any]) -> str:
    """Format all claims; the verdict is `yes` or `no` if the interval excludes 0.

    Args:
        table: Content of `table.json`.

    Returns:
        A table in Markdown.
    """
    header = ["claim", "source", "difference here", "seen"]
    return format_markdown_table(header, [format_claim_cells(claim) for claim in table["claims"]])


def format_markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown.

    Args:
        header: Header of each column.
        rows: Cells of each row. A vertical bar in a cell is escaped.

    Returns:
        The table.
    """
    lines = []
    for row in [header, ["---"] * len(header), *rows]:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def build_means_table(
    table: Mapping[str, Any], section: Mapping[str, Any], group: str = ALL_QUERIES
) -> tuple[list[str], list[list[str]]]:
    """Build the table of a section's means, costs (for all queries only), and means by seed.

    Args:
        table: Content of `table.json`.
        section: A section of the table.
        group: Group of queries.

    Returns:
        The header and the rows.
    """
    has_costs = group == ALL_QUERIES

    rows = []
    for row in section["rows"]:
        name = row["variant"]
        estimates = table["variants"][name]["groups"][group]

        # The seeds are shown for the first metric of the variant.
        first_metric = next(iter(estimates), None)
        seed_means = MISSING_CELL
        if first_metric:
            seed_means = ", ".join(f"{100 * mean:.1f}" for mean in estimates[first_metric]["seeds"])

        rows.append(
            [
                format_variant_label(table, name),
                *(format_mean(estimates.get(metric)) for metric in MEAN_METRICS),
                *(format_cost_cells(table, name) if has_costs else []),
                f"{first_metric}: {seed_means}",
            ]
        )

    cost_columns = get_cost_columns(table) if has_costs else []
    return ["", *MEAN_METRICS, *cost_columns, "seed by seed"], rows


def _format_differences_table(
    table: Mapping[str, Any], section: Mapping[str, Any], group: str, metrics: Sequence[str]
) -> str:
    """Format the differences of a section's rows from its reference; significant ones are bold."""
    rows = []
    for row in section["rows"]:
        if "differences" not in row:
            continue

        cells = [format_variant_label(table, row["variant"])]
        for metric in metrics:
            difference = row["differences"][group].get(metric)
            cell = format_difference(difference)
            cells.append(f"**{cell}**" if is_significant(difference) else cell)
        rows.append(cells)
    return format_markdown_table([f"minus {section['reference']}", *metrics], rows)


def _format_published_tables(table: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
    """Format the paper's figures of a section, with a note; empty if nothing was published."""
    source = section["published"]
    if source is None:
        return []

    rows = []
    for row in section["rows"]:
        if row["published"]:
            cells = [format_published(section, row, metric) for metric in MEAN_METRICS]
            rows.append([format_variant_label(table, row["variant"]), *cells])
    return [
        f"{source['method']} on {source['dataset']}, {source['split']} (published)."
        f" {PUBLISHED_NOTE}",
        format_markdown_table(["published", *MEAN_METRICS], rows),
    ]
