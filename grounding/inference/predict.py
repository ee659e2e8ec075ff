"""Models and a store → tubes. Every stored frame of the segment is seen; what is seen twice, or by several models, is averaged.

An ensemble's models see the same frames and clips: their boxes are averaged, and the probabilities of when the event happens. What the
next first looks see is read while the present ones are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from grounding.data.collate import collate, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.prefetch import GPU_READER_THREADS, prefetch
from grounding.inference.refine import decode_span, refine_segment
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.structures.inputs import ModelInputs
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.records import Prediction, Query

ProgressCallback = Callable[[int, int], None]
Result = TypeVar("Result")
OutputHook = Callable[[list[np.ndarray], Any], None]
"""`(each pass' frames [T_s], the model's outputs)` of a batch of passes."""
PassList = Sequence[tuple[SegmentPrediction, np.ndarray]]
"""The rows `[T_s]` that each takes, and the look it belongs to."""


def predict(
    models: nn.Module | Sequence[nn.Module],
    dataset: GroundingDataset,
    queries: Sequence[Query],
    batch_size: int = 16,
    progress: ProgressCallback = lambda done, total: None,
    refine_boundaries: bool = False,
    subframe_boundaries: bool = True,
) -> list[Prediction]:
    """The tube of each query, in order; arguments as of `predicted`."""
    return run_passes(
        decode_tube,
        models,
        dataset,
        queries,
        batch_size,
        progress,
        refine_boundaries,
        subframe_boundaries,
    )


@torch.inference_mode()
def run_passes(
    decode_result: Callable[[SegmentPrediction, SegmentPrediction | None, bool], Result],
    models: nn.Module | Sequence[nn.Module],
    dataset: GroundingDataset,
    queries: Sequence[Query],
    batch_size: int = 16,
    progress: ProgressCallback = lambda done, total: None,
    refine_boundaries: bool = False,
    subframe_boundaries: bool = True,
) -> list[Result]:
    """What `finish` makes of the looks at each query, in order. `batch` is how many passes run at once, those with maps of one size
    together, so that little is padded, and those of one video; the models are put into eval mode.

    With `refine` a second, denser look is taken around the first answer, where the features are dense enough for one;
    with `between` spans begin and end between clips or frames, where the scores around the best place point (`SpanScores.best`).
    """
    ensemble = [models] if isinstance(models, nn.Module) else list(models)
    for model in ensemble:
        model.eval()
    order = sorted(
        range(len(queries)),
        key=lambda number: (dataset.map_size(queries[number]), queries[number].video),
    )
    parts = _split_into_batches(
        _group_queries([queries[number] for number in order], dataset, batch_size), batch_size
    )
    answers: list[Result] = []
    progress(0, len(queries))
    with (
        PassLoader(dataset, _get_device(ensemble)) as read,
        ThreadPoolExecutor(1, "prediction") as before,
    ):
        for made in prefetch(before, 1, read, parts):
            part = _forward(ensemble, made.result())
            del made  # what its passes saw gives way to what is read now
            if not part.is_last:
                continue
            closer = [
                refine_segment(dataset, first, subframe_boundaries) if refine_boundaries else None
                for first in part.segment_predictions
            ]
            forward_passes(
                ensemble, dataset, [look for look in closer if look is not None], batch_size
            )
            answers += [
                decode_result(first, second, subframe_boundaries)
                for first, second in zip(part.segment_predictions, closer, strict=True)
            ]
            progress(len(answers), len(queries))
    return [answers[place] for place in np.argsort(order)]


def _group_queries(
    queries: Iterable[Query], dataset: GroundingDataset, batch_size: int
) -> Iterable[list[SegmentPrediction]]:
    """The queries' first looks, gathered until their passes fill a batch."""
    group: list[SegmentPrediction] = []
    for query in queries:
        look = SegmentPrediction(query, dataset)
        if group and sum(len(known.passes) for known in group) + len(look.passes) > batch_size:
            yield group
            group = []
        group.append(look)
    if group:
        yield group


@dataclass(frozen=True)
class PassBatch:
    """Passes of a group of looks that run at once; `last`: no other of the group's come after them."""

    segment_predictions: list[SegmentPrediction]
    passes: PassList
    is_last: bool


def _split_into_batches(
    groups: Iterable[list[SegmentPrediction]], batch_size: int
) -> Iterator[PassBatch]:
    """The groups' passes, `batch` at a time: no more features than those, and those of the next, are held, however long a segment is."""
    for group in groups:
        passes = [(look, rows) for look in group for rows in look.passes]
        for start in range(0, len(passes), batch_size):
            yield PassBatch(
                group, passes[start : start + batch_size], start + batch_size >= len(passes)
            )


