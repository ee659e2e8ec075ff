"""CSDVL (CVPR 2023).

Paper: Collaborative Static and Dynamic Vision-Language Streams for Spatio-Temporal Video Grounding.

A static stream grounds the sentence in single frames. It has DETR's encoder and decoder, with one
object query per frame. A dynamic stream (STCMT) grounds the described event in clips. After each
pair of layers a collaboration block exchanges information. Static to dynamic: the object's
location, eq. (2). Dynamic to static: the motion at each location.

Heads: a box per frame, a score per frame and per clip, and a score for every temporal proposal
`[i/T_d, (j+1)/T_d)`.

Shapes: B queries, T_s frames, T_d clips, L text tokens, d channels, H·W appearance cells per frame,
S motion cells per clip.

Decisions where the paper is ambiguous:

- Eq. (1) prints `Q_l = W_l^v H_l`. The code uses W_l^q. All attention is multi-head with an output
  projection.
- A of eq. (2) is a second softmax of the decoder's cross-attention, with the projected query
  multiplied by α. The softmax is over the H·W visual and L text tokens. The visual part is not
  renormalized, and heads are averaged. Gradients flow through A; `detach_guidance` stops them.
- Motion cells in the padding of the square are masked in attention and in means (`mask_padding`).
- All position encodings are fixed sine encodings. A motion cell's position is its location in the
  picture, so that both streams use the same coordinates. The dynamic-to-static attention reads
  values that include positions, so that a query can learn the location.
- sum, fc_sum and concat_fc (Table 5) have no layer norm of their own.

Deviations from the paper, for training from scratch (off by default):

- `guidance_scale=num_cells` multiplies A, which is about 1/(H·W), by H·W. `none` is the paper's.
- `box_head=attention` replaces the paper's `mlp`, which learns almost nothing within minutes.
- `clip_pooling=attention` replaces the paper's spatial mean of F (`mean`). An object covers few
  cells, so the mean hides its motion, and the temporal loss stays flat for hundreds of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from grounding.models.config import TransformerConfig
from grounding.models.output import AttentionKind
from grounding.modules.alignment import (
    frame_clip_indices,
    frames_to_clips_matrix,
    square_cell_coordinates,
    to_square_grid,
)
from grounding.modules.attention import Attention
from grounding.modules.box_heads import AttentionBoxHead, CellProposals, MLPBoxHead
from grounding.modules.box_ops import full_frame_boxes
from grounding.modules.layers import MLP, EncoderLayer, FeedForward, to_compute_dtype
from grounding.modules.position_encoding import cell_positions, sinusoidal_2d, sinusoidal_time
from grounding.modules.proposal_map import ProposalHead
from grounding.structures.inputs import ModelInputs
from grounding.structures.span_scores import ProposalPrediction

CollaborationKind = Literal["full", "none", "s2d", "d2s", "sum", "fc_sum", "concat_fc"]


class CsdvlConfig(TransformerConfig):
    """Configuration of the model. The defaults are the paper's for HC-STVG."""

    motion_product: ClassVar[str] = "motion"
    """Store product with the motion maps."""
    uses_images: ClassVar[bool] = False
    """The model reads cached appearance maps."""

    num_layers: int = Field(default=6, ge=1)
    """Layers of each stream."""
    num_frames: int = Field(default=48, ge=1)
    """T_s, frames of a training pass."""
    num_clips: int = Field(default=16, ge=1)
    """T_d, clips of a pass."""
    alpha: float = Field(default=0.1, gt=0)
    """α of eq. (2), the factor of the query in the guidance attention."""
    guidance_scale: Literal["none", "num_cells"] = "none"
    """Factor of A of eq. (2): none, or the number of cells of the frame."""
    detach_guidance: bool = False
    """Stop the gradient through A of eq. (2)."""
    collaboration: CollaborationKind = "full"
    """Collaboration block (sec. 3.3): `full` is the paper's, the others are Table 5's variants."""
    query_self_attention: bool = True
    """Self-attention over the object queries of all frames, in the dynamic-to-static direction."""
    streams: Literal["both", "dynamic"] = "both"
    """Streams of the model. With `dynamic` alone every box is the whole frame."""
    dynamic_spatial_tokens: bool = True
    """One motion token per cell; false: one per clip (Table 4, "w/o spatial")."""
    text_attends_pooled_clips: bool = True
    """Text tokens attend to clips pooled over space; false: to all motion cells."""
    mask_padding: bool = True
    """Mask motion cells in the padding of the square."""
    box_head: Literal["mlp", "attention"] = "mlp"
    """Box head: the paper's MLP, or attention over cells, which learns from scratch."""
    clip_pooling: Literal["mean", "attention"] = "mean"
    """Pooling of a clip's cells into its feature F_d: the paper's mean, or learned attention."""
    proposal_map_channels: int = Field(default=512, ge=1)
    """Channels of the convolutions on the proposal map."""
    proposal_map_kernel: int = Field(default=5, ge=1)
    """Kernel size of the convolutions on the proposal map; odd."""
    proposal_map_layers: int = Field(default=8, ge=0)
    """Number of convolutions on the proposal map."""

    @model_validator(mode="after")
    def _check_kernel_is_odd(self) -> CsdvlConfig:
        """Reject even kernels, which have no center cell."""
        if self.proposal_map_kernel % 2 == 0:
            raise ValueError(f"proposal_map_kernel must be odd, not {self.proposal_map_kernel}")
        return self


