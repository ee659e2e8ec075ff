"""What models say about one segment, gathered pass by pass: boxes of its frames, and when the event happens."""

from __future__ import annotations

from typing import Any

import numpy as np

from grounding.data.dataset import GroundingDataset
from grounding.structures.span_scores import SpanPrediction, SpanScores
from pipeline import sampling
from pipeline.records import Query


class Look:
    """The answers of any number of models and passes about a query's segment, summed.

    `passes`: the stored rows each pass takes, `[T_s]`; `frames` `[n]`: the frames they cover; `boxes` `[n, 4]`: the sums of
    their cxcywh boxes; `seen` `[n]`: how often each was seen; `when`: what was said of the span, None before the first answer.
    """

    def __init__(self, query: Query, features: GroundingDataset) -> None:
        stored = features.appearance.columns(query.video)["frame"]
        own = features.rows_in_segment(query, stored)
        self.query = query
        self.passes = [
            own[places] for places in sampling.plan_passes(len(own), features.num_frames)
        ]
        self.frames = stored[own]
        self.boxes, self.seen = np.zeros((len(own), 4)), np.zeros(len(own), np.int64)
        self.when: SpanScores[Any] | None = None

    def add(self, numbers: np.ndarray, boxes: np.ndarray, answer: SpanPrediction) -> None:
        """One model's answer to one pass: its frames' numbers `[T_s]`, boxes `[T_s, 4]` cxcywh, when the event happens.

        All models answer in the same way.
        """
        place = np.searchsorted(self.frames, numbers)
        np.add.at(self.boxes, place, boxes)
        np.add.at(self.seen, place, 1)
        if self.when is None:
            self.when = answer.init_scores(self.query.segment, self.frames)
        self.when.add(answer, numbers)
