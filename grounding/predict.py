"""A model and a store → tubes. Every stored frame of the segment is seen; maps and boxes seen twice are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from grounding.data import FeatureSet, Sample, collate, to_device
from grounding.modules.proposals import valid_cells
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.records import Prediction, Query
from pipeline.sampling import span_frames

Progress = Callable[[int, int], None]


@torch.inference_mode()
def predict(
    model: nn.Module, features: FeatureSet, queries: Sequence[Query], batch: int = 16, progress: Progress = lambda done, total: None
) -> list[Prediction]:
    """The tube of each query, in order. `batch` is how many passes run at once; the model is put into eval mode."""
    device = next(model.parameters()).device
    model.eval()
    answers: list[Prediction] = []
    progress(0, len(queries))
    for group in _grouped(queries, features, batch):
        samples = [sample for _, passes in group for sample in passes]
        parts = [model(to_device(collate(samples[i : i + batch]), device)) for i in range(0, len(samples), batch)]
        boxes, proposals = torch.cat([part.boxes[-1] for part in parts]), torch.cat([part.proposals for part in parts])
        start = 0
        for query, passes in group:
            own = slice(start, start + len(passes))
            answers.append(_tube(query, passes, boxes[own], proposals[own]))
            start += len(passes)
        progress(len(answers), len(queries))
    return answers


def _grouped(queries: Iterable[Query], features: FeatureSet, batch: int) -> Iterable[list[tuple[Query, list[Sample]]]]:
    """Queries with their passes, gathered until a batch is full; a query's passes stay together."""
    group: list[tuple[Query, list[Sample]]] = []
    for query in queries:
        passes = features.passes(query)
        if group and sum(len(known) for _, known in group) + len(passes) > batch:
            yield group
            group = []
        group.append((query, passes))
    if group:
        yield group


def _tube(query: Query, passes: Sequence[Sample], boxes: Tensor, proposals: Tensor) -> Prediction:
    """One query's tube from its P passes' boxes `[P, T_s, 4]` cxcywh and proposal logits `[P, T_d, T_d]`."""
    scores = proposals.sigmoid().mean(0)
    scores = scores.masked_fill(~valid_cells(len(scores), scores.device), -1)
    best = int(scores.argmax())
    first, last = divmod(best, len(scores))
    span = span_frames(first / len(scores), (last + 1) / len(scores), query.segment)
    numbers = np.concatenate([sample.numbers for sample in passes])
    seen = boxes.flatten(0, 1).float().cpu().numpy()
    frames, place = np.unique(numbers, return_inverse=True)
    mean = np.zeros((len(frames), 4))
    np.add.at(mean, place, seen)
    mean /= np.bincount(place)[:, None]
    corners = np.clip(cxcywh_to_xyxy(mean, query.size), 0, [*query.size, *query.size])
    rows = [(int(frame), x1, y1, x2, y2) for frame, (x1, y1, x2, y2) in zip(frames, corners.round(2).tolist(), strict=True)]
    return Prediction(id=query.id, span=span, score=round(float(scores.flatten()[best]), 6), boxes=rows)
