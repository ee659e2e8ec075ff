"""Prediction of spatio-temporal tubes with one or more models on stored features.

Forward passes cover every stored frame of a segment.
Boxes of frames covered by several passes or models are averaged.
The models of an ensemble read the same frames and clips. Their boxes and span probabilities are
averaged.
The inputs of the next batch are loaded while the models run on the current one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from grounding.data.collate import collate, to_device
from grounding.data.dataset import GroundingDataset
from grounding.data.prefetch import GPU_READER_THREADS, prefetch
from grounding.data.sample import Sample
from grounding.inference.decode_tube import decode_tube
from grounding.inference.refine import refine_segment
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.models.output import GroundingOutput
from grounding.structures.inputs import ModelInputs
from pipeline.callbacks import ProgressCallback
from pipeline.records import Prediction, Query

OutputHook = Callable[[list[np.ndarray], GroundingOutput], None]
"""Receives the frame indices `[T_s]` of each pass of a batch, and one model's outputs."""


def predict(
    models: nn.Module | Sequence[nn.Module],
    dataset: GroundingDataset,
    queries: Sequence[Query],
    batch_size: int = 16,
    progress: ProgressCallback = lambda done, total: None,
    refine_boundaries: bool = False,
    subframe_boundaries: bool = True,
) -> list[Prediction]:
    """Predict the tube of each query.

    Args:
        models: One model, or the models of an ensemble. They are put into eval mode.
        dataset: Features of the queries' videos and sentences.
        queries: Queries to predict.
        batch_size: Forward passes that run at once.
        progress: Receives the number of finished queries and the number of all queries.
        refine_boundaries: Run a second, denser pass around the predicted span (`refine`).
        subframe_boundaries: Interpolate boundaries between clips or frames.

    Returns:
        One prediction for each query, in the order of the queries.
    """

    # Maps of one size need no padding, and queries about one video share cached features.
    def sort_key(index: int) -> tuple[tuple[int, int], str]:
        return dataset.get_map_size(queries[index]), queries[index].video

    order = sorted(range(len(queries)), key=sort_key)
    segment_predictions = iter_segment_predictions(
        models,
        dataset,
        [queries[index] for index in order],
        batch_size,
        progress,
        refine_boundaries,
        subframe_boundaries,
    )
    tubes = []
    for segment_prediction in segment_predictions:
        tubes.append(decode_tube(segment_prediction, subframe_boundaries))

    # Undo the sorting.
    return [tubes[position] for position in np.argsort(order)]


@torch.inference_mode()
def iter_segment_predictions(
    models: nn.Module | Sequence[nn.Module],
    dataset: GroundingDataset,
    queries: Sequence[Query],
    batch_size: int = 16,
    progress: ProgressCallback = lambda done, total: None,
    refine_boundaries: bool = False,
    subframe_boundaries: bool = True,
) -> Iterator[SegmentPrediction]:
    """Run the models on the segments of queries.

    Passes are batched in the order of the queries. Maps of unequal size are padded, so order
    queries by map size (as `predict` does) where sizes differ.

    Args:
        models: One model, or the models of an ensemble. They are put into eval mode.
        dataset: Features of the queries' videos and sentences.
        queries: Queries to predict.
        batch_size: Forward passes that run at once.
        progress: Receives the number of finished queries and the number of all queries.
        refine_boundaries: Run a second, denser pass where the features are dense enough for one.
        subframe_boundaries: Place the second pass around interpolated boundaries.

    Yields:
        The complete prediction of each query's segment, in the order of the queries.
    """
    ensemble = [models] if isinstance(models, nn.Module) else list(models)
    for model in ensemble:
        model.eval()

    segments = (SegmentPrediction(query, dataset) for query in queries)
    batches = _plan_batches(_group_segments(segments, batch_size), batch_size)
    num_finished = 0
    progress(0, len(queries))
    with (
        PassLoader(dataset, _get_device(ensemble)) as loader,
        ThreadPoolExecutor(1, "prediction") as executor,
    ):
        for future in prefetch(executor, 1, loader.load, batches):
            finished = _forward(ensemble, future.result())
            # The future holds the batch's inputs. Free them before the next batch is loaded.
            del future
            if not finished:
                continue

            if refine_boundaries:
                _run_refinement(ensemble, dataset, finished, batch_size, subframe_boundaries)
            yield from finished
            num_finished += len(finished)
            progress(num_finished, len(queries))


def forward_passes(
    models: Sequence[nn.Module],
    dataset: GroundingDataset,
    segment_predictions: Sequence[SegmentPrediction],
    batch_size: int,
    output_hook: OutputHook | None = None,
) -> None:
    """Run the models on all passes of segments and update the segments' predictions.

    Args:
        models: The models, in eval mode, on one device.
        dataset: Features of the segments' videos and sentences.
        segment_predictions: Predictions to update.
        batch_size: Forward passes that run at once.
        output_hook: Receives the outputs of each model for each batch.
    """
    with PassLoader(dataset, _get_device(models)) as loader:
        for batch in _plan_batches([list(segment_predictions)], batch_size):
            _forward(models, loader.load(batch), output_hook)


