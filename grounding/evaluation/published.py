"""Published results as data, and a paper's table with this run's rows in it.

The figures stand in `published.yaml`, in percent as their papers print them. They were not measured by one rule: a row
names its evaluation protocol where that is known. A run is therefore shown once per protocol it was judged by.
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
    "In percent. Rows of different protocols are not comparable: this run is shown under each protocol it was judged by, "
    "so that like stands beside like."
)

DatasetName = Literal["vidstg", "hcstvg-v1", "hcstvg-v2"]
SentenceForm = Literal["declarative", "interrogative"]
MetricName = Literal["m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_sIoU"]
ProtocolName = Literal["every-frame", "official", "tubedetr", "stcat"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
MeansByProtocol = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Protocol → form ("" where sentences have none) → metric → mean in [0, 1]."""


class PublishedResult(StrictModel):
    """Published means in percent. `protocol` is None where no paper states it; a mean that is not known is absent."""

    scores: dict[MetricName, float]
    source: str
    protocol: ProtocolName | None = None
    note: str | None = None


class PublishedRow(PublishedResult):
    """A method's row in a comparison; `published_by` is the paper it was read from, None where that is the method's own."""

    method: str
    venue: str
    form: SentenceForm | None = None
    published_by: str | None = None


class PublishedAblation(PublishedResult):
    """A variant of one of the systems, as its own paper reports it."""

    method: str
    variant: str


class ResultTable(StrictModel):
    """One data set's split, and one form of its sentences where they are judged apart."""

    dataset: DatasetName
    split: str
    form: SentenceForm | None = None
    rows: tuple[PublishedRow, ...]
    ablations: tuple[PublishedAblation, ...] = ()


class PublishedResults(StrictModel):
    """The whole of `published.yaml`."""

    tables: tuple[ResultTable, ...]


def load_published(path: Path = PUBLISHED_PATH) -> PublishedResults:
    """Read and validate published results; a file that does not hold them is an InputError that names the first problem."""
    try:
        return PublishedResults.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read as YAML ({' '.join(str(error).split())}): install the package again"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{path}: {format_first_error(error)}: install the package again"
        ) from None


@cache
def _load_bundled() -> PublishedResults:
    return load_published()


def _iterate_tables(dataset_name: str, split: str) -> Iterator[ResultTable]:
    return (
        table
        for table in _load_bundled().tables
        if (table.dataset, table.split) == (dataset_name, split)
    )


def rows_for(dataset_name: str, split: str) -> list[PublishedRow]:
    """The published rows of a data set's split, form after form, in the papers' order; [] where nothing was published."""
    return [
        row.model_copy(update={"form": table.form})
        for table in _iterate_tables(dataset_name, split)
        for row in table.rows
    ]


def ablations_for(dataset_name: str, split: str) -> list[PublishedAblation]:
    """The published ablations on a data set's split; [] where nothing was published."""
    return [row for table in _iterate_tables(dataset_name, split) for row in table.ablations]


def protocols_for(dataset_name: str, split: str) -> tuple[str, ...]:
    """The protocols that the split's rows are known to use, in `PROTOCOLS`' order: a run judged by them stands beside like."""
    used = {row.protocol for row in rows_for(dataset_name, split)}
    return tuple(protocol for protocol in PROTOCOLS if protocol in used)


@dataclass(frozen=True)
class TableLine:
    """A row of a paper's table as it is printed: `numbers` one per metric; `ours`: this run's."""

    form: str
    method: str
    cells: list[str]
    protocol: str
    source: str
    is_this_run: bool


def build_table_lines(dataset_name: str, split: str, run_means: MeansByProtocol) -> list[TableLine]:
    """The published rows of a split with this run's below them, one per protocol; form after form."""
    rows = rows_for(dataset_name, split)
    forms = list(
        dict.fromkeys(
            [row.form or "" for row in rows]
            + [form for means in run_means.values() for form in means]
        )
    )
    lines = []
    for form in forms:
        for row in rows:
            if (row.form or "") == form:
                mark = "" if row.note is None else "*"
                lines.append(
                    TableLine(
                        form,
                        row.method + mark,
                        _format_percentages(row.scores),
                        row.protocol or "not stated",
                        row.source,
                        False,
                    )
                )
        for protocol, means in run_means.items():
            if form in means:
                percent = {
                    metric: 100 * means[form][metric]
                    for metric in METRIC_NAMES
                    if metric in means[form]
                }
                lines.append(
                    TableLine(form, "this run", _format_percentages(percent), protocol, "", True)
                )
    return lines


def build_table_notes(dataset_name: str, split: str) -> list[str]:
    """What is to be said below the table: how it is to be read, and the rows' notes."""
    return [
        TABLE_CAPTION,
        *(
            f"* {row.method}: {row.note}"
            for row in rows_for(dataset_name, split)
            if row.note is not None
        ),
    ]


def build_paper_table(dataset_name: str, split: str, run_means: MeansByProtocol) -> Table:
    """The published rows of a split with this run's in bold below them, one per protocol; one section per form of sentence."""
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
    table.box, table.show_edge, table.padding = (
        box.SIMPLE,
        False,
        0,
    )  # the whole of it fits into 80 columns
    for column in ("method", *METRIC_NAMES, "protocol"):
        table.add_column(
            column, justify="right" if column in METRIC_NAMES else "left", no_wrap=True
        )
    table.add_column("source")
    lines = build_table_lines(dataset_name, split, run_means)
    apart = any(line.form for line in lines)
    for form, group in itertools.groupby(lines, lambda line: line.form):
        if apart:
            table.add_row(Text(form or "all sentences", style="italic"))
        for line in group:
            style = "bold" if line.is_this_run else None
            table.add_row(
                *map(Text, (line.method, *line.cells, line.protocol, line.source)), style=style
            )
        table.add_section()
    return table


def _format_percentages(percent: Mapping[MetricName, float]) -> list[str]:
    """One cell per metric, with one decimal (18.15 is 18.2, as papers round); a dash for what is not known."""
    tenth = Decimal("0.1")
    return [
        str(Decimal(str(percent[metric])).quantize(tenth, ROUND_HALF_UP))
        if metric in percent
        else "–"
        for metric in METRIC_NAMES
    ]
