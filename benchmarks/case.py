"""What a case of the benchmark is, and what it finds: groups of ways to do one thing, each way held
against the group's first.
"""

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
    """What a way cannot do without: floating point operations, and bytes read plus bytes written,
    each thing once; `cores` processes share them.
    """

    operations: float = 0.0
    bytes: float = 0.0
    cores: int = 1

    def seconds(self, rates: Rates) -> float:
        """The longer of the two alone, at the machine's rates."""
        return max(self.operations / rates.operations, self.bytes / rates.bytes) / self.cores


@dataclass
class Measurement:
    """One way to do a thing: seconds by round, bytes of memory at the peak, where the time goes
    (name, share), and other facts.
    """

    seconds: list[float] = field(default_factory=list)
    lower_bound: LowerBound | None = None
    peak_bytes: int | None = None
    hotspots: list[tuple[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """Ways that do the same thing and were measured in turns; the first is what the others are
    multiples of.
    """

    title: str
    measurements: dict[str, Measurement]

    def to_records(self, rates: Rates) -> list[dict[str, Any]]:
        """One record per way, as the JSON holds it."""
        first = next(iter(self.measurements.values()))
        return [
            self._build_record(name, way, first, rates) for name, way in self.measurements.items()
        ]

    def _build_record(
        self, name: str, way: Measurement, first: Measurement, rates: Rates
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"of": self.title, "way": name, **way.extra}
        if way.seconds:
            middle = float(np.median(way.seconds))
            record |= {"seconds": middle, "rounds": way.seconds}
            if way is not first and first.seconds:
                each = np.array(way.seconds) / np.array(first.seconds)[: len(way.seconds)]
                record["ratio"] = [float(np.median(each)), float(each.min()), float(each.max())]
            if way.lower_bound is not None:
                floor = way.lower_bound.seconds(rates)
                record["floor"] = {
                    **asdict(way.lower_bound),
                    "seconds": floor,
                    "ratio": middle / floor,
                }
        if way.peak_bytes is not None:
            record["peak_bytes"] = way.peak_bytes
            if way is not first and first.peak_bytes:
                record["peak_ratio"] = way.peak_bytes / first.peak_bytes
        if way.hotspots:
            record["where_the_time_goes"] = [
                {"what": what, "share": round(share, 3)} for what, share in way.hotspots
            ]
        return record


class Case(ABC):
    """One thing that is measured, in a process of its own; its sizes are its fields. In a `with`
    block `place` is a folder for what it makes; then `agree` comes first, and `measure` is believed
    only where that passes.

    A case's docstring says what is held against what: it stands on the page of results.
    """

    packages: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    """Whose versions matter."""
    environment: ClassVar[Mapping[str, str]] = {}
    """Variables that must be set before anything is imported."""
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
        """AssertionError where the ways do not give the same."""

    @abstractmethod
    def measure(self) -> list[Comparison]: ...


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
