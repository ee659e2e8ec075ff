"""Model outputs for one query's segment, accumulated over forward passes and models."""

from __future__ import annotations

from typing import Any

import numpy as np

from grounding.data.dataset import GroundingDataset
from grounding.structures.span_scores import SpanPrediction, SpanScores
from pipeline import sampling
from pipeline.records import Query


class SegmentPrediction:
    """Sums of the boxes and span scores that models predict for one query's segment.

    Attributes:
        query: The query; its `segment` is in video frames `[begin, end)`.
        passes: Stored rows of each forward pass, `[T_s]` each. Together they cover the segment.
        frame_indices: `[n]`, ascending video frames of the segment's stored rows.
        box_sums: `[n, 4]`, sums of the predicted boxes, cxcywh in [0, 1].
        box_counts: `[n]`, number of boxes in each sum.
        span_scores: Accumulated span scores, None before the first update.
        refined: Prediction of a denser second pass around the predicted span, None without one.
    """

    def __init__(self, query: Query, dataset: GroundingDataset) -> None:
        stored_frames = dataset.appearance.columns(query.video)["frame"]
        segment_rows = dataset.rows_in_segment(query, stored_frames)
        num_rows = len(segment_rows)

        self.query = query
        self.passes: list[np.ndarray] = []
        for positions in sampling.plan_passes(num_rows, dataset.num_frames):
            self.passes.append(segment_rows[positions])

        self.frame_indices = stored_frames[segment_rows]
        self.box_sums = np.zeros((num_rows, 4))
        self.box_counts = np.zeros(num_rows, np.int64)
        self.span_scores: SpanScores[Any] | None = None
        self.refined: SegmentPrediction | None = None

    def update(
        self, frame_indices: np.ndarray, boxes: np.ndarray, span_prediction: SpanPrediction
    ) -> None:
        """Add the output of one model for one pass.

        Args:
            frame_indices: `[T_s]`, video frames of the pass; duplicates are allowed.
            boxes: `[T_s, 4]`, cxcywh in [0, 1].
            span_prediction: Span prediction of the pass, of the same kind for all models.
        """
        # `np.add.at` counts every duplicate of a frame.
        positions = np.searchsorted(self.frame_indices, frame_indices)
        np.add.at(self.box_sums, positions, boxes)
        np.add.at(self.box_counts, positions, 1)

        if self.span_scores is None:
            self.span_scores = span_prediction.init_scores(self.query.segment, self.frame_indices)
        self.span_scores.add(span_prediction, frame_indices)
