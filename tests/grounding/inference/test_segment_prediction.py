"""Passes are summed by frame; what they say of the span goes to the scores of its kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grounding.data.dataset import GroundingDataset
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.structures.span_scores import (
    BoundaryPrediction,
    BoundaryScores,
    ProposalPrediction,
    ProposalScores,
)


@pytest.fixture
def segment_prediction(shapes_store: Path) -> SegmentPrediction:
    features = GroundingDataset.from_store(shapes_store, "train", 3, 2)
    return SegmentPrediction(features.queries[0], features)


def test_a_look_sums_boxes_by_frame_and_averages_maps(
    segment_prediction: SegmentPrediction,
) -> None:
    assert segment_prediction.frame_indices.tolist() == list(range(0, 100, 5))
    assert sorted(np.unique(np.concatenate(segment_prediction.passes))) == list(range(20))
    assert segment_prediction.span_scores is None
    box = np.full(4, 0.25)
    segment_prediction.update(
        np.array([5, 5, 95]),
        np.stack([box, box, 2 * box]),
        ProposalPrediction(np.full((2, 2), 0.25)),
    )
    segment_prediction.update(
        np.array([0, 5, 95]), np.stack([box, box, box]), ProposalPrediction(np.full((2, 2), 0.75))
    )
    assert segment_prediction.box_counts[[0, 1, 2, 19]].tolist() == [1, 3, 0, 2]
    assert segment_prediction.box_sums[[0, 1, 2, 19], 0].tolist() == [0.25, 0.75, 0, 0.75]
    assert isinstance(segment_prediction.span_scores, ProposalScores)
    assert segment_prediction.span_scores.segment == (0, 100)
    assert segment_prediction.span_scores.mean.tolist() == [[0.5, 0.5], [-1, 0.5]]


def test_boundaries_lie_on_the_edges_between_all_of_a_looks_frames(
    segment_prediction: SegmentPrediction,
) -> None:
    """Twenty frames, five apart: the first edge between two is half-way from the middle of 0 to
    that of 5.
    """
    segment_prediction.update(
        np.array([0, 45, 95]),
        np.zeros((3, 4)),
        BoundaryPrediction(np.array([0, 1, 0]), np.array([0, 0, 1])),
    )
    assert isinstance(segment_prediction.span_scores, BoundaryScores)
    assert segment_prediction.span_scores.edges.tolist() == [0, *range(3, 95, 5), 100]
    assert segment_prediction.span_scores.num_predictions == 1
