"""Passes are summed, and the span lies where the scores around the best proposal point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.data import FeatureSet
from grounding.looks import Look, highest


def map_of(count: int, fill: float = 0.1, **cells: float) -> np.ndarray:
    """A map of scores; `c12=0.5` is the proposal from clip 1 to clip 2."""
    scores = np.where(np.triu(np.ones((count, count), dtype=bool)), fill, -1.0)
    for name, value in cells.items():
        scores[int(name[1]), int(name[2])] = value
    return scores


def test_without_between_the_best_cell_is_the_span() -> None:
    assert highest(map_of(5, c12=0.9, c02=0.8, c13=0.8), between=False) == (1 / 5, 3 / 5, 0.9)


def test_begin_and_end_are_where_parabolas_are_highest() -> None:
    """Scores of a parabola with its top at a begin of 1.75 and an end of 4.6, in clips."""
    begins, ends = np.meshgrid(np.arange(6), np.arange(6) + 1, indexing="ij")
    scores = np.where(begins < ends, 0.9 - 0.02 * (begins - 1.75) ** 2 - 0.03 * (ends - 4.6) ** 2, -1.0)
    begin, end, score = highest(scores, between=True)
    assert (begin * 6, end * 6) == (pytest.approx(1.75), pytest.approx(4.6))
    assert score == scores[2, 4]


@pytest.mark.parametrize(
    ("scores", "span"),
    [
        (map_of(5, c12=0.9), (1, 3)),  # as high on both sides
        (map_of(5, c12=0.9, c02=0.9 - 1e-9, c13=0.5), (0.5, 3 + 1 / 6)),  # never more than half a clip away
        (map_of(5, c02=0.9, c01=0.5), (0, 3 - 1 / 6)),  # nothing begins earlier
        (map_of(5, c24=0.9, c14=0.5), (2 - 1 / 6, 5)),  # nothing ends later
        (map_of(5, c22=0.9, c12=0.5, c23=0.5), (2, 3)),  # one clip cannot lose a part of itself
        (map_of(5, fill=0.5), (0, 1)),  # all alike
        (map_of(1, fill=0.5), (0, 1)),
    ],
)
def test_the_edges_of_a_map_and_flat_tops(scores: np.ndarray, span: tuple[float, float]) -> None:
    found = highest(scores, between=True)
    assert found[:2] == pytest.approx(tuple(edge / len(scores) for edge in span), abs=1e-6)


def test_a_look_sums_boxes_by_frame_and_averages_maps(store: Path) -> None:
    features = FeatureSet.of_store(store, "train", 3, 2)
    look = Look(features.queries[0], features)
    assert look.frames.tolist() == list(range(0, 100, 5))
    assert sorted(np.unique(np.concatenate(look.passes))) == list(range(20))
    box = np.full(4, 0.25)
    look.add(np.array([5, 5, 95]), np.stack([box, box, 2 * box]), np.full((2, 2), 0.25))
    look.add(np.array([0, 5, 95]), np.stack([box, box, box]), np.full((2, 2), 0.75))
    assert look.seen[[0, 1, 2, 19]].tolist() == [1, 3, 0, 2]
    assert look.boxes[[0, 1, 2, 19], 0].tolist() == [0.25, 0.75, 0, 0.75]
    assert look.scores.tolist() == [[0.5, 0.5], [-1, 0.5]]
