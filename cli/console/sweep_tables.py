"""Tables of `stvg-sweep`: the sections of an ablation table, and the claims of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.console.evaluate_tables import create_console
from grounding.metrics.scores import MEAN_METRICS
from grounding.sweep.markdown import (
    format_claim_cells,
    format_cost_cells,
    format_difference,
    format_mean,
    format_published,
    format_variant_label,
    get_cost_columns,
)
from grounding.sweep.statistics import ALL_QUERIES, is_significant

VERDICT_COLORS = {"yes": "green", "no": "red", "unclear": "yellow"}


def show_section(table: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Print one section: means of each variant, differences from the reference, published figures.

    Significant differences are bold.

    Args:
        table: Content of `table.json`.
        section: One of the table's sections.
    """
    text_table = Table(
        title=Text(f"{section['title']}, in percent, with 95 % intervals"), title_justify="left"
    )
    text_table.add_column("")
    for column in (*MEAN_METRICS, *get_cost_columns(table)):
        text_table.add_column(column, justify="right")

    for row in section["rows"]:
        _add_means_row(text_table, table, row["variant"])
        if "differences" in row:
            _add_difference_row(text_table, section, row)
        if row["published"]:
            _add_published_row(text_table, section, row)
        text_table.add_section()
    create_console().print(text_table)


def _add_means_row(text_table: Table, table: Mapping[str, Any], variant: str) -> None:
    """Add a variant's label, its means with intervals, and its costs."""
    label = format_variant_label(table, variant).removeprefix(variant)
    estimates = table["variants"][variant]["groups"][ALL_QUERIES]
    means = [format_mean(estimates.get(metric), "\n") for metric in MEAN_METRICS]
    text_table.add_row(
        Text.assemble((variant, "bold"), label.replace(": ", "\n", 1)),
        *means,
        *format_cost_cells(table, variant),
    )


def _add_difference_row(
    text_table: Table, section: Mapping[str, Any], row: Mapping[str, Any]
) -> None:
    """Add a variant's differences from the reference; significant ones are bold."""
    cells = []
    for metric in MEAN_METRICS:
        difference = row["differences"][ALL_QUERIES].get(metric)
        style = "bold" if is_significant(difference) else "dim"
        cells.append(Text(format_difference(difference, "\n"), style=style))
    text_table.add_row(Text(f"  minus {section['reference']}", style="dim"), *cells)


def _add_published_row(
    text_table: Table, section: Mapping[str, Any], row: Mapping[str, Any]
) -> None:
    """Add a variant's published means."""
    cells = [Text(format_published(section, row, metric), style="dim") for metric in MEAN_METRICS]
    text_table.add_row(Text("  published", style="dim"), *cells)


def show_claims(table: Mapping[str, Any]) -> None:
    """Print the claims of the paper, and whether the sweep confirms them.

    Args:
        table: Content of `table.json`.
    """
    text_table = Table(
        "claim",
        "source",
        "difference here",
        "seen",
        title=Text("what the paper says"),
        title_justify="left",
    )
    for claim in table["claims"]:
        statement, source, difference, verdict = format_claim_cells(claim)
        verdict_cell = Text(verdict, style=VERDICT_COLORS[verdict])
        text_table.add_row(statement, source, Text(difference), verdict_cell)
    create_console().print(text_table)
