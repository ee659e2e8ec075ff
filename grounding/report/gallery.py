"""Selection of the gallery's queries.

Groups: the best, some near vIoU 0.8, 0.5 and 0.3, the failures, and the largest differences between
two runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from grounding.evaluation.results import RunResults

TARGET_SCORES = (0.8, 0.5, 0.3)
"""Scores with a group of their own."""
SCORE_TOLERANCE = 0.1
"""Maximum distance of a group's scores from its target score."""
FAILURE_THRESHOLD = 0.1
"""Score below which a query has failed."""


@dataclass(frozen=True)
class GalleryGroup:
    """A group of the gallery.

    Attributes:
        title: Title of the group.
        description: Subtitle of the group; may be empty.
        query_ids: Queries of the group. A query belongs to one group at most.
    """

    title: str
    description: str
    query_ids: list[str]


def select_gallery(
    run: RunResults, other: RunResults | None, max_queries: int
) -> list[GalleryGroup]:
    """Select queries in groups of equal size.

    Queries are ranked by vIoU, or by tIoU if no ground truth has boxes. Among the failures the
    queries with the most confident predictions come first.

    Args:
        run: The run.
        other: The run that is compared, if any.
        max_queries: Number of queries in all; a group has at least one.

    Returns:
        The groups that are not empty, in the page's order.
    """
    scores, metric = run.ranking_scores
    if not scores or max_queries <= 0:
        return []

    num_groups = len(TARGET_SCORES) + 2
    if other is not None:
        num_groups += 2
    group_size = max(1, max_queries // num_groups)

    # Each group takes its queries out of `available`, so the order of the calls matters.
    available = dict(scores)
    differences = []
    if other is not None:
        differences = _take_differences(available, scores, other, group_size)

    failures = _take_group(
        available,
        "failures",
        f"{metric} below {FAILURE_THRESHOLD}, the surest first",
        _sort_failures(run, scores),
        group_size,
    )

    near_targets = []
    for target in TARGET_SCORES:
        near_ids = _sort_near(available, target)
        group = _take_group(available, f"near {target}", f"in {metric}", near_ids, group_size)
        near_targets.append(group)

    best_ids = _sort_descending(available)
    best = _take_group(available, "best", f"in {metric}", best_ids, group_size)

    groups = [best, *near_targets, failures, *differences]

    return [group for group in groups if group.query_ids]


def _take_differences(
    available: dict[str, float], scores: Mapping[str, float], other: RunResults, group_size: int
) -> list[GalleryGroup]:
    """Take the queries that are far better, and far worse, than in another run."""
    other_scores, _ = other.ranking_scores
    gains = {name: score - other_scores.get(name, 0.0) for name, score in scores.items()}

    better_ids = [name for name in _sort_descending(gains) if gains[name] > 0]
    worse_ids = [name for name in _sort_ascending(gains) if gains[name] < 0]

    return [
        _take_group(available, f"far better than {other.name}", "", better_ids, group_size),
        _take_group(available, f"far worse than {other.name}", "", worse_ids, group_size),
    ]


def _sort_failures(run: RunResults, scores: Mapping[str, float]) -> list[str]:
    """Return failed queries by score, to two digits, then by falling confidence."""

    def get_sort_key(name: str) -> tuple[float, float]:
        prediction = run.predictions.get(name)
        confidence = prediction.score if prediction else 0.0

        return round(scores[name], 2), -confidence

    failed_ids = [name for name, score in scores.items() if score < FAILURE_THRESHOLD]

    return sorted(failed_ids, key=get_sort_key)


def _sort_near(scores: Mapping[str, float], target: float) -> list[str]:
    """Return the queries near a target score, the nearest first."""
    distances = {}
    for name, score in scores.items():
        distance = abs(score - target)
        if distance <= SCORE_TOLERANCE:
            distances[name] = distance

    return _sort_ascending(distances)


def _sort_ascending(values: Mapping[str, float]) -> list[str]:
    """Return keys by rising value; equal ones keep their order."""
    return sorted(values, key=lambda name: values[name])


def _sort_descending(values: Mapping[str, float]) -> list[str]:
    """Return keys by falling value; equal ones keep their order."""
    return sorted(values, key=lambda name: -values[name])


def _take_group(
    available: dict[str, float], title: str, description: str, candidates: Iterable[str], count: int
) -> GalleryGroup:
    """Take the first available candidates out of `available`."""
    query_ids = [name for name in candidates if name in available][:count]
    for name in query_ids:
        del available[name]

    return GalleryGroup(title, description, query_ids)
