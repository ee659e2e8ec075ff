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

FILE = Path(__file__).with_name("published.yaml")
CAPTION = (
    "In percent. Rows of different protocols are not comparable: this run is shown under each protocol it was judged by, "
    "so that like stands beside like."
)

Dataset = Literal["vidstg", "hcstvg-v1", "hcstvg-v2"]
Form = Literal["declarative", "interrogative"]
Metric = Literal["m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5", "m_sIoU"]
ProtocolName = Literal["every-frame", "official", "tubedetr", "stcat"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
METRICS: tuple[Metric, ...] = get_args(Metric)
Ours = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Protocol → form ("" where sentences have none) → metric → mean in [0, 1]."""


class Result(StrictModel):
    """Published means in percent. `protocol` is None where no paper states it; a mean that is not known is absent."""

    scores: dict[Metric, float]
    source: str
    protocol: ProtocolName | None = None
    note: str | None = None


class Row(Result):
    """A method's row in a comparison; `published_by` is the paper it was read from, None where that is the method's own."""

    method: str
    venue: str
    form: Form | None = None
    published_by: str | None = None


class Ablation(Result):
    """A variant of one of the systems, as its own paper reports it."""

    method: str
    variant: str


class ResultTable(StrictModel):
    """One data set's split, and one form of its sentences where they are judged apart."""

    dataset: Dataset
    split: str
    form: Form | None = None
    rows: tuple[Row, ...]
    ablations: tuple[Ablation, ...] = ()


class Published(StrictModel):
    """The whole of `published.yaml`."""

    tables: tuple[ResultTable, ...]


def load(path: Path = FILE) -> Published:
    """Read and validate published results; a file that does not hold them is an InputError that names the first problem."""
    try:
        return Published.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read as YAML ({' '.join(str(error).split())}): install the package again"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{path}: {format_first_error(error)}: install the package again"
        ) from None


@cache
def _shipped() -> Published:
    return load()


def _tables(dataset: str, split: str) -> Iterator[ResultTable]:
    return (
        table for table in _shipped().tables if (table.dataset, table.split) == (dataset, split)
    )


def rows_for(dataset: str, split: str) -> list[Row]:
    """The published rows of a data set's split, form after form, in the papers' order; [] where nothing was published."""
    return [
        row.model_copy(update={"form": table.form})
        for table in _tables(dataset, split)
        for row in table.rows
    ]


def ablations_for(dataset: str, split: str) -> list[Ablation]:
    """The published ablations on a data set's split; [] where nothing was published."""
    return [row for table in _tables(dataset, split) for row in table.ablations]


def protocols_of(dataset: str, split: str) -> tuple[str, ...]:
    """The protocols that the split's rows are known to use, in `PROTOCOLS`' order: a run judged by them stands beside like."""
    used = {row.protocol for row in rows_for(dataset, split)}
    return tuple(protocol for protocol in PROTOCOLS if protocol in used)


@dataclass(frozen=True)
class Line:
    """A row of a paper's table as it is printed: `numbers` one per metric; `ours`: this run's."""

    form: str
    method: str
    numbers: list[str]
    protocol: str
    source: str
    ours: bool


def table_lines(dataset: str, split: str, ours: Ours) -> list[Line]:
    """The published rows of a split with this run's below them, one per protocol; form after form."""
    rows = rows_for(dataset, split)
    forms = list(
        dict.fromkeys(
            [row.form or "" for row in rows] + [form for means in ours.values() for form in means]
        )
    )
    lines = []
    for form in forms:
        for row in rows:
            if (row.form or "") == form:
                mark = "" if row.note is None else "*"
                lines.append(
                    Line(
                        form,
                        row.method + mark,
                        _numbers(row.scores),
                        row.protocol or "not stated",
                        row.source,
                        False,
                    )
                )
        for protocol, means in ours.items():
            if form in means:
                percent = {
                    metric: 100 * means[form][metric] for metric in METRICS if metric in means[form]
                }
                lines.append(Line(form, "this run", _numbers(percent), protocol, "", True))
    return lines


def table_notes(dataset: str, split: str) -> list[str]:
    """What is to be said below the table: how it is to be read, and the rows' notes."""
    return [
        CAPTION,
        *(
            f"* {row.method}: {row.note}"
            for row in rows_for(dataset, split)
            if row.note is not None
        ),
    ]


def paper_table(dataset: str, split: str, ours: Ours) -> Table:
    """The published rows of a split with this run's in bold below them, one per protocol; one section per form of sentence."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    caption = "\n".join(table_notes(dataset, split))
    table = Table(
        title=Text(f"{dataset}, {split}"),
        caption=Text(caption),
        title_justify="left",
        caption_justify="left",
    )
    table.box, table.show_edge, table.padding = (
        box.SIMPLE,
        False,
        0,
    )  # the whole of it fits into 80 columns
    for column in ("method", *METRICS, "protocol"):
        table.add_column(column, justify="right" if column in METRICS else "left", no_wrap=True)
    table.add_column("source")
    lines = table_lines(dataset, split, ours)
    apart = any(line.form for line in lines)
    for form, group in itertools.groupby(lines, lambda line: line.form):
        if apart:
            table.add_row(Text(form or "all sentences", style="italic"))
        for line in group:
            style = "bold" if line.ours else None
            table.add_row(
                *map(Text, (line.method, *line.numbers, line.protocol, line.source)), style=style
            )
        table.add_section()
    return table


def _numbers(percent: Mapping[Metric, float]) -> list[str]:
    """One cell per metric, with one decimal (18.15 is 18.2, as papers round); a dash for what is not known."""
    tenth = Decimal("0.1")
    return [
        str(Decimal(str(percent[metric])).quantize(tenth, ROUND_HALF_UP))
        if metric in percent
        else "–"
        for metric in METRICS
    ]
