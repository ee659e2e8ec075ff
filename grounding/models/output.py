"""Interface of model outputs: boxes, temporal predictions and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.structures.span_scores import SpanPrediction

AttentionKind = Literal["guidance", "temporal_attention", "box_attention"]
"""Kinds of attention maps.

- `guidance`: attention A from the static to the dynamic stream (CSDVL, eq. (2)).
- `temporal_attention`: attention of the temporal queries.
- `box_attention`: weights of the cells that make the box.
"""


class GroundingOutput(Protocol):
    """Outputs of a grounding model for a batch of B queries."""

    boxes: Tensor
    """`[layers, B, T_s, 4]`, cxcywh in [0, 1]; the last layer is the prediction."""

    def span_predictions(self) -> Sequence[SpanPrediction]:
        """Return the temporal prediction of each query.

        Returns:
            B predictions on the CPU.
        """

    def attention_maps(self) -> dict[AttentionKind, Tensor]:
        """Return the model's attention over the cells of each frame, for drawing.

        The outputs must come from a batch without padding of maps.

        Returns:
            Weights by kind, [layers, B, T_s, H, W] each.
            Kinds that the model's configuration does not produce are absent.
        """


def framewise_attention_maps(outputs: FramewiseOutputs) -> dict[AttentionKind, Tensor]:
    """Return the attention maps of a frame-wise model.

    Args:
        outputs: Outputs of a batch without padding of maps.

    Returns:
        `temporal_attention`, and `box_attention` if an attention head predicts the boxes;
        [K, B, T, H, W] each.
    """
    maps: dict[AttentionKind, Tensor] = {
        "temporal_attention": _unflatten_cells(outputs.temporal_attention, outputs)
    }

    # An MLP head has no cell boxes, and its box attention is uniform.
    if len(outputs.cell_boxes):
        maps["box_attention"] = _unflatten_cells(outputs.box_attention, outputs)

    return maps


def _unflatten_cells(weights: Tensor, outputs: FramewiseOutputs) -> Tensor:
    """Return weights [K, B, T, H·W] as maps [K, B, T, H, W]."""
    cell_x = outputs.cell_centers[0, :, 0]  # [H·W]
    columns = len(cell_x.unique())

    return weights.unflatten(-1, (-1, columns))
