"""Passes are summed by frame; what they say of the span goes to the scores of its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.data.dataset import GroundingDataset
from grounding.inference.segment_prediction import Look
from grounding.structures.span_scores import BoundaryPrediction, BoundaryScores, ProposalPrediction, ProposalScores


@pytest.fixture
def look(store: Path) -> Look:
    features = GroundingDataset.from_store(store, "train", 3, 2)
    return Look(features.queries[0], features)


def test_a_look_sums_boxes_by_frame_and_averages_maps(look: Look) -> None:
    assert look.frames.tolist() == list(range(0, 100, 5))
    assert sorted(np.unique(np.concatenate(look.passes))) == list(range(20))
    assert look.when is None
    box = np.full(4, 0.25)
    look.add(np.array([5, 5, 95]), np.stack([box, box, 2 * box]), ProposalPrediction(np.full((2, 2), 0.25)))
    look.add(np.array([0, 5, 95]), np.stack([box, box, box]), ProposalPrediction(np.full((2, 2), 0.75)))
    assert look.seen[[0, 1, 2, 19]].tolist() == [1, 3, 0, 2]
    assert look.boxes[[0, 1, 2, 19], 0].tolist() == [0.25, 0.75, 0, 0.75]
    assert isinstance(look.when, ProposalScores)
    assert look.when.segment == (0, 100)
    assert look.when.mean.tolist() == [[0.5, 0.5], [-1, 0.5]]


def test_boundaries_lie_on_the_edges_between_all_of_a_looks_frames(look: Look) -> None:
    """Twenty frames, five apart: the first edge between two is half-way from the middle of 0 to
    that of 5.
    """
    look.add(
        np.array([0, 45, 95]),
        np.zeros((3, 4)),
        BoundaryPrediction(np.array([0, 1, 0]), np.array([0, 0, 1])),
    )
    assert isinstance(look.when, BoundaryScores)
    assert look.when.edges.tolist() == [0, *range(3, 95, 5), 100]
    assert look.when.num_predictions == 1
