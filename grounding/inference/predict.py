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
from grounding.inference.refine import found_span, second_look
from grounding.inference.segment_prediction import Look
from grounding.structures.inputs import ModelInputs
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.records import Prediction, Query

Progress = Callable[[int, int], None]
Result = TypeVar("Result")
Watch = Callable[[list[np.ndarray], Any], None]
"""`(each pass' frames [T_s], the model's outputs)` of a batch of passes."""
Passes = Sequence[tuple[Look, np.ndarray]]
"""The rows `[T_s]` that each takes, and the look it belongs to."""


def predict(
    models: nn.Module | Sequence[nn.Module],
    features: GroundingDataset,
    queries: Sequence[Query],
    batch: int = 16,
    progress: Progress = lambda done, total: None,
    refine: bool = False,
    between: bool = True,
) -> list[Prediction]:
    """The tube of each query, in order; arguments as of `predicted`."""
    return predicted(tube, models, features, queries, batch, progress, refine, between)


@torch.inference_mode()
def predicted(
    finish: Callable[[Look, Look | None, bool], Result],
    models: nn.Module | Sequence[nn.Module],
    features: GroundingDataset,
    queries: Sequence[Query],
    batch: int = 16,
    progress: Progress = lambda done, total: None,
    refine: bool = False,
    between: bool = True,
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
        key=lambda number: (features.map_size(queries[number]), queries[number].video),
    )
    parts = _parts(_grouped([queries[number] for number in order], features, batch), batch)
    answers: list[Result] = []
    progress(0, len(queries))
    with (
        _Reader(features, _device_of(ensemble)) as read,
        ThreadPoolExecutor(1, "prediction") as before,
    ):
        for made in prefetch(before, 1, read, parts):
            part = _answer(ensemble, made.result())
            del made  # what its passes saw gives way to what is read now
            if not part.last:
                continue
            closer = [
                second_look(features, first, between) if refine else None for first in part.group
            ]
            see(ensemble, features, [look for look in closer if look is not None], batch)
            answers += [
                finish(first, second, between)
                for first, second in zip(part.group, closer, strict=True)
            ]
            progress(len(answers), len(queries))
    return [answers[place] for place in np.argsort(order)]


def _grouped(
    queries: Iterable[Query], features: GroundingDataset, batch: int
) -> Iterable[list[Look]]:
    """The queries' first looks, gathered until their passes fill a batch."""
    group: list[Look] = []
    for query in queries:
        look = Look(query, features)
        if group and sum(len(known.passes) for known in group) + len(look.passes) > batch:
            yield group
            group = []
        group.append(look)
    if group:
        yield group


@dataclass(frozen=True)
class _Part:
    """Passes of a group of looks that run at once; `last`: no other of the group's come after them."""

    group: list[Look]
    passes: Passes
    last: bool


def _parts(groups: Iterable[list[Look]], batch: int) -> Iterator[_Part]:
    """The groups' passes, `batch` at a time: no more features than those, and those of the next, are held, however long a segment is."""
    for group in groups:
        passes = [(look, rows) for look in group for rows in look.passes]
        for start in range(0, len(passes), batch):
            yield _Part(group, passes[start : start + batch], start + batch >= len(passes))


def see(
    models: Sequence[nn.Module],
    features: GroundingDataset,
    looks: list[Look],
    batch: int,
    watch: Watch = lambda numbers, out: None,
) -> None:
    """Run the passes of these looks. `watch` is shown all that each model answers to each batch."""
    with _Reader(features, _device_of(models)) as read:
        for part in _parts([looks], batch):
            _answer(models, read(part), watch)


@dataclass(frozen=True)
class _Seen:
    """What the passes of a part see, in the machine's memory, and the numbers `[T_s]` of each one's frames."""

    part: _Part
    inputs: ModelInputs
    numbers: list[np.ndarray]


class _Reader:
    """Reads what passes see, on the calling thread, or for a GPU on several."""

    def __init__(self, features: GroundingDataset, device: torch.device) -> None:
        self.features = features
        self._threads = (
            ThreadPoolExecutor(GPU_READER_THREADS, "prediction-reads")
            if device.type == "cuda"
            else None
        )

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __call__(self, part: _Part) -> _Seen:
        read = map if self._threads is None else self._threads.map
        samples = list(
            read(lambda own: self.features.load_sample(own[0].query, own[1]), part.passes)
        )
        return _Seen(
            part,
            collate(samples, defer=self._threads is not None),
            [sample.frame_indices for sample in samples],
        )


def _answer(
    models: Sequence[nn.Module], seen: _Seen, watch: Watch = lambda numbers, out: None
) -> _Part:
    """Let each look of a part know what the models say to its passes. What they see is held until they have."""
    inputs = to_device(seen.inputs, _device_of(models))
    for model in models:
        out = model(inputs)
        boxes, answers = out.boxes[-1].double().cpu().numpy(), out.when()
        for place, (look, _) in enumerate(seen.part.passes):
            look.add(seen.numbers[place], boxes[place], answers[place])
        watch(seen.numbers, out)
    return seen.part


def _device_of(models: Sequence[nn.Module]) -> torch.device:
    return next(models[0].parameters()).device


def tube(first: Look, second: Look | None, between: bool) -> Prediction:
    """A query's tube from what was seen of its segment and, closer, of a part of it."""
    query = first.query
    span, score = found_span(first, second, between)
    looks = [first] if second is None else [first, second]
    frames, place = np.unique(np.concatenate([look.frames for look in looks]), return_inverse=True)
    boxes, seen = np.zeros((len(frames), 4)), np.zeros(len(frames))
    np.add.at(boxes, place, np.concatenate([look.boxes for look in looks]))
    np.add.at(seen, place, np.concatenate([look.seen for look in looks]))
    corners = np.clip(
        cxcywh_to_xyxy(boxes / seen[:, None], query.size), 0, [*query.size, *query.size]
    )
    rows = [
        (int(frame), x1, y1, x2, y2)
        for frame, (x1, y1, x2, y2) in zip(frames, corners.round(2).tolist(), strict=True)
    ]
    return Prediction(id=query.id, span=span, score=round(score, 6), boxes=rows)


def ranked_tube(first: Look, second: Look | None, between: bool) -> tuple[float, Prediction]:
    """A query's tube, and a number by which tubes of other segments compare with it (`SpanScores.level`): by what the first look says,
    which is one of the whole segment in all of them.
    """
    assert first.when is not None
    *_, score = first.when.best_span(between)
    return math.log(max(score, 1e-6)) + first.when.log_normalizer, tube(first, second, between)