@dataclass
class CsdvlOutputs:
    """Outputs of the model for B queries."""

    boxes: Tensor
    """`[layers, B, T_s, 4]`, cxcywh in [0, 1] after every layer; the last is the prediction."""
    proposal_logits: Tensor
    """`[B, T_d, T_d]`, logits of the proposals `[i/T_d, (j+1)/T_d)`; valid for i ≤ j."""
    frame_logits: Tensor
    """`[B, T_s]`, logits of each frame to lie in the event."""
    clip_logits: Tensor
    """`[B, T_d]`, logits of each clip to lie in the event."""
    guidance: Tensor
    """`[layers, B, T_s, H, W]`, A of eq. (2) on the frames' cells, after every layer.
    Empty with `streams=dynamic`."""
    box_attention: Tensor
    """`[layers, B, T_s, H, W]`, weights of the cells that make the box; sums to 1 over cells.
    Uniform with `box_head=mlp`, empty with `streams=dynamic`."""
    cell_boxes: Tensor
    """`[B, T_s, H·W, 4]` cxcywh, the box proposal of each cell with `box_head=attention`.
    Empty with `box_head=mlp` and with `streams=dynamic`."""
    cell_centers: Tensor
    """`[B, H·W, 2]`, centers (x, y) of the appearance cells in [0, 1]."""
    temporal_attention: Tensor
    """`[B, T_d, S]`, pooling weights of each clip's cells in its feature F_d; sums to 1."""
    temporal_cell_centers: Tensor
    """`[B, S, 2]`, centers (x, y) of the motion cells, relative to the picture."""

    def span_predictions(self) -> list[ProposalPrediction]:
        """Return the probability of every proposal, one prediction per query.

        Returns:
            B predictions on the CPU, in float64.
        """
        probabilities = self.proposal_logits.detach().double().sigmoid().cpu().numpy()
        return [ProposalPrediction(proposal_map) for proposal_map in probabilities]

    def attention_maps(self) -> dict[AttentionKind, Tensor]:
        """Return A of eq. (2), and the box attention if an attention head predicts the boxes.

        The outputs must come from a batch without padding of maps.

        Returns:
            Weights by kind, [layers, B, T_s, H, W] each. Empty with `streams=dynamic`.
        """
        maps: dict[AttentionKind, Tensor] = {}

        # The dynamic stream alone has no A.
        if self.guidance.numel():
            maps["guidance"] = self.guidance

        # An MLP head has no cell boxes, and its box attention is uniform.
        if len(self.cell_boxes):
            maps["box_attention"] = self.box_attention

        return maps


