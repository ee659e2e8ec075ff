"""What a sweep runs: named tables of variants, read from `sweeps.yaml`. Another system's table is added there as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from grounding.evaluation.published import DatasetName, MetricName, ablations_for, rows_for
from grounding.metrics.scores import MEAN_METRICS
from pipeline.errors import InputError
from pipeline.validation import StrictModel, format_first_error

TABLES_PATH = Path(__file__).with_name("tables.yaml")
MeanMetric = Literal["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]


class Cost(StrictModel):
    """A training step's time and memory, as multiples of those of the reference of the table's first section."""

    step_time: float = Field(gt=0)
    memory: float = Field(gt=0)


class Variant(StrictModel):
    """A line of a table: trained anew with `changes`, or (`of`) answers of another variant's runs, without training.

    `changes` are of sections `model` and `loss` only, and of `initialise` for a variant without what it would load: every variant
    has the same data, steps and schedule. With a `cost` it has not the same steps but the same time.
    """

    label: str
    system: str | None = None
    """By default the table's."""
    changes: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    cost: Cost | None = None
    derived_from: str | None = None
    ensemble_seeds: bool = False
    """All seeds' runs answer as one ensemble."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    test_frames_multiplier: int = Field(default=1, ge=1)
    """Frames at test time, as a multiple of those in training."""
    metrics: tuple[MeanMetric, ...] = MEAN_METRICS  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check_trained_or_derived(self) -> Variant:
        if self.derived_from is None and (
            self.ensemble_seeds or self.evaluate or self.test_frames_multiplier > 1
        ):
            raise ValueError(
                "together, evaluate and times need `of`, the variant whose runs answer"
            )
        if self.changes.keys() - {"model", "loss", "init_from"} or self.changes.get("init_from"):
            raise ValueError(
                f"changes are of model and loss, not of {', '.join(sorted(self.changes))}: all variants train alike"
            )
        if self.derived_from is not None and (self.changes or self.system or self.cost):
            raise ValueError(
                "a variant is trained with `changes` or derived with `of`, not both; `system` and `cost` are of training"
            )
        return self


class PublishedSource(StrictModel):
    """Where a section's published figures stand: methods, or ablations of `method`, by variant."""

    dataset: DatasetName
    split: str
    method: str
    names: dict[str, str]

    def scores(self, variant: str) -> dict[str, float]:
        """The published means of a variant in percent; {} where there are none."""
        name = self.names.get(variant)
        for ablation in ablations_for(self.dataset, self.split):
            if (ablation.method, ablation.variant) == (self.method, name):
                return _stringify_metrics(ablation.scores)
        return next(
            (
                _stringify_metrics(row.scores)
                for row in rows_for(self.dataset, self.split)
                if row.method == name
            ),
            {},
        )


def _stringify_metrics(scores: Mapping[MetricName, float]) -> dict[str, float]:
    return {str(metric): value for metric, value in scores.items()}


class Section(StrictModel):
    """Rows that belong together, all compared with `reference`."""

    title: str
    reference: str
    rows: tuple[str, ...]
    published: PublishedSource | None = None


class Claim(StrictModel):
    """`source` says that `more` scores higher than `less`."""

    higher: str
    lower: str
    metric: MeanMetric
    source: str


class SweepTable(StrictModel):
    """A named table: its variants, the sections that show them, and what is expected of them."""

    title: str
    system: str | None = None
    variants: dict[str, Variant]
    sections: tuple[Section, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _check_systems_and_costs(self) -> SweepTable:
        for name, variant in self.trained_variants.items():
            if variant.system is None and self.system is None:
                raise ValueError(f"variant {name!r} needs a `system`, for the table has none")
            if variant.cost is None and self.has_costs:
                raise ValueError(
                    f"variant {name!r} needs a `cost`: all that are trained have one, or none has"
                )
        if (
            self.has_costs
            and self.cost_reference in self.variants
            and self.variants[self.cost_reference].cost != Cost(step_time=1, memory=1)
        ):
            raise ValueError(
                f"variant {self.cost_reference!r}: costs are multiples of its own, which are 1"
            )
        return self

    @model_validator(mode="after")
    def _check_variant_names(self) -> SweepTable:
        for name in self.variants:
            if not name.replace("_", "").isalnum():  # it names a folder
                raise ValueError(f"variant {name!r}: a name is letters, digits and _")
        for name in self._iterate_referenced_variants():
            if name not in self.variants:
                raise ValueError(
                    f"there is no variant {name!r}; the variants are {', '.join(self.variants)}"
                )
        for name, variant in self.variants.items():
            if (
                variant.derived_from is not None
                and self.variants[variant.derived_from].derived_from is not None
            ):
                raise ValueError(
                    f"variant {name!r} is of {variant.derived_from!r}, which is not trained itself"
                )
        return self

    def _iterate_referenced_variants(self) -> Iterable[str]:
        for section in self.sections:
            yield from (
                section.reference,
                *section.rows,
                *(section.published.names if section.published else ()),
            )
        for claim in self.claims:
            yield from (claim.higher, claim.lower)
        yield from (
            variant.derived_from
            for variant in self.variants.values()
            if variant.derived_from is not None
        )

    @property
    def cost_reference(self) -> str:
        """The variant whose cost is 1, where there are costs."""
        return self.sections[0].reference

    @property
    def has_costs(self) -> bool:
        """Whether its variants train for the same time instead of the same steps."""
        return any(variant.cost for variant in self.variants.values())

    def system_for_variant(self, variant: str) -> str:
        """The system of a trained variant."""
        system = self.variants[variant].system or self.system
        assert system is not None
        return system

    @property
    def trained_variants(self) -> dict[str, Variant]:
        return {
            name: variant for name, variant in self.variants.items() if variant.derived_from is None
        }

    @property
    def derived_variants(self) -> dict[str, Variant]:
        return {
            name: variant
            for name, variant in self.variants.items()
            if variant.derived_from is not None
        }


def load_tables(path: Path = TABLES_PATH) -> dict[str, SweepTable]:
    """All tables by name; a file that does not hold them is an InputError that names the first problem."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read as YAML ({' '.join(str(error).split())}): install the package again"
        ) from None
    found = {}
    for name, values in content.items():
        try:
            found[name] = SweepTable.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path}: table {name!r}: {format_first_error(error)}") from None
    return found


def load_table(name: str, path: Path = TABLES_PATH) -> SweepTable:
    """A table by name; an InputError lists the names there are."""
    tables = load_tables(path)
    if name not in tables:
        raise InputError(
            f"there is no table {name!r}; the tables are {', '.join(tables)}: name one with --table"
        )
    return tables[name]