def forward_passes(
    models: Sequence[nn.Module],
    dataset: GroundingDataset,
    segment_predictions: list[SegmentPrediction],
    batch_size: int,
    output_hook: OutputHook = lambda numbers, out: None,
) -> None:
    """Run the passes of these looks. `watch` is shown all that each model answers to each batch."""
    with PassLoader(dataset, _get_device(models)) as read:
        for part in _split_into_batches([segment_predictions], batch_size):
            _forward(models, read(part), output_hook)


@dataclass(frozen=True)
class LoadedPasses:
    """What the passes of a part see, in the machine's memory, and the numbers `[T_s]` of each one's frames."""

    pass_batch: PassBatch
    inputs: ModelInputs
    frame_indices: list[np.ndarray]


class PassLoader:
    """Reads what passes see, on the calling thread, or for a GPU on several."""

    def __init__(self, dataset: GroundingDataset, device: torch.device) -> None:
        self.dataset = dataset
        self._executor = (
            ThreadPoolExecutor(GPU_READER_THREADS, "prediction-reads")
            if device.type == "cuda"
            else None
        )

    def __enter__(self) -> PassLoader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def __call__(self, pass_batch: PassBatch) -> LoadedPasses:
        read = map if self._executor is None else self._executor.map
        samples = list(
            read(lambda own: self.dataset.load_sample(own[0].query, own[1]), pass_batch.passes)
        )
        return LoadedPasses(
            pass_batch,
            collate(samples, defer=self._executor is not None),
            [sample.frame_indices for sample in samples],
        )


def _forward(
    models: Sequence[nn.Module],
    loaded_passes: LoadedPasses,
    output_hook: OutputHook = lambda numbers, out: None,
) -> PassBatch:
    """Let each look of a part know what the models say to its passes. What they see is held until they have."""
    inputs = to_device(loaded_passes.inputs, _get_device(models))
    for model in models:
        out = model(inputs)
        boxes, answers = out.boxes[-1].double().cpu().numpy(), out.span_predictions()
        for place, (look, _) in enumerate(loaded_passes.pass_batch.passes):
            look.update(loaded_passes.frame_indices[place], boxes[place], answers[place])
        output_hook(loaded_passes.frame_indices, out)
    return loaded_passes.pass_batch


def _get_device(models: Sequence[nn.Module]) -> torch.device:
    return next(models[0].parameters()).device


def decode_tube(
    segment_prediction: SegmentPrediction,
    refined_prediction: SegmentPrediction | None,
    subframe_boundaries: bool,
) -> Prediction:
    """A query's tube from what was seen of its segment and, closer, of a part of it."""
    query = segment_prediction.query
    span, score = decode_span(segment_prediction, refined_prediction, subframe_boundaries)
    looks = (
        [segment_prediction]
        if refined_prediction is None
        else [segment_prediction, refined_prediction]
    )
    frames, place = np.unique(
        np.concatenate([look.frame_indices for look in looks]), return_inverse=True
    )
    boxes, seen = np.zeros((len(frames), 4)), np.zeros(len(frames))
    np.add.at(boxes, place, np.concatenate([look.box_sums for look in looks]))
    np.add.at(seen, place, np.concatenate([look.box_counts for look in looks]))
    corners = np.clip(
        cxcywh_to_xyxy(boxes / seen[:, None], query.size), 0, [*query.size, *query.size]
    )
    rows = [
        (int(frame), x1, y1, x2, y2)
        for frame, (x1, y1, x2, y2) in zip(frames, corners.round(2).tolist(), strict=True)
    ]
    return Prediction(id=query.id, span=span, score=round(score, 6), boxes=rows)


def decode_ranked_tube(
    segment_prediction: SegmentPrediction,
    refined_prediction: SegmentPrediction | None,
    subframe_boundaries: bool,
) -> tuple[float, Prediction]:
    """A query's tube, and a number by which tubes of other segments compare with it (`SpanScores.level`): by what the first look says,
    which is one of the whole segment in all of them.
    """
    assert segment_prediction.span_scores is not None
    *_, score = segment_prediction.span_scores.best_span(subframe_boundaries)
    return math.log(max(score, 1e-6)) + segment_prediction.span_scores.log_normalizer, decode_tube(
        segment_prediction, refined_prediction, subframe_boundaries
    )
