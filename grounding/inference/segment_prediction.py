"""What models say about one segment, gathered pass by pass: boxes of its frames, and when the event happens."""

from __future__ import annotations

from typing import Any

import numpy as np

from grounding.data.dataset import GroundingDataset
from grounding.structures.span_scores import SpanPrediction, SpanScores
from pipeline import sampling
from pipeline.records import Query


class SegmentPrediction:
    """The answers of any number of models and passes about a query's segment, summed.

    `passes`: the stored rows each pass takes, `[T_s]`; `frames` `[n]`: the frames they cover; `boxes` `[n, 4]`: the sums of
    their cxcywh boxes; `seen` `[n]`: how often each was seen; `when`: what was said of the span, None before the first answer.
    """

    def __init__(self, query: Query, dataset: GroundingDataset) -> None:
        stored = dataset.appearance.columns(query.video)["frame"]
        own = dataset.rows_in_segment(query, stored)
        self.query = query
        self.passes = [own[places] for places in sampling.plan_passes(len(own), dataset.num_frames)]
        self.frame_indices = stored[own]
        self.box_sums, self.box_counts = np.zeros((len(own), 4)), np.zeros(len(own), np.int64)
        self.span_scores: SpanScores[Any] | None = None

    def update(
        self, frame_indices: np.ndarray, boxes: np.ndarray, span_prediction: SpanPrediction
    ) -> None:
        """One model's answer to one pass: its frames' numbers `[T_s]`, boxes `[T_s, 4]` cxcywh, when the event happens.

        All models answer in the same way.
        """
        place = np.searchsorted(self.frame_indices, frame_indices)
        np.add.at(self.box_sums, place, boxes)
        np.add.at(self.box_counts, place, 1)
        if self.span_scores is None:
            self.span_scores = span_prediction.init_scores(self.query.segment, self.frame_indices)
        self.span_scores.add(span_prediction, frame_indices)