@dataclass
class TokenGeometry:
    """Positions and masks of all tokens, and the alignment of the two streams."""

    cell_positions: Tensor
    """`[B, H·W, d]`, position encodings of the appearance cells."""
    cell_mask: Tensor
    """`[B, H·W]`, False at batch padding."""
    cell_centers: Tensor
    """`[B, H·W, 2]`, (x, y) relative to the picture."""
    motion_cell_indices: Tensor
    """`[S]`, the motion cells (of h·w) that lie in the picture of any query of the batch.
    The other motion cells are dropped."""
    motion_cell_positions: Tensor
    """`[B, S, d]`, position encodings of the remaining motion cells."""
    motion_cell_mask: Tensor
    """`[B, S]`, False at padding of the square."""
    motion_cell_centers: Tensor
    """`[B, S, 2]`, (x, y) relative to the picture."""
    clip_positions: Tensor
    """`[1, T_d, d]`, position encodings of the clips."""
    frame_time_positions: Tensor
    """`[B, T_s, d]`, position encodings of the frames."""
    clip_of_frame: Tensor
    """`[B, T_s]`, index of each frame's clip."""
    frames_to_clips_matrix: Tensor
    """`[B, T_d, T_s]`, averages the frames of each clip."""
    map_size: Tensor
    """`[B, 2]`, rows and columns of the appearance maps without padding."""
    picture_in_square: Tensor
    """`[B, 4]`, xyxy of the picture, relative to the square of the motion maps."""
    motion_shape: tuple[int, int]
    """Rows h and columns w of the motion maps."""

    @classmethod
    def from_inputs(cls, inputs: ModelInputs, hidden_dim: int, mask_padding: bool) -> TokenGeometry:
        """Compute the geometry of a batch.

        Args:
            inputs: The batch.
            hidden_dim: Channels d of the position encodings.
            mask_padding: Mask motion cells in the padding of the square.

        Returns:
            The geometry of all tokens.
        """
        rows, columns = inputs.appearance.shape[2:4]
        num_clips, height, width = inputs.motion.shape[1:4]
        device = inputs.motion.device

        # Appearance cells.
        map_size = inputs.expand_to_queries(inputs.map_size)  # [B, 2]
        square = inputs.expand_to_queries(inputs.picture_in_square)  # [B, 4]
        positions, mask, centers = cell_positions(map_size, rows, columns, hidden_dim)

        # Motion cells: drop those outside the picture of every query.
        motion_corners, motion_centers, in_picture = square_cell_coordinates(square, height, width)
        motion_corners = motion_corners.flatten(1, 2)  # [B, h·w, 2]
        motion_centers = motion_centers.flatten(1, 2)  # [B, h·w, 2]
        in_picture = in_picture.flatten(1, 2)  # [B, h·w]
        if not mask_padding:
            in_picture = torch.ones_like(in_picture)
        motion_cell_indices = in_picture.any(0).nonzero()[:, 0]  # [S]

        clip_centers = (torch.arange(num_clips, device=device) + 0.5) / num_clips  # [T_d]

        return cls(
            cell_positions=positions,
            cell_mask=mask,
            cell_centers=centers,
            motion_cell_indices=motion_cell_indices,
            motion_cell_positions=sinusoidal_2d(motion_corners[:, motion_cell_indices], hidden_dim),
            motion_cell_mask=in_picture[:, motion_cell_indices],
            motion_cell_centers=motion_centers[:, motion_cell_indices],
            clip_positions=sinusoidal_time(clip_centers, hidden_dim)[None],
            frame_time_positions=sinusoidal_time(inputs.frame_positions, hidden_dim),
            clip_of_frame=frame_clip_indices(inputs.frame_positions, num_clips),
            frames_to_clips_matrix=frames_to_clips_matrix(inputs.frame_positions, num_clips),
            map_size=map_size,
            picture_in_square=square,
            motion_shape=(height, width),
        )

    def without_space(self) -> TokenGeometry:
        """Return the geometry of motion maps with a single cell (Table 4, "w/o spatial").

        Returns:
            The geometry with S = 1 and a motion cell that covers the picture.
        """
        return replace(
            self,
            motion_cell_positions=torch.zeros_like(self.motion_cell_positions[:, :1]),
            motion_cell_mask=torch.ones_like(self.motion_cell_mask[:, :1]),
            motion_cell_centers=torch.full_like(self.motion_cell_centers[:, :1], 0.5),
            motion_shape=(1, 1),
        )

    def mean_pool(self, clips: Tensor) -> Tensor:
        """Average each clip's features over the cells that lie in the picture.

        Args:
            clips: [B, T_d, S, d].

        Returns:
            [B, T_d, d].
        """
        weights = self.pool_weights(None, clips.shape[1]).to(clips.dtype)  # [B, T_d, S]
        return torch.einsum("btsd,bts->btd", clips, weights)

    def pool_weights(self, logits: Tensor | None, num_clips: int) -> Tensor:
        """Return the pooling weights of each clip's cells.

        Args:
            logits: [B, T_d, S], or None for uniform weights.
            num_clips: T_d.

        Returns:
            [B, T_d, S], sums to 1 over cells.
        """
        if logits is None:
            num_cells = self.motion_cell_mask.sum(-1, keepdim=True)  # [B, 1]
            uniform = self.motion_cell_mask / num_cells  # [B, S]
            return uniform[:, None].expand(-1, num_clips, -1)

        masked = logits.masked_fill(~self.motion_cell_mask[:, None], float("-inf"))
        return masked.softmax(-1)

    def map_guidance(self, weights: Tensor) -> Tensor:
        """Map A from the frames' cells to the motion cells of each clip (eq. (2)).

        A is placed into the square, resized to the motion map and averaged over each clip's frames.

        Args:
            weights: A, [B, T_s, H, W].

        Returns:
            [B, T_d, S, 1].
        """
        rows, columns = self.motion_shape

        if self.motion_shape == (1, 1):
            # A single motion cell covers the picture: average over the picture.
            num_cells = self.map_size.prod(-1, keepdim=True)  # [B, 1]
            at_motion_cells = (weights.sum((2, 3)) / num_cells)[..., None]  # [B, T_s, 1]
        else:
            grid = to_square_grid(weights, self.map_size, self.picture_in_square, rows, columns)
            at_motion_cells = grid.flatten(2)[..., self.motion_cell_indices]  # [B, T_s, S]

        per_clip = torch.einsum("bkt,bts->bks", self.frames_to_clips_matrix, at_motion_cells)
        return per_clip[..., None]

    def clips_at_frames(self, clips: Tensor) -> Tensor:
        """Replicate clip features to the frames of each clip.

        Args:
            clips: [B, T_d, …].

        Returns:
            [B, T_s, …], the features of each frame's clip.
        """
        batch_indices = torch.arange(len(clips), device=clips.device)[:, None]  # [B, 1]
        return clips[batch_indices, self.clip_of_frame]


