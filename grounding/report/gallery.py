"""Which queries the gallery shows: the best, some near vIoU .8, .5 and .3, the failures, and where two runs differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from grounding.evaluation.results import Judged

NEAR, REACH = (0.8, 0.5, 0.3), 0.1
"""Around which values, and how far from them, queries are shown."""
FAILED = 0.1
"""Below it a query has failed."""


@dataclass(frozen=True)
class Group:
    """A row of the gallery: ids of queries, each in one group only."""

    title: str
    about: str
    ids: list[str]


def gallery(run: Judged, other: Judged | None, count: int) -> list[Group]:
    """At most `count` queries in all, in groups of equal size. Where no truth has boxes tIoU stands in for vIoU.

    Of the failures the ones come first that the model was surest about.
    """
    value, measure = run.values
    if not value or count <= 0:
        return []
    each = max(1, count // (len(NEAR) + 2 + (2 if other else 0)))
    free = dict(value)
    apart = []
    if other is not None:
        gain = {name: value[name] - other.values[0].get(name, 0.0) for name in value}
        apart = [
            _taken(free, f"far better than {other.name}", "", (name for name in _by(gain, -1) if gain[name] > 0), each),
            _taken(free, f"far worse than {other.name}", "", (name for name in _by(gain, 1) if gain[name] < 0), each),
        ]
    sure = {name: -run.predictions[name].score if name in run.predictions else 0.0 for name in value}
    failed = sorted((name for name in value if value[name] < FAILED), key=lambda name: (round(value[name], 2), sure[name]))
    failures = _taken(free, "failures", f"{measure} below {FAILED}, the surest first", failed, each)
    middle = []
    for near in NEAR:
        away = {name: abs(value - near) for name, value in free.items() if abs(value - near) <= REACH}
        middle.append(_taken(free, f"near {near}", f"in {measure}", _by(away, 1), each))
    best = _taken(free, "best", f"in {measure}", _by(free, -1), each)
    return [group for group in (best, *middle, failures, *apart) if group.ids]


def _by(values: Mapping[str, float], sign: int) -> list[str]:
    return sorted(values, key=lambda name: sign * values[name])


def _taken(free: dict[str, float], title: str, about: str, wanted: Iterable[str], count: int) -> Group:
    """The first of `wanted` that are still free: they are no longer."""
    ids = [name for name in wanted if name in free][:count]
    for name in ids:
        del free[name]
    return Group(title, about, ids)
