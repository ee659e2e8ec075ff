"""Ablation tables of sweeps, read from `tables.yaml`. A new table is added there, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from grounding.evaluation.published import (
    DatasetName,
    MetricName,
    get_published_ablations,
    get_published_rows,
)
from grounding.metrics.scores import MEAN_METRICS
from pipeline.errors import InputError
from pipeline.validation import StrictModel, format_first_error

TABLES_PATH = Path(__file__).with_name("tables.yaml")
MeanMetric = Literal["m_vIoU", "m_tIoU", "m_sIoU", "vIoU@0.3", "vIoU@0.5"]


class Cost(StrictModel):
    """Time and memory of a training step, as multiples of those of the cost reference.

    The cost reference is the reference of the table's first section.
    """

    step_time: float = Field(gt=0)
    memory: float = Field(gt=0)


class Variant(StrictModel):
    """Row of a table: a system trained with `changes`, or derived from another variant's runs.

    All variants have the same data, steps and schedule. Variants with a `cost` have the same
    training time instead of the same number of steps.
    """

    label: str
    """Name of the variant in the paper."""
    system: str | None = None
    """System of a trained variant; by default the table's."""
    changes: dict[str, dict[str, Any] | None] = Field(default_factory=dict)
    """Changes of sections `model` and `loss`, and `init_from: null` for a variant without the
    modules that the weights are for."""
    cost: Cost | None = None
    """Cost of a training step."""
    derived_from: str | None = None
    """Trained variant whose runs predict; this variant is not trained."""
    ensemble_seeds: bool = False
    """The runs of all seeds predict as one ensemble."""
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Changes of section `evaluate`."""
    test_frames_multiplier: int = Field(default=1, ge=1)
    """Frames at test time, as a multiple of the frames in training."""
    metrics: tuple[MeanMetric, ...] = MEAN_METRICS  # type: ignore[assignment]
    """Metrics that are meaningful for the variant."""

    @model_validator(mode="after")
    def _check_trained_or_derived(self) -> Variant:
        """Check that a variant is either trained or derived."""
        changes_inference = self.ensemble_seeds or self.evaluate or self.test_frames_multiplier > 1
        if self.derived_from is None and changes_inference:
            raise ValueError(
                "ensemble_seeds, evaluate and test_frames_multiplier need `derived_from`, the"
                " variant whose runs predict"
            )

        other_keys = self.changes.keys() - {"model", "loss", "init_from"}
        if other_keys or self.changes.get("init_from"):
            raise ValueError(
                f"changes are of model and loss, not of {', '.join(sorted(self.changes))}: all"
                " variants train alike"
            )

        if self.derived_from is not None and (self.changes or self.system or self.cost):
            raise ValueError(
                "a variant is trained with `changes` or derived with `derived_from`, not both;"
                " `system` and `cost` are of training"
            )
        return self


class PublishedSource(StrictModel):
    """Location of a section's published figures in `published.yaml`."""

    dataset: DatasetName
    split: str
    method: str
    """Method whose ablations are meant."""
    names: dict[str, str]
    """Variant → a published method, or an ablation of `method`."""

    def scores(self, variant: str) -> dict[str, float]:
        """Return the published means of a variant.

        Args:
            variant: Name of the variant.

        Returns:
            Means in percent by metric; empty if nothing was published.
        """
        published_name = self.names.get(variant)
        for ablation in get_published_ablations(self.dataset, self.split):
            if ablation.method == self.method and ablation.variant == published_name:
                return _stringify_metrics(ablation.scores)

        for row in get_published_rows(self.dataset, self.split):
            if row.method == published_name:
                return _stringify_metrics(row.scores)
        return {}


def _stringify_metrics(scores: Mapping[MetricName, float]) -> dict[str, float]:
    """Return the scores with plain strings as keys."""
    return {str(metric): value for metric, value in scores.items()}


class Section(StrictModel):
    """Rows that belong together and are compared with one reference."""

    title: str
    reference: str
    rows: tuple[str, ...]
    published: PublishedSource | None = None


class Claim(StrictModel):
    """Claim of a paper: one variant scores higher than another."""

    higher: str
    lower: str
    metric: MeanMetric
    source: str