@dataclass
class CsdvlMemory:
    """Token memory of the static stream, for B·T_s frames."""

    states: Tensor
    """`[B·T_s, H·W + L, d]`, visual tokens, then text tokens."""
    positions: Tensor
    """`[B·T_s, H·W + L, d]`, sine positions; 0 for text."""
    mask: Tensor
    """`[B·T_s, H·W + L]`, False at padding."""
    centers: Tensor
    """`[B, H·W, 2]`, cell centers (x, y) in [0, 1]."""
    shape: tuple[int, int, int, int]
    """(B, T_s, H, W)."""

    def visual_weights(self, weights: Tensor) -> Tensor:
        """Return the visual part of weights over tokens as maps.

        Args:
            weights: [B·T_s, H·W + L], or [B·T_s, H·W].

        Returns:
            [B, T_s, H, W].
        """
        _, _, rows, columns = self.shape
        return weights[:, : rows * columns].reshape(self.shape)

    @cached_property
    def positioned_states(self) -> Tensor:
        """Keys of the decoder's attention. The value is cached: read it after the encoder only."""
        return self.states + self.positions

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centers of the visual tokens, the input of a box head."""
        num_cells = self.shape[2] * self.shape[3]

        return (
            self.states[:, :num_cells].float(),
            self.positions[:, :num_cells],
            self.mask[:, :num_cells],
            self.centers,
        )


@dataclass
class StaticStreamState:
    """State of the static stream during the forward pass."""

    memory: CsdvlMemory
    """Encoded tokens of all frames."""
    cells: CellProposals
    """Keys and boxes of the cells, for the box head."""
    queries: Tensor
    """`[B, T_s, d]`, object queries O after the last layer so far."""
    boxes: list[Tensor] = field(default_factory=list)
    """`[B, T_s, 4]` after each layer."""
    guidance: list[Tensor] = field(default_factory=list)
    """A of eq. (2), `[B, T_s, H, W]`, after each layer."""
    box_attention: list[Tensor] = field(default_factory=list)
    """`[B, T_s, H, W]` after each layer."""


class StaticDecoderLayer(nn.Module):
    """DETR's decoder layer for one object query per frame.

    Self-attention sees a single query: the layer does not mix frames.

    Args:
        hidden_dim: Channels d.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the FFN.
        dropout: Dropout probability.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_dim, num_heads, dropout)
        self.cross_attn = Attention(hidden_dim, num_heads, dropout)
        self.norm_self = nn.LayerNorm(hidden_dim)
        self.norm_cross = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, dropout)

    def forward(
        self, queries: Tensor, position: Tensor, memory: CsdvlMemory, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Update the object queries and compute A of eq. (2).

        Args:
            queries: [B·T_s, 1, d].
            position: [d], learned position of the queries.
            memory: Tokens of the frames.
            alpha: α of eq. (2), the factor of the query in A.

        Returns:
            Queries [B·T_s, 1, d], and A over all tokens [B·T_s, 1, H·W + L].
        """
        positioned = queries + position
        attended = self.self_attn(positioned, positioned, queries)
        queries = self.norm_self(queries + self.dropout(attended))

        attended, guidance = self.cross_attn.with_weights(
            queries + position,
            memory.positioned_states,
            memory.states,
            memory.mask,
            scale=alpha,
        )
        queries = self.norm_cross(queries + self.dropout(attended))

        return self.feed_forward(queries), guidance


class DynamicLayer(nn.Module):
    """Layer of the space-time cross-modal transformer (sec. 3.2, Figure 3 (b)).

    Args:
        hidden_dim: Channels d.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the FFNs.
        dropout: Dropout probability.
        text_attends_pooled_clips: Text attends to clips pooled over space, not to all cells.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        text_attends_pooled_clips: bool,
    ) -> None:
        super().__init__()
        self.text_attends_pooled_clips = text_attends_pooled_clips

        # Self-attention over time, space and words; cross-attention to words and to clips.
        names = ("time", "space", "words", "to_words", "to_clips")
        self.attend = nn.ModuleDict(
            {name: Attention(hidden_dim, num_heads, dropout) for name in names}
        )
        self.norm = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in names})
        self.dropout = nn.Dropout(dropout)
        self.clips_ffn = FeedForward(hidden_dim, ffn_dim, dropout)
        self.text_ffn = FeedForward(hidden_dim, ffn_dim, dropout)

    def forward(
        self, clips: Tensor, text: Tensor, text_mask: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """Update clips and text.

        Args:
            clips: F, [B, T_d, S, d].
            text: [B, L, d].
            text_mask: [B, L].
            geometry: Positions and masks of the motion cells.

        Returns:
            Clips [B, T_d, S, d] and text [B, L, d].
        """
        # Self-attention within each modality.
        visual = self._attend_space_time(clips, geometry)  # [B, T_d·S, d]
        text = self._self_attention("words", text, None, text_mask)

        # Eq. (1): both directions of cross-attention read the states before the exchange.
        values, positions, key_mask = self._clip_values(visual, clips.shape, geometry)
        from_text = self.attend["to_words"](visual, text, text, text_mask)
        from_clips = self.attend["to_clips"](text, values + positions, values, key_mask)
        visual = self.norm["to_words"](visual + self.dropout(from_text))
        text = self.norm["to_clips"](text + self.dropout(from_clips))

        return self.clips_ffn(visual).reshape(clips.shape), self.text_ffn(text)

    def _attend_space_time(self, clips: Tensor, geometry: TokenGeometry) -> Tensor:
        """Apply divided space-time attention: [B, T_d, S, d] → [B, T_d·S, d]."""
        batch, num_clips, num_cells, hidden_dim = clips.shape

        # Attention over time: the same cell in all clips.
        by_cell = clips.transpose(1, 2).reshape(batch * num_cells, num_clips, hidden_dim)
        by_cell = self._self_attention("time", by_cell, geometry.clip_positions)

        # Attention over space: the cells of one clip.
        by_clip = by_cell.reshape(batch, num_cells, num_clips, hidden_dim).transpose(1, 2)
        by_clip = by_clip.reshape(batch * num_clips, num_cells, hidden_dim)
        positions = geometry.motion_cell_positions.repeat_interleave(num_clips, 0)
        mask = geometry.motion_cell_mask.repeat_interleave(num_clips, 0)
        by_clip = self._self_attention("space", by_clip, positions, mask)

        return by_clip.reshape(batch, num_clips * num_cells, hidden_dim)

    def _clip_values(
        self, visual: Tensor, clips_shape: torch.Size, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, their positions and their mask for the text's attention to clips."""
        if self.text_attends_pooled_clips:
            pooled = geometry.mean_pool(visual.reshape(clips_shape))  # [B, T_d, d]
            return pooled, geometry.clip_positions, None

        mask = geometry.motion_cell_mask.repeat(1, clips_shape[1])  # [B, T_d·S]
        time_positions = geometry.clip_positions[:, :, None]  # [1, T_d, 1, d]
        cell_positions = geometry.motion_cell_positions[:, None]  # [B, 1, S, d]
        positions = (time_positions + cell_positions).flatten(1, 2)  # [B, T_d·S, d]
        return visual, positions, mask

    def _self_attention(
        self, name: str, states: Tensor, positions: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Return `LN(x + SA(x))`, with positions added to queries and keys."""
        positioned = states if positions is None else states + positions
        attended = self.attend[name](positioned, positioned, states, mask)
        return self.norm[name](states + self.dropout(attended))


class CrossStreamCollaboration(nn.Module):
    """Cross-stream collaboration block (sec. 3.3, Figure 4).

    Both directions read the states before the block.

    Args:
        hidden_dim: Channels d.
        num_heads: Attention heads.
        dropout: Dropout probability.
        to_dynamic: Enable the static-to-dynamic direction.
        to_static: Enable the dynamic-to-static direction.
        query_self_attention: Enable self-attention over the object queries of all frames.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        dropout: float,
        to_dynamic: bool,
        to_static: bool,
        query_self_attention: bool,
    ) -> None:
        super().__init__()
        self.to_dynamic = to_dynamic
        self.to_static = to_static
        self.query_self_attention = query_self_attention
        self.dropout = nn.Dropout(dropout)

        if to_dynamic:
            self.guidance_projection = nn.Linear(hidden_dim, hidden_dim)
            self.norm_guidance = nn.LayerNorm(hidden_dim)

        if to_static:
            self.clip_attention = Attention(hidden_dim, num_heads, dropout)
            self.norm_clip_attention = nn.LayerNorm(hidden_dim)

            if query_self_attention:
                self.query_attention = Attention(hidden_dim, num_heads, dropout)
                self.norm_query_attention = nn.LayerNorm(hidden_dim)

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """Exchange information between the streams.

        Args:
            clips: F, [B, T_d, S, d].
            queries: O, [B, T_s, d].
            weights: A of eq. (2), [B, T_s, H, W].
            geometry: Alignment of the streams.

        Returns:
            Updated clips and queries.
        """
        new_queries = queries
        if self.to_static:
            new_queries = self._dynamic_to_static(clips, queries, geometry)

        if self.to_dynamic:
            # Eq. (2): F ← LN(F + A ⊙ FC(F)).
            guided = geometry.map_guidance(weights) * self.guidance_projection(clips)
            clips = self.norm_guidance(clips + guided)

        return clips, new_queries

    def _dynamic_to_static(self, clips: Tensor, queries: Tensor, geometry: TokenGeometry) -> Tensor:
        """Let each frame's query attend to its clip's cells, then the queries to each other."""
        batch, num_frames, hidden_dim = queries.shape

        # Values include positions, so that a query can learn the location.
        positioned_clips = clips + geometry.motion_cell_positions[:, None]
        cells = geometry.clips_at_frames(positioned_clips).flatten(0, 1)  # [B·T_s, S, d]
        mask = geometry.motion_cell_mask.repeat_interleave(num_frames, 0)  # [B·T_s, S]
        frame_queries = queries.reshape(batch * num_frames, 1, hidden_dim)
        attended = self.clip_attention(frame_queries, cells, cells, mask)
        attended = attended.reshape(batch, num_frames, hidden_dim)
        queries = self.norm_clip_attention(queries + self.dropout(attended))

        if self.query_self_attention:
            positioned = queries + geometry.frame_time_positions
            attended = self.query_attention(positioned, positioned, queries)
            queries = self.norm_query_attention(queries + self.dropout(attended))

        return queries


class SymmetricCollaboration(nn.Module):
    """Symmetric exchange of Table 5: each stream reads the other, aligned in time.

    Queries are spread over space, clips are averaged over space.

    Args:
        hidden_dim: Channels d.
        kind: `sum`, `fc_sum` or `concat_fc`.
    """

    def __init__(self, hidden_dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind

        if kind != "sum":
            in_dim = 2 * hidden_dim if kind == "concat_fc" else hidden_dim
            self.dynamic_fusion = nn.Linear(in_dim, hidden_dim)
            self.static_fusion = nn.Linear(in_dim, hidden_dim)

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """Exchange information between the streams.

        Args:
            clips: F, [B, T_d, S, d].
            queries: O, [B, T_s, d].
            weights: A of eq. (2), unused.
            geometry: Alignment of the streams.

        Returns:
            Updated clips and queries.
        """
        # Queries averaged over each clip's frames, repeated at every cell.
        per_clip = torch.einsum("bkt,btd->bkd", geometry.frames_to_clips_matrix, queries)
        spread = per_clip[:, :, None].expand_as(clips)  # [B, T_d, S, d]

        # Clips averaged over space, repeated at every frame.
        pooled = geometry.clips_at_frames(geometry.mean_pool(clips))  # [B, T_s, d]

        if self.kind == "sum":
            return clips + spread, queries + pooled

        if self.kind == "fc_sum":
            return clips + self.dynamic_fusion(spread), queries + self.static_fusion(pooled)

        new_clips = self.dynamic_fusion(torch.cat([clips, spread], -1))
        new_queries = self.static_fusion(torch.cat([queries, pooled], -1))
        return new_clips, new_queries


def build_collaboration(config: CsdvlConfig) -> nn.Module:
    """Return the block after each pair of layers (sec. 3.3), or its replacement of Table 5.

    Args:
        config: The model's configuration.

    Returns:
        A module with the signature of `CrossStreamCollaboration.forward`.
    """
    if config.collaboration in ("sum", "fc_sum", "concat_fc"):
        return SymmetricCollaboration(config.hidden_dim, config.collaboration)

    return CrossStreamCollaboration(
        config.hidden_dim,
        config.num_heads,
        config.dropout,
        to_dynamic=config.collaboration in ("full", "s2d"),
        to_static=config.collaboration in ("full", "d2s"),
        query_self_attention=config.query_self_attention,
    )


class Csdvl(nn.Module):
    """CSDVL on cached features.

    Args:
        dims: Channels of the stored (appearance, motion, text) features.
        config: The model's configuration.
    """

    def __init__(self, dims: tuple[int, int, int], config: CsdvlConfig) -> None:
        super().__init__()
        c = config
        self.streams = c.streams
        self.alpha = c.alpha
        self.guidance_scale = c.guidance_scale
        self.detach_guidance = c.detach_guidance
        self.dynamic_spatial_tokens = c.dynamic_spatial_tokens
        self.mask_padding = c.mask_padding

        # Projections of the features to d channels.
        self.project_appearance = nn.Linear(dims[0], c.hidden_dim)
        self.project_motion = nn.Linear(dims[1], c.hidden_dim)
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )

        # Static stream (sec. 3.1) and collaboration (sec. 3.3).
        if c.streams == "both":
            self._build_static_stream(c)

        # Dynamic stream (sec. 3.2).
        self.dynamic_layers = nn.ModuleList(
            DynamicLayer(
                c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout, c.text_attends_pooled_clips
            )
            for _ in range(c.num_layers)
        )

        # Temporal heads (sec. 3.4).
        self.clip_attention = nn.Linear(c.hidden_dim, 1) if c.clip_pooling == "attention" else None
        self.proposal_head = ProposalHead(
            c.hidden_dim, c.proposal_map_channels, c.proposal_map_kernel, c.proposal_map_layers
        )
        self.clip_head = MLP(c.hidden_dim, c.hidden_dim, c.hidden_dim, 1)

    def _build_static_stream(self, c: CsdvlConfig) -> None:
        """Add the modules of the static stream, its heads and the collaboration blocks."""
        self.encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )
        self.decoder = nn.ModuleList(
            StaticDecoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )
        self.collaboration = nn.ModuleList(build_collaboration(c) for _ in range(c.num_layers))
        self.object_query = nn.Parameter(torch.randn(c.hidden_dim))
        self.decoder_norm = nn.LayerNorm(c.hidden_dim)
        self.box_head = (
            MLPBoxHead(c.hidden_dim) if c.box_head == "mlp" else AttentionBoxHead(c.hidden_dim)
        )
        self.frame_head = nn.Linear(c.hidden_dim, 1)

    def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
        """Ground the sentences of a batch.

        Args:
            inputs: Appearance maps, motion maps and token states of B queries.

        Returns:
            Boxes after every layer, temporal scores, and attention weights.
        """
        # Tokens of text and motion.
        text = self.project_text(to_compute_dtype(inputs.text))  # [B, L, d]
        geometry = TokenGeometry.from_inputs(inputs, text.shape[-1], self.mask_padding)
        clips = self._project_clips(inputs, geometry)  # [B, T_d, S, d]
        if not self.dynamic_spatial_tokens:
            clips = geometry.mean_pool(clips)[:, :, None]  # [B, T_d, 1, d]
            geometry = geometry.without_space()

        # Both streams, layer by layer.
        static = self._init_static_stream(inputs, text, geometry)
        words = text
        for index, layer in enumerate(self.dynamic_layers):
            clips, words = layer(clips, words, inputs.text_mask, geometry)
            if static is not None:
                clips = self._update_static_stream(index, static, clips, geometry)

        # Clip features F_d, pooled over space.
        pool_logits = None if self.clip_attention is None else self.clip_attention(clips)[..., 0]
        pool_weights = geometry.pool_weights(pool_logits, clips.shape[1])  # [B, T_d, S]
        pooled = torch.einsum("btsd,bts->btd", clips, pool_weights.to(clips.dtype))

        return CsdvlOutputs(
            **self._static_outputs(inputs, static),
            proposal_logits=self.proposal_head(pooled),
            clip_logits=self.clip_head(pooled)[..., 0],
            cell_centers=geometry.cell_centers,
            temporal_attention=pool_weights,
            temporal_cell_centers=geometry.motion_cell_centers,
        )

    def encode(self, inputs: ModelInputs, text: Tensor, geometry: TokenGeometry) -> CsdvlMemory:
        """Run the cross-modal encoder over each frame's visual and text tokens (sec. 3.1).

        Args:
            inputs: The batch.
            text: Projected token states, [B, L, d].
            geometry: Positions and masks of the appearance cells.

        Returns:
            The memory of B·T_s frames.
        """
        batch, num_frames = inputs.frame_positions.shape
        rows, columns = inputs.appearance.shape[2:4]

        # Per frame: H·W visual tokens, then L text tokens.
        projected = self.project_appearance(to_compute_dtype(inputs.appearance))
        visual = inputs.expand_to_queries(projected.flatten(2, 3))  # [B, T_s, H·W, d]
        text_per_frame = text[:, None].expand(-1, num_frames, -1, -1)  # [B, T_s, L, d]
        states = torch.cat([visual, text_per_frame], 2).flatten(0, 1)

        # Text tokens have no position.
        positions = torch.cat([geometry.cell_positions, torch.zeros_like(text)], 1)
        mask = torch.cat([geometry.cell_mask, inputs.text_mask], 1)

        memory = CsdvlMemory(
            states,
            positions.repeat_interleave(num_frames, 0),
            mask.repeat_interleave(num_frames, 0),
            geometry.cell_centers,
            (batch, num_frames, rows, columns),
        )
        for layer in self.encoder:
            memory.states = layer(memory.states, memory.positions, memory.mask)

        return memory

    def _project_clips(self, inputs: ModelInputs, geometry: TokenGeometry) -> Tensor:
        """Return the motion tokens [B, T_d, S, d] of the cells that lie in the picture."""
        cells = inputs.motion.flatten(2, 3)  # [V, T_d, h·w, C_m]
        cells = cells[:, :, geometry.motion_cell_indices]  # [V, T_d, S, C_m]
        return inputs.expand_to_queries(self.project_motion(to_compute_dtype(cells)))

    def _init_static_stream(
        self, inputs: ModelInputs, text: Tensor, geometry: TokenGeometry
    ) -> StaticStreamState | None:
        """Encode all frames and start with zero queries; None with `streams=dynamic`."""
        if self.streams != "both":
            return None

        memory = self.encode(inputs, text, geometry)
        queries = torch.zeros_like(memory.states[:, 0])  # [B·T_s, d]

        with torch.autocast(text.device.type, enabled=False):
            cells = self.box_head.prepare(*memory.cells)

        return StaticStreamState(memory, cells, queries.unflatten(0, inputs.frame_positions.shape))

    def _update_static_stream(
        self, index: int, static: StaticStreamState, clips: Tensor, geometry: TokenGeometry
    ) -> Tensor:
        """Run the decoder layer, collaboration block and box head `index`; return the clips F."""
        memory = static.memory
        batch_shape = memory.shape[:2]  # (B, T_s)

        # Decoder layer, and A of eq. (2).
        queries = static.queries.flatten(0, 1)[:, None]  # [B·T_s, 1, d]
        queries, token_guidance = self.decoder[index](
            queries, self.object_query, memory, self.alpha
        )
        guidance = memory.visual_weights(token_guidance[:, 0])  # [B, T_s, H, W]
        static.guidance.append(guidance)

        # Collaboration block.
        frame_queries = queries[:, 0].unflatten(0, batch_shape)  # [B, T_s, d]
        weights = self._scale_guidance(guidance, geometry)
        clips, static.queries = self.collaboration[index](clips, frame_queries, weights, geometry)

        # Box head, in float32: bfloat16 would round boxes to 1/256 of the picture.
        with torch.autocast(clips.device.type, enabled=False):
            normed = self.decoder_norm(static.queries.flatten(0, 1).float())
            boxes, box_attention = self.box_head(normed, static.cells)
        static.boxes.append(boxes.unflatten(0, batch_shape))
        static.box_attention.append(memory.visual_weights(box_attention))

        return clips

    def _scale_guidance(self, guidance: Tensor, geometry: TokenGeometry) -> Tensor:
        """Return the weights [B, T_s, H, W] of the static-to-dynamic direction."""
        if self.detach_guidance:
            guidance = guidance.detach()

        if self.guidance_scale == "num_cells":
            num_cells = geometry.map_size.prod(-1)  # [B]
            return guidance * num_cells[:, None, None, None]

        return guidance

    def _static_outputs(
        self, inputs: ModelInputs, static: StaticStreamState | None
    ) -> dict[str, Tensor]:
        """Return the outputs of the static stream; without it, whole-frame boxes and no maps."""
        positions = inputs.frame_positions  # [B, T_s]

        if static is None:
            return {
                "boxes": full_frame_boxes(positions)[None],
                "frame_logits": torch.zeros_like(positions),
                "guidance": torch.zeros(0),
                "box_attention": torch.zeros(0),
                "cell_boxes": torch.zeros(0),
            }

        # Only the attention head makes a box proposal per cell.
        cell_boxes = torch.zeros(0)
        if len(static.cells.boxes):
            cell_boxes = static.cells.boxes.unflatten(0, positions.shape)

        return {
            "boxes": torch.stack(static.boxes),
            "frame_logits": self.frame_head(self.decoder_norm(static.queries))[..., 0],
            "guidance": torch.stack(static.guidance),
            "box_attention": torch.stack(static.box_attention),
            "cell_boxes": cell_boxes,
        }
