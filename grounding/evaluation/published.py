"""Published results as data, and tables of papers with this run's rows.

`published.yaml` holds the figures in percent, as the papers print them. Papers use different
evaluation protocols: a row names its protocol where it is known. A run is therefore shown once for
each protocol that it was evaluated under.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import yaml
from pydantic import ValidationError

from grounding.metrics.protocols import PROTOCOLS
from pipeline.errors import InputError
from pipeline.validation import StrictModel, format_first_error

if TYPE_CHECKING:
    from rich.table import Table

PUBLISHED_PATH = Path(__file__).with_name("published.yaml")
TABLE_CAPTION = (
    "In percent. Rows of different protocols are not comparable: this run is shown under each"
    " protocol it was evaluated under, so that each row stands beside rows of its own protocol."
)

DatasetName = Literal["vidstg", "hcstvg-v1", "hcstvg-v2"]
SentenceForm = Literal["declarative", "interrogative"]
MetricName = Literal["m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_sIoU"]
ProtocolName = Literal["every-frame", "official", "tubedetr", "stcat"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
MeansByProtocol = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Protocol → form ("" for sentences without a form) → metric → mean in [0, 1]."""


class PublishedResult(StrictModel):
    """Published means of one method or variant."""

    scores: dict[MetricName, float]
    """Means in percent; unknown means are absent."""
    source: str
    """Paper and table."""
    protocol: ProtocolName | None = None
    """Evaluation protocol; None if no paper states it."""
    note: str | None = None
    """Remark below the table."""


class PublishedRow(PublishedResult):
    """Row of a method in a comparison."""

    method: str
    venue: str
    form: SentenceForm | None = None
    published_by: str | None = None
    """Paper that the row was read from; None for the method's own paper."""


class PublishedAblation(PublishedResult):
    """Variant of a system, as the system's own paper reports it."""

    method: str
    variant: str


class ResultTable(StrictModel):
    """Results on a split of a data set; one table per sentence form if forms are reported apart."""

    dataset: DatasetName
    split: str
    form: SentenceForm | None = None
    rows: tuple[PublishedRow, ...]
    ablations: tuple[PublishedAblation, ...] = ()


class PublishedResults(StrictModel):
    """Content of `published.yaml`."""

    tables: tuple[ResultTable, ...]


def load_published(path: Path = PUBLISHED_PATH) -> PublishedResults:
    """Load published results.

    Args:
        path: YAML file.

    Returns:
        The results.

    Raises:
        InputError: The file cannot be read or is invalid; the message names the first problem.
    """
    try:
        return PublishedResults.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as YAML ({message}): install the package again"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{path}: {format_first_error(error)}: install the package again"
        ) from None


@cache
def _load_bundled() -> PublishedResults:
    """Load the package's own file once."""
    return load_published()


def _iterate_tables(dataset_name: str, split: str) -> Iterator[ResultTable]:
    """Yield the tables of a split."""
    for table in _load_bundled().tables:
        if table.dataset == dataset_name and table.split == split:
            yield table


def get_published_rows(dataset_name: str, split: str) -> list[PublishedRow]:
    """Return the published rows of a split.

    Args:
        dataset_name: Name of the data set.
        split: The split.

    Returns:
        Rows form by form, in the order of the papers; empty without published results.
    """
    rows = []
    for table in _iterate_tables(dataset_name, split):
        for row in table.rows:
            rows.append(row.model_copy(update={"form": table.form}))
    return rows


def get_published_ablations(dataset_name: str, split: str) -> list[PublishedAblation]:
    """Return the published ablations on a split.

    Args:
        dataset_name: Name of the data set.
        split: The split.

    Returns:
        The ablations; empty without published results.
    """
    ablations: list[PublishedAblation] = []
    for table in _iterate_tables(dataset_name, split):
        ablations.extend(table.ablations)
    return ablations


def get_published_protocols(dataset_name: str, split: str) -> tuple[str, ...]:
    """Return the protocols of a split's published rows.

    A run that is evaluated under these protocols can be compared with the rows.

    Args:
        dataset_name: Name of the data set.
        split: The split.

    Returns:
        Protocols, in the order of `PROTOCOLS`.
    """
    row_protocols = {row.protocol for row in get_published_rows(dataset_name, split)}
    return tuple(protocol for protocol in PROTOCOLS if protocol in row_protocols)


