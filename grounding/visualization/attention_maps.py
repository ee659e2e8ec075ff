"""Attention maps and temporal scores of a trained model for one query.

`AttentionRecorder.from_run(run, store, split)` opens a run and `recorder.record(query)` runs its
model. The kinds of attention depend on the model:

- CSDVL: `guidance`, A of eq. (2), which the static stream hands to the dynamic stream. With
  `box_head=attention` also `box_attention`, the weights of the cells that make the box. The dynamic
  stream alone (`streams=dynamic`) has neither.
- CG-STVG, CoSTA: `temporal_attention`, the attention of the temporal queries, and `box_attention`
  as above.

CSDVL predicts the event's time by a score for every proposal (`ProposalScores.mean`, the proposal
map). The other two predict the probability of every frame to be the first and to be the last
(`BoundaryScores`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grounding.data.dataset import GroundingDataset
from grounding.inference.ensemble import Ensemble
from grounding.inference.predict import forward_passes
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.models.output import AttentionKind, GroundingOutput
from grounding.structures.span_scores import SpanScores
from pipeline.devices import resolve_device
from pipeline.records import Query
from pipeline.store import Store

ATTENTION_DESCRIPTIONS: dict[AttentionKind, str] = {
    "guidance": "static to dynamic attention, A of eq. (2)",
    "temporal_attention": "attention of the temporal queries",
    "box_attention": "weights of the cells that make the box",
}
"""Descriptions of the kinds of attention, in display order."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention on each cell of each frame, after every layer.

    A map covers the whole image. The cell in row r and column c of a frame covers
    [c/W, (c+1)/W) of the image's width and [r/H, (r+1)/H) of its height.

    Attributes:
        kind: The kind of attention.
        weights: `[layers, n, H, W]` float32, non-negative.
    """

    kind: AttentionKind
    weights: np.ndarray

    @property
    def description(self) -> str:
        """Description of the kind of attention, for people."""
        return ATTENTION_DESCRIPTIONS[self.kind]

    @property
    def normalized(self) -> np.ndarray:
        """Weights divided by each layer's maximum over all frames, `[layers, n, H, W]` in [0, 1].

        Figures 5 and S1 of the CSDVL paper show A in this way.
        """
        maximum = self.weights.max((1, 2, 3), keepdims=True)  # [layers, 1, 1, 1]

        return self.weights / np.maximum(maximum, 1e-12)


@dataclass(frozen=True)
class QueryAttention:
    """Attention maps and temporal scores of one model for one query.

    Attributes:
        query: The query.
        frame_indices: `[n]`, ascending; all stored frames of the query's segment.
        maps: Maps of these n frames, in the order of `ATTENTION_DESCRIPTIONS`. Empty if the model
            has no map of any kind.
        span_scores: Scores of spans in the segment.
    """

    query: Query
    frame_indices: np.ndarray
    maps: tuple[AttentionMap, ...]
    span_scores: SpanScores[Any]


@dataclass(frozen=True)
class AttentionRecorder:
    """A run's model with the features of one split.

    The forward passes are those of prediction, without refinement: passes over all stored frames.
    Maps of frames covered by several passes are averaged.

    Attributes:
        model: The model, in eval mode.
        dataset: Features of the split. `dataset.queries` lacks queries without features.
        batch_size: Number of passes in one forward pass of the model.
        compute_context: Makes the context for forward passes, for example autocast.
    """

    model: nn.Module
    dataset: GroundingDataset
    batch_size: int = 16
    compute_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @classmethod
    def from_run(
        cls, run: Path, store: Path, split: str, device: str = "auto", frames: int | None = None
    ) -> AttentionRecorder:
        """Load the best checkpoint of a run.

        Args:
            run: The run's directory.
            store: The feature store's directory.
            split: Split whose queries are recorded.
            device: `auto`, `cpu` or `cuda`.
            frames: Number of frames in a pass; None: as in training.

        Returns:
            The recorder.

        Raises:
            InputError: If there is no run or no checkpoint.
            StoreError: If the store does not fit the run.
        """
        ensemble = Ensemble.from_runs([run], resolve_device(device), frames)

        return cls(
            model=ensemble.models[0].eval(),
            dataset=ensemble.load_dataset(Store(store), split),
            compute_context=ensemble.autocast,
        )

    @torch.inference_mode()
    def record(self, query: Query) -> QueryAttention:
        """Run the model on one query.

        Args:
            query: A query of `dataset.queries`.

        Returns:
            Attention maps and temporal scores over the query's segment.
        """
        prediction = SegmentPrediction(query, self.dataset)
        averager = _PassAverager()

        # The averager sees the outputs of every batch of passes.
        with self.compute_context():
            forward_passes([self.model], self.dataset, [prediction], self.batch_size, averager.add)

        assert prediction.span_scores is not None

        return QueryAttention(
            query=query,
            frame_indices=prediction.frame_indices,
            maps=averager.compute_mean(prediction.frame_indices),
            span_scores=prediction.span_scores,
        )


@dataclass
class _PassAverager:
    """Collector of the attention maps of passes, and their mean per frame."""

    pass_maps: list[tuple[np.ndarray, dict[AttentionKind, np.ndarray]]] = field(
        default_factory=list
    )
    """Frame indices `[T_s]` of each pass, and its maps by kind, `[layers, T_s, H, W]`."""

    def add(self, frame_indices: Sequence[np.ndarray], outputs: GroundingOutput) -> None:
        """Add a batch of passes of one query: frame indices `[T_s]` of each, and the outputs."""
        maps = get_attention_maps(outputs)

        for slot, pass_frames in enumerate(frame_indices):
            maps_of_pass = {kind: weights[:, slot] for kind, weights in maps.items()}
            self.pass_maps.append((pass_frames, maps_of_pass))

    def compute_mean(self, frame_indices: np.ndarray) -> tuple[AttentionMap, ...]:
        """Return the mean over passes at each of the frames `[n]`, ascending."""
        # Row of each pass's frame among the segment's n frames, over all passes: [sum of T_s].
        frames_of_passes = np.concatenate([pass_frames for pass_frames, _ in self.pass_maps])
        rows = np.searchsorted(frame_indices, frames_of_passes)
        counts = np.bincount(rows)[:, None, None, None]  # [n, 1, 1, 1]

        _, first_maps = self.pass_maps[0]
        result = []
        for kind in first_maps:
            # Sum the maps of each frame. Frames come first for `np.add.at`.
            weights = np.concatenate([maps[kind] for _, maps in self.pass_maps], axis=1)
            weights = weights.swapaxes(0, 1)  # [sum of T_s, layers, H, W]
            total = np.zeros((len(frame_indices), *weights.shape[1:]), np.float32)
            np.add.at(total, rows, weights)

            mean = (total / counts).swapaxes(0, 1)  # [layers, n, H, W]
            result.append(AttentionMap(kind, mean))

        return tuple(result)


def get_attention_maps(outputs: GroundingOutput) -> dict[AttentionKind, np.ndarray]:
    """Return the attention maps of a model's outputs as arrays.

    Args:
        outputs: Outputs of a batch of B passes without padding of maps.

    Returns:
        Weights by kind, `[layers, B, T_s, H, W]` float32 in host memory. Kinds that the model does
        not produce are absent.
    """
    maps = {}
    for kind, weights in outputs.attention_maps().items():
        maps[kind] = weights.float().cpu().numpy()

    return maps
