"""Benchmark cases and their results: comparisons of variants, each relative to the first."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from benchmarks.machine import Rates


@dataclass(frozen=True)
class LowerBound:
    """Work that no implementation of a variant can avoid.

    Attributes:
        operations: Floating point operations.
        bytes: Bytes read plus bytes written, each datum once.
        cores: Number of processes that share the work.
    """

    operations: float = 0.0
    bytes: float = 0.0
    cores: int = 1

    def seconds(self, rates: Rates) -> float:
        """Return the longer of computing alone and copying alone.

        Args:
            rates: Rates of the machine.

        Returns:
            Seconds, shared by the cores.
        """
        compute_seconds = self.operations / rates.operations
        copy_seconds = self.bytes / rates.bytes
        return max(compute_seconds, copy_seconds) / self.cores


@dataclass
class Measurement:
    """Results of one variant.

    Attributes:
        seconds: Seconds of each round.
        lower_bound: Unavoidable work, or None if unknown.
        peak_bytes: Bytes of memory at the peak, or None if not measured.
        hotspots: Pairs (name, share of the time), the largest share first.
        extra: Other facts for the JSON record.
    """

    seconds: list[float] = field(default_factory=list)
    lower_bound: LowerBound | None = None
    peak_bytes: int | None = None
    hotspots: list[tuple[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """Variants of the same computation, measured in turns.

    Attributes:
        title: Name of the computation.
        measurements: Results by variant. Ratios are relative to the first variant.
    """

    title: str
    measurements: dict[str, Measurement]

    def to_records(self, rates: Rates) -> list[dict[str, Any]]:
        """Return one JSON record per variant.

        Args:
            rates: Rates of the machine, for the lower bounds.

        Returns:
            Records in the order of the variants.
        """
        baseline = next(iter(self.measurements.values()))
        return [
            self._build_record(name, measurement, baseline, rates)
            for name, measurement in self.measurements.items()
        ]

    def _build_record(
        self, name: str, measurement: Measurement, baseline: Measurement, rates: Rates
    ) -> dict[str, Any]:
        """Return the JSON record of one variant."""
        is_baseline = measurement is baseline
        record: dict[str, Any] = {"of": self.title, "way": name, **measurement.extra}

        if measurement.seconds:
            record |= self._build_time_fields(measurement, baseline, rates)

        if measurement.peak_bytes is not None:
            record["peak_bytes"] = measurement.peak_bytes
            if not is_baseline and baseline.peak_bytes:
                record["peak_ratio"] = measurement.peak_bytes / baseline.peak_bytes

        if measurement.hotspots:
            record["where_the_time_goes"] = [
                {"what": function, "share": round(share, 3)}
                for function, share in measurement.hotspots
            ]

        return record

    def _build_time_fields(
        self, measurement: Measurement, baseline: Measurement, rates: Rates
    ) -> dict[str, Any]:
        """Return the fields of a record that depend on the seconds."""
        median_seconds = float(np.median(measurement.seconds))
        fields: dict[str, Any] = {"seconds": median_seconds, "rounds": measurement.seconds}

        # Round by round, so that load by other work cancels.
        if measurement is not baseline and baseline.seconds:
            num_rounds = len(measurement.seconds)
            ratios = np.array(measurement.seconds) / np.array(baseline.seconds)[:num_rounds]
            fields["ratio"] = [float(np.median(ratios)), float(ratios.min()), float(ratios.max())]

        if measurement.lower_bound is not None:
            bound_seconds = measurement.lower_bound.seconds(rates)
            fields["floor"] = {
                **asdict(measurement.lower_bound),
                "seconds": bound_seconds,
                "ratio": median_seconds / bound_seconds,
            }

        return fields


class Case(ABC):
    """One benchmark, run in a process of its own. Its sizes are its fields.

    A case is a context manager. Inside the `with` block, `work_dir` is a temporary folder.
    `check_agreement` runs before `measure`: measurements count only if the variants agree.
    The docstring of a case, after its first line, is printed on the results page.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    """Packages whose versions are recorded with the results."""
    environment: ClassVar[Mapping[str, str]] = {}
    """Environment variables to set before anything is imported."""
    device: str = "cpu"
    precision: str = "float32"

    def __enter__(self) -> Case:
        self._temp_dir = tempfile.TemporaryDirectory(prefix="stvg-bench-")
        self.work_dir = Path(self._temp_dir.name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._temp_dir.cleanup()

    @abstractmethod
    def check_agreement(self) -> None:
        """Check that all variants give the same result.

        Raises:
            AssertionError: The results of two variants differ.
        """

    @abstractmethod
    def measure(self) -> list[Comparison]:
        """Measure all variants.

        Returns:
            The comparisons of the case.
        """


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment that limits numerical libraries to one thread."""