def _run_refinement(
    models: Sequence[nn.Module],
    dataset: GroundingDataset,
    segment_predictions: Sequence[SegmentPrediction],
    batch_size: int,
    subframe_boundaries: bool,
) -> None:
    """Run the second pass around the predicted spans and set `refined` of the predictions."""
    refined_predictions = []
    for segment_prediction in segment_predictions:
        refined = refine_segment(dataset, segment_prediction, subframe_boundaries)
        segment_prediction.refined = refined
        if refined is not None:
            refined_predictions.append(refined)
    forward_passes(models, dataset, refined_predictions, batch_size)


class Pass(NamedTuple):
    """One forward pass: stored rows `[T_s]` of one segment."""

    segment_prediction: SegmentPrediction
    rows: np.ndarray


@dataclass(frozen=True)
class PassBatch:
    """Passes that run at once.

    Attributes:
        passes: The passes, at most the batch size.
        finished: Segment predictions that are complete after this batch.
    """

    passes: list[Pass]
    finished: list[SegmentPrediction]


@dataclass(frozen=True)
class LoadedPassBatch:
    """A batch of passes with its inputs.

    Attributes:
        batch: The passes.
        inputs: Collated inputs of the passes, in host memory.
        frame_indices: Video frames `[T_s]` of each pass.
    """

    batch: PassBatch
    inputs: ModelInputs
    frame_indices: list[np.ndarray]


def _group_segments(
    segment_predictions: Iterable[SegmentPrediction], batch_size: int
) -> Iterator[list[SegmentPrediction]]:
    """Yield consecutive segments whose passes fit one batch; a longer segment is a group alone."""
    group: list[SegmentPrediction] = []
    num_passes = 0
    for segment_prediction in segment_predictions:
        num_added = len(segment_prediction.passes)
        if group and num_passes + num_added > batch_size:
            yield group
            group = []
            num_passes = 0
        group.append(segment_prediction)
        num_passes += num_added
    if group:
        yield group


def _plan_batches(
    groups: Iterable[list[SegmentPrediction]], batch_size: int
) -> Iterator[PassBatch]:
    """Yield the passes of each group in batches, so that memory does not grow with a segment."""
    for group in groups:
        passes = []
        for segment_prediction in group:
            for rows in segment_prediction.passes:
                passes.append(Pass(segment_prediction, rows))

        for start in range(0, len(passes), batch_size):
            end = start + batch_size
            finished = group if end >= len(passes) else []
            yield PassBatch(passes[start:end], finished)


class PassLoader:
    """Loads and collates the samples of passes; with a thread pool when the models run on a GPU."""

    def __init__(self, dataset: GroundingDataset, device: torch.device) -> None:
        self.dataset = dataset
        self._executor: ThreadPoolExecutor | None = None
        if device.type == "cuda":
            self._executor = ThreadPoolExecutor(GPU_READER_THREADS, "prediction-reads")

    def __enter__(self) -> PassLoader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def load(self, batch: PassBatch) -> LoadedPassBatch:
        """Load the samples of a batch.

        Args:
            batch: Passes to load.

        Returns:
            The batch with its inputs in host memory.
        """
        map_function = map if self._executor is None else self._executor.map
        samples = list(map_function(self._load_sample, batch.passes))
        # For a GPU, padding is deferred until the inputs are copied to the device.
        inputs = collate(samples, defer=self._executor is not None)
        frame_indices = [sample.frame_indices for sample in samples]
        return LoadedPassBatch(batch, inputs, frame_indices)

    def _load_sample(self, single_pass: Pass) -> Sample:
        """Load the sample of one pass."""
        return self.dataset.load_sample(single_pass.segment_prediction.query, single_pass.rows)


def _forward(
    models: Sequence[nn.Module], loaded: LoadedPassBatch, output_hook: OutputHook | None = None
) -> list[SegmentPrediction]:
    """Run the models on a batch, update its predictions, and return the complete ones.

    Input features stay in memory until all models have run.
    """
    inputs = to_device(loaded.inputs, _get_device(models))
    for model in models:
        outputs: GroundingOutput = model(inputs)
        boxes = outputs.boxes[-1].double().cpu().numpy()  # [B, T_s, 4]
        span_predictions = outputs.span_predictions()
        for index, (segment_prediction, _) in enumerate(loaded.batch.passes):
            segment_prediction.update(
                loaded.frame_indices[index], boxes[index], span_predictions[index]
            )
        if output_hook is not None:
            output_hook(loaded.frame_indices, outputs)
    return loaded.batch.finished


def _get_device(models: Sequence[nn.Module]) -> torch.device:
    """Return the device of an ensemble."""
    return next(models[0].parameters()).device
