"""What a trained network sees when it answers a query: where it looks in every frame, and what it says of when.

`Witness.from_run(run, store, split)` opens a run, `witness.asked(query)` tells. Networks differ in what they look with:

- CSDVL: `guide`, A of eq. (2), which its static stream hands to its dynamic one; with `box_head=attention` also `carriers`, the cells
  that carry the box. The dynamic stream alone (`streams=dynamic`) has neither.
- CG-STVG, CoSTA: `heard`, where the temporal queries look, and `carriers` as above.

When the event happens CSDVL says by a score for every proposal (`ProposalScores.mean`, the proposal map), the other two by the
probability of every frame to be the first and to be the last (`BoundaryScores`).
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
from grounding.models.csdvl import CsdvlOutputs
from grounding.structures.span_scores import SpanScores
from pipeline.devices import resolve_device
from pipeline.records import Query
from pipeline.store import Store

ATTENTION_DESCRIPTIONS = {
    "guide": "static to dynamic attention, A of eq. (2)",
    "heard": "where the temporal queries look",
    "carriers": "cells that carry the box",
}
"""The kinds of attention, in the order of telling."""


@dataclass(frozen=True)
class AttentionMap:
    """How much each cell of each frame is looked at, after every layer: `weights` `[layers, n, H, W]` float32, at least 0.

    The map covers the whole picture: the cell in row r, column c of a frame is [c/W, (c+1)/W) × [r/H, (r+1)/H) of its width and height.
    """

    kind: str
    weights: np.ndarray

    @property
    def description(self) -> str:
        return ATTENTION_DESCRIPTIONS[self.kind]

    @property
    def normalized(self) -> np.ndarray:
        """`[layers, n, H, W]` in [0, 1]: each layer by its maximum over all frames, as Figures 5 and S1 of the paper show A."""
        return self.weights / np.maximum(self.weights.max((1, 2, 3), keepdims=True), 1e-12)


@dataclass(frozen=True)
class QueryAttention:
    """What a network saw of one query: `frames` `[n]`, ascending, are the stored frames of its segment; all were seen."""

    query: Query
    frame_indices: np.ndarray
    maps: tuple[AttentionMap, ...]
    """Of `frames`; in the order of `ABOUT`, empty where the network has no map of any kind."""
    span_scores: SpanScores[Any]


@dataclass(frozen=True)
class AttentionRecorder:
    """A run's network with the features of one split. Queries without features are not among `features.queries`.

    Everything is seen as in prediction's first look: all stored frames, in passes; what two passes saw is averaged.
    """

    model: nn.Module
    dataset: GroundingDataset
    batch_size: int = 16
    """Passes that run at once."""
    compute_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """In which the network answers."""

    @classmethod
    def from_run(
        cls, run: Path, store: Path, split: str, device: str = "auto", frames: int | None = None
    ) -> AttentionRecorder:
        """The best checkpoint of a run; `frames` it sees at once are by default as in training.

        InputError where there is no run or checkpoint, StoreError where the store does not fit it.
        """
        ensemble = Ensemble.from_runs([run], resolve_device(device), frames)
        return cls(
            ensemble.models[0].eval(),
            ensemble.load_dataset(Store(store), split),
            compute_context=ensemble.autocast,
        )

    @torch.inference_mode()
    def record(self, query: Query) -> QueryAttention:
        """What the network sees of one query of `features`."""
        look, gaze = SegmentPrediction(query, self.dataset), _PassAverager()
        with self.compute_context():
            forward_passes([self.model], self.dataset, [look], self.batch_size, gaze.add)
        assert look.span_scores is not None
        return QueryAttention(
            query, look.frame_indices, gaze.compute_mean(look.frame_indices), look.span_scores
        )


@dataclass
class _PassAverager:
    """Maps gathered pass by pass."""

    pass_maps: list[tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=list)

    def add(self, frame_indices: Sequence[np.ndarray], outputs: Any) -> None:
        """A batch of passes of one query: their frames, each `[T_s]`, and the network's outputs."""
        maps = get_attention_maps(outputs)
        self.pass_maps += [
            (own, {kind: weights[:, place] for kind, weights in maps.items()})
            for place, own in enumerate(frame_indices)
        ]

    def compute_mean(self, frame_indices: np.ndarray) -> tuple[AttentionMap, ...]:
        """The mean of what was seen at each of `frames` `[n]`."""
        place = np.searchsorted(
            frame_indices, np.concatenate([numbers for numbers, _ in self.pass_maps])
        )
        times = np.bincount(place)[:, None, None, None]
        found = []
        for kind in self.pass_maps[0][1]:
            seen = np.concatenate([maps[kind] for _, maps in self.pass_maps], 1).swapaxes(0, 1)
            total = np.zeros((len(frame_indices), *seen.shape[1:]), np.float32)
            np.add.at(total, place, seen)
            found.append(AttentionMap(kind, (total / times).swapaxes(0, 1)))
        return tuple(found)


def get_attention_maps(outputs: Any) -> dict[str, np.ndarray]:
    """Attention by kind, of outputs without batch padding, `[layers, B, T_s, H, W]`; without carriers where an MLP finds the
    boxes, whose carriers are uniform.
    """
    looked = (
        {"guide": outputs.guidance}
        if isinstance(outputs, CsdvlOutputs)
        else {"heard": outputs.temporal_attention}
    )
    if len(outputs.cell_boxes):
        looked["carriers"] = outputs.box_attention
    maps = {}
    for kind, weights in looked.items():
        if not weights.numel():
            continue  # the dynamic stream alone has no A
        if weights.dim() == 4:  # cells in one row: [K, B, T, H·W]
            weights = weights.unflatten(-1, (-1, len(outputs.cell_centers[0, :, 0].unique())))
        maps[kind] = weights.float().cpu().numpy()
    return maps