class SweepTable(StrictModel):
    """Named ablation table: variants, sections that show them, and claims of the paper."""

    title: str
    system: str | None = None
    variants: dict[str, Variant]
    sections: tuple[Section, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _check_systems_and_costs(self) -> SweepTable:
        """Check that each trained variant has a system, and that all or none have a cost."""
        for name, variant in self.trained_variants.items():
            if variant.system is None and self.system is None:
                raise ValueError(f"variant {name!r} needs a `system`, for the table has none")
            if variant.cost is None and self.has_costs:
                raise ValueError(
                    f"variant {name!r} needs a `cost`: all that are trained have one, or none has"
                )

        reference = self.variants.get(self.cost_reference)
        unit_cost = Cost(step_time=1, memory=1)
        if self.has_costs and reference is not None and reference.cost != unit_cost:
            raise ValueError(
                f"variant {self.cost_reference!r}: costs are multiples of its own, which are 1"
            )
        return self

    @model_validator(mode="after")
    def _check_variant_names(self) -> SweepTable:
        """Check the names of variants, and that every reference to a variant exists."""
        for name in self.variants:
            # The name becomes the name of a folder.
            if not name.replace("_", "").isalnum():
                raise ValueError(f"variant {name!r}: a name is letters, digits and _")

        for name in self._iterate_referenced_variants():
            if name not in self.variants:
                raise ValueError(
                    f"there is no variant {name!r}; the variants are {', '.join(self.variants)}"
                )

        for name, variant in self.derived_variants.items():
            source = variant.derived_from
            if source is not None and self.variants[source].derived_from is not None:
                raise ValueError(
                    f"variant {name!r} is derived from {source!r}, which is not trained itself"
                )
        return self

    def _iterate_referenced_variants(self) -> Iterable[str]:
        """Yield every name of a variant in sections, claims and derived variants."""
        for section in self.sections:
            yield section.reference
            yield from section.rows
            if section.published:
                yield from section.published.names
        for claim in self.claims:
            yield claim.higher
            yield claim.lower
        for variant in self.variants.values():
            if variant.derived_from is not None:
                yield variant.derived_from

    @property
    def cost_reference(self) -> str:
        """Variant whose cost is 1, in a table with costs."""
        return self.sections[0].reference

    @property
    def has_costs(self) -> bool:
        """True if the variants train for the same time instead of the same number of steps."""
        return any(variant.cost for variant in self.variants.values())

    def system_for_variant(self, variant: str) -> str:
        """Return the system of a trained variant.

        Args:
            variant: Name of the variant.

        Returns:
            Name of the system.
        """
        system = self.variants[variant].system or self.system
        assert system is not None
        return system

    @property
    def trained_variants(self) -> dict[str, Variant]:
        """Variants that are trained, by name."""
        return {
            name: variant for name, variant in self.variants.items() if variant.derived_from is None
        }

    @property
    def derived_variants(self) -> dict[str, Variant]:
        """Variants that use the runs of a trained variant, by name."""
        return {
            name: variant
            for name, variant in self.variants.items()
            if variant.derived_from is not None
        }


def load_tables(path: Path = TABLES_PATH) -> dict[str, SweepTable]:
    """Load all tables.

    Args:
        path: YAML file.

    Returns:
        Tables by name.

    Raises:
        InputError: The file cannot be read, or a table is invalid; the message names the first
            problem.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as YAML ({message}): install the package again"
        ) from None

    tables = {}
    for name, values in content.items():
        try:
            tables[name] = SweepTable.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path}: table {name!r}: {format_first_error(error)}") from None
    return tables


def load_table(name: str, path: Path = TABLES_PATH) -> SweepTable:
    """Load a table by name.

    Args:
        name: Name of the table.
        path: YAML file.

    Returns:
        The table.

    Raises:
        InputError: There is no such table; the message lists the names.
    """
    tables = load_tables(path)
    if name not in tables:
        raise InputError(
            f"there is no table {name!r}; the tables are {', '.join(tables)}: give one with --table"
        )
    return tables[name]
