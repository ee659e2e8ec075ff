"""What `stvg-sweep` prints: the sections of its table, and what the paper says of it."""

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
    """Per variant: its means, how it differs from the reference (bold where surely), and the paper's figures."""
    shown = Table(
        title=Text(f"{section['title']}, in percent, with 95 % intervals"), title_justify="left"
    )
    shown.add_column("")
    for metric in (*MEAN_METRICS, *get_cost_columns(table)):
        shown.add_column(metric, justify="right")
    for row in section["rows"]:
        name, found = row["variant"], table["variants"][row["variant"]]["groups"][ALL_QUERIES]
        head = Text.assemble(
            (name, "bold"),
            format_variant_label(table, name).removeprefix(name).replace(": ", "\n", 1),
        )
        shown.add_row(
            head,
            *(format_mean(found.get(metric), "\n") for metric in MEAN_METRICS),
            *format_cost_cells(table, name),
        )
        if "differences" in row:
            differences = [row["differences"][ALL_QUERIES].get(metric) for metric in MEAN_METRICS]
            cells = [
                Text(format_difference(one, "\n"), style="bold" if is_significant(one) else "dim")
                for one in differences
            ]
            shown.add_row(Text(f"  minus {section['reference']}", style="dim"), *cells)
        if row["published"]:
            cells = [
                Text(format_published(section, row, metric), style="dim") for metric in MEAN_METRICS
            ]
            shown.add_row(Text("  published", style="dim"), *cells)
        shown.add_section()
    create_console().print(shown)


def show_claims(table: Mapping[str, Any]) -> None:
    """Whether what the paper says is seen here."""
    shown = Table(
        "claim",
        "source",
        "difference here",
        "seen",
        title=Text("what the paper says"),
        title_justify="left",
    )
    for claim in table["claims"]:
        said, source, here, seen = format_claim_cells(claim)
        shown.add_row(said, source, Text(here), Text(seen, style=VERDICT_COLORS[seen]))
    create_console().print(shown)