@dataclass(frozen=True)
class TableLine:
    """Row of a paper's table, ready for print.

    Attributes:
        form: Sentence form; "" without forms.
        method: Name of the method.
        cells: One number per metric of `METRIC_NAMES`.
        protocol: Evaluation protocol, or "not stated".
        source: Paper and table.
        is_this_run: True for the row of the evaluated run.
    """

    form: str
    method: str
    cells: list[str]
    protocol: str
    source: str
    is_this_run: bool


def build_table_lines(dataset_name: str, split: str, run_means: MeansByProtocol) -> list[TableLine]:
    """Build the published rows of a split, with the run's rows below, form by form.

    Args:
        dataset_name: Name of the data set.
        split: The split.
        run_means: Means of the run; one row for each protocol.

    Returns:
        The rows.
    """
    rows = get_published_rows(dataset_name, split)

    # Forms of published rows come first, then the other forms of the run.
    forms: list[str] = [row.form or "" for row in rows]
    for means_by_form in run_means.values():
        forms.extend(means_by_form)

    lines = []
    for form in dict.fromkeys(forms):
        for row in rows:
            if (row.form or "") == form:
                lines.append(_build_published_line(form, row))

        for protocol, means_by_form in run_means.items():
            if form in means_by_form:
                lines.append(_build_run_line(form, protocol, means_by_form[form]))
    return lines


def _build_published_line(form: str, row: PublishedRow) -> TableLine:
    """Build the row of a published method; an asterisk marks a note."""
    mark = "" if row.note is None else "*"
    return TableLine(
        form=form,
        method=row.method + mark,
        cells=_format_percentages(row.scores),
        protocol=row.protocol or "not stated",
        source=row.source,
        is_this_run=False,
    )


def _build_run_line(form: str, protocol: str, means: Mapping[str, float]) -> TableLine:
    """Build the row of the run under one protocol."""
    percentages = {metric: 100 * means[metric] for metric in METRIC_NAMES if metric in means}
    return TableLine(
        form=form,
        method="this run",
        cells=_format_percentages(percentages),
        protocol=protocol,
        source="",
        is_this_run=True,
    )


def build_table_notes(dataset_name: str, split: str) -> list[str]:
    """Build the lines below the table: how to read it, and the notes of the rows.

    Args:
        dataset_name: Name of the data set.
        split: The split.

    Returns:
        The lines.
    """
    notes = [TABLE_CAPTION]
    for row in get_published_rows(dataset_name, split):
        if row.note is not None:
            notes.append(f"* {row.method}: {row.note}")
    return notes


def build_paper_table(dataset_name: str, split: str, run_means: MeansByProtocol) -> Table:
    """Build the table of a split for the terminal, with one section per sentence form.

    Args:
        dataset_name: Name of the data set.
        split: The split.
        run_means: Means of the run. Its rows are bold, one for each protocol.

    Returns:
        A rich table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = "\n".join(build_table_notes(dataset_name, split))
    table = Table(
        title=Text(f"{dataset_name}, {split}"),
        caption=Text(caption),
        title_justify="left",
        caption_justify="left",
    )

    # Without edges and padding the table fits into 80 columns.
    table.box = box.SIMPLE
    table.show_edge = False
    table.padding = 0

    for column in ("method", *METRIC_NAMES, "protocol"):
        justify: Literal["left", "right"] = "right" if column in METRIC_NAMES else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    table.add_column("source")

    lines = build_table_lines(dataset_name, split, run_means)
    has_forms = any(line.form for line in lines)
    for form, form_lines in itertools.groupby(lines, lambda line: line.form):
        if has_forms:
            table.add_row(Text(form or "all sentences", style="italic"))
        for line in form_lines:
            cells = (line.method, *line.cells, line.protocol, line.source)
            style = "bold" if line.is_this_run else None
            table.add_row(*map(Text, cells), style=style)
        table.add_section()
    return table


def _format_percentages(percentages: Mapping[MetricName, float]) -> list[str]:
    """Format one cell per metric, with one decimal; an unknown metric is a dash.

    Halves are rounded up, as in papers: 18.15 is 18.2.
    """
    cells = []
    for metric in METRIC_NAMES:
        if metric in percentages:
            value = Decimal(str(percentages[metric]))
            cells.append(str(value.quantize(Decimal("0.1"), ROUND_HALF_UP)))
        else:
            cells.append("–")
    return cells
