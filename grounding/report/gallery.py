"""Which queries the gallery shows: the best, some near vIoU .8, .5 and .3, the failures, and where two runs differ most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from grounding.evaluation.results import RunResults

TARGET_SCORES, SCORE_TOLERANCE = (0.8, 0.5, 0.3), 0.1
"""Around which values, and how far from them, queries are shown."""
FAILURE_THRESHOLD = 0.1
"""Below it a query has failed."""


@dataclass(frozen=True)
class GalleryGroup:
    """A row of the gallery: ids of queries, each in one group only."""

    title: str
    description: str
    query_ids: list[str]


def select_gallery(
    run: RunResults, other: RunResults | None, max_queries: int
) -> list[GalleryGroup]:
    """At most `count` queries in all, in groups of equal size. Where no truth has boxes tIoU stands in for vIoU.

    Of the failures the ones come first that the model was surest about.
    """
    value, measure = run.ranking_scores
    if not value or max_queries <= 0:
        return []
    each = max(1, max_queries // (len(TARGET_SCORES) + 2 + (2 if other else 0)))
    free = dict(value)
    apart = []
    if other is not None:
        gain = {name: value[name] - other.ranking_scores[0].get(name, 0.0) for name in value}
        apart = [
            _take_group(
                free,
                f"far better than {other.name}",
                "",
                (name for name in _sort_ids(gain, -1) if gain[name] > 0),
                each,
            ),
            _take_group(
                free,
                f"far worse than {other.name}",
                "",
                (name for name in _sort_ids(gain, 1) if gain[name] < 0),
                each,
            ),
        ]
    sure = {
        name: -run.predictions[name].score if name in run.predictions else 0.0 for name in value
    }
    failed = sorted(
        (name for name in value if value[name] < FAILURE_THRESHOLD),
        key=lambda name: (round(value[name], 2), sure[name]),
    )
    failures = _take_group(
        free, "failures", f"{measure} below {FAILURE_THRESHOLD}, the surest first", failed, each
    )
    middle = []
    for near in TARGET_SCORES:
        away = {
            name: abs(value - near)
            for name, value in free.items()
            if abs(value - near) <= SCORE_TOLERANCE
        }
        middle.append(_take_group(free, f"near {near}", f"in {measure}", _sort_ids(away, 1), each))
    best = _take_group(free, "best", f"in {measure}", _sort_ids(free, -1), each)
    return [group for group in (best, *middle, failures, *apart) if group.query_ids]


def _sort_ids(values: Mapping[str, float], sign: int) -> list[str]:
    return sorted(values, key=lambda name: sign * values[name])


def _take_group(
    available: dict[str, float], title: str, description: str, candidates: Iterable[str], count: int
) -> GalleryGroup:
    """The first of `wanted` that are still free: they are no longer."""
    ids = [name for name in candidates if name in available][:count]
    for name in ids:
        del available[name]
    return GalleryGroup(title, description, ids)
