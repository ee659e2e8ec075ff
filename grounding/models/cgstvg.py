"""CG-STVG: Context-Guided Spatio-Temporal Video Grounding (CVPR 2024).

An encoder fuses every frame's appearance, motion and words. A decoder of K stages then refines one spatial and one temporal
query per frame. Each stage finds a box, takes what lies in it (instance context generation, ICG), drops what the stage does
not trust (instance context refinement, ICR), and hands the rest to the next stage as one more thing to look at.

Where the paper leaves things open:
- `R_k = B_k`: the regions of ICG are the stage's boxes, one MLP for both. RoIAlign 7×7, then the mean: one token per frame
  from the appearance part of the memory (C^a) and one from its motion part (C^m).
- A query looks at the tokens of its own frame (memory), and at the context of all kept frames, which carries time positions.
- With nothing left to look at (ICR dropped every frame) a stage does without context, as the first one does.
- Motion has one map per frame, on the cells of the appearance map: Video Swin's (in windows: `pipeline/encoders/swin.py`), or that
  of the SlowFast clip nearest to it. Sentences are not cut (the paper: at 30 tokens).
- `query_positions=learned` is the paper's: zero content and learned positions, one for each of T_s places in the segment,
  interpolated for frames between them. With `boxes`, as the released code, the last stage's box is added to a spatial query's
  position; for the first stage that is the whole picture.
- Queries go through a norm of their own before the heads, as DETR's do.
- The released code chooses the context by the true boxes, in training (`truth_iou`) and in its tests. Ours never does to predict.
- Heads and ICR's MLPs are one for all stages.
- Positions are added once, at the input (sec. 3.1).
- `text_balance=num_cells`, `box_head=attention` and the attention weights of the temporal blocks on motion cells (`heard`) are ours, for
  training from scratch. Taught to look at the object's appearance as well, temporal queries did, and learned nothing of when.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from grounding.models.config import TransformerConfig
from grounding.modules.alignment import from_square_grid
from grounding.modules.attention import balance_text_attention
from grounding.modules.box_heads import AttentionBoxHead, MLPBoxHead
from grounding.modules.box_ops import cxcywh_to_xyxy, full_frame_boxes, generalized_box_iou
from grounding.modules.frame_outputs import FramewiseOutputs
from grounding.modules.layers import (
    MLP,
    EncoderLayer,
    FeedForward,
    FrameQueryAttention,
    to_compute_dtype,
)
from grounding.modules.position_encoding import (
    cell_positions,
    interpolate_learned_positions,
    sinusoidal_box,
    sinusoidal_time,
)
from grounding.modules.roi import mean_pool_weights, roi_align_weights
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets

Refinement = Literal["none", "temporal", "spatial", "both", "sum", "product"]


class CgstvgConfig(TransformerConfig):
    """Everything that shapes the network; the defaults are the paper's."""

    num_clips: ClassVar[None] = None
    """It has no clips: motion is taken at each frame."""
    uses_images: ClassVar[bool] = False
    """It is given maps."""
    num_layers: int = Field(default=6, ge=0)
    num_stages: int = Field(default=6, ge=1)
    num_frames: int = Field(default=64, ge=1)
    motion_product: Literal["swin", "motion"] = "swin"
    """The product that motion maps come from."""
    query_positions: Literal["learned", "boxes"] = "learned"
    context: bool = True
    """Instance context (ICG). With one stage nothing looks at it."""
    refinement: Refinement = "both"
    """ICR: by temporal confidence, spatial confidence, one after the other (`both`), or by their sum or product (one level)."""
    theta_t: float = Field(default=0.7, ge=0, le=1)
    theta_s: float = Field(default=0.8, ge=0, le=1)
    single_threshold: float = Field(default=0.75, ge=0, le=1)
    """Of the one-level refinements: half the sum, or the square root of the product, must reach it."""
    temporal_context: bool = False
    """The temporal blocks look at the context, too."""
    region_pooling: Literal["roi_align", "mean"] = "roi_align"
    teacher_iou: float | None = Field(default=None, ge=-1, le=1)
    """In training the context is that of the frames whose box has at least this GIoU with the true one."""
    box_head: Literal["mlp", "attention"] = "mlp"
    text_balance: Literal["none", "num_cells"] = "none"
    """Among a frame's tokens every word counts as one of them, or all words together begin as loud as all cells."""


@dataclass
class CgstvgOutputs(FramewiseOutputs):
    """What the network answers, after every stage."""

    inside_logits: Tensor
    """Logits `[K, B, T]` of the temporal confidence s^t."""
    box_confidence: Tensor
    """Spatial confidence s^s in [0, 1], `[K, B, T]`; empty without context."""
    context_mask: Tensor
    """`[K, B, T]`: the frames whose context the next stage looks at; empty without context."""


class Cgstvg(nn.Module):
    """The whole network. `dims` are the channels of the stored (appearance, motion, text) features."""

    def __init__(self, dims: tuple[int, int, int], config: CgstvgConfig) -> None:
        super().__init__()
        c = self.config = config
        self.project_appearance, self.project_motion = (
            nn.Linear(dims[0], c.hidden_dim),
            nn.Linear(dims[1], c.hidden_dim),
        )
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )
        self.stream_embeddings = nn.Parameter(0.02 * torch.randn(3, c.hidden_dim))
        self.encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )
        self.spatial_blocks = nn.ModuleList(
            SpatialBlock(c, uses_context=c.context and k > 0) for k in range(c.num_stages)
        )
        self.temporal_blocks = nn.ModuleList(
            TemporalBlock(c, uses_context=c.context and c.temporal_context and k > 0)
            for k in range(c.num_stages)
        )
        self.spatial_query, self.temporal_query = (
            nn.Parameter(torch.randn(c.num_frames, c.hidden_dim)) for _ in range(2)
        )
        self.box_position_projection = (
            MLP(2 * c.hidden_dim, c.hidden_dim, c.hidden_dim)
            if c.query_positions == "boxes"
            else None
        )
        self.norm_spatial, self.norm_temporal = (
            nn.LayerNorm(c.hidden_dim),
            nn.LayerNorm(c.hidden_dim),
        )
        self.box_head = (
            MLPBoxHead(c.hidden_dim) if c.box_head == "mlp" else AttentionBoxHead(c.hidden_dim)
        )
        self.boundary_head, self.inside_head = (
            MLP(c.hidden_dim, c.hidden_dim, 2),
            MLP(c.hidden_dim, c.hidden_dim, 1),
        )
        if c.context:
            self.instance_context = InstanceContext(c)

    def forward(self, inputs: ModelInputs, targets: Targets | None = None) -> CgstvgOutputs:
        """`truth` is looked at only in training with `truth_iou`."""
        memory = self.encode(inputs)
        batch, frames = inputs.frame_positions.shape
        where, when = (
            interpolate_learned_positions(table, inputs.frame_positions)
            for table in (self.spatial_query, self.temporal_query)
        )
        spatial, temporal = torch.zeros_like(where), torch.zeros_like(when)
        boxes: Tensor = full_frame_boxes(inputs.frame_positions)
        context: InstanceContextOutputs | None = None
        with torch.autocast(where.device.type, enabled=False):
            cells = self.box_head.prepare(*memory.cells)
        found: list[DecoderStageOutputs] = []
        for spatial_block, temporal_block in zip(
            self.spatial_blocks, self.temporal_blocks, strict=True
        ):
            placed = (
                where
                if self.box_position_projection is None
                else where
                + self.box_position_projection(
                    sinusoidal_box(boxes.detach(), self.config.hidden_dim)
                )
            )
            spatial = spatial_block(spatial, placed, memory, context)
            temporal, heard = temporal_block(temporal, when, memory, context)
            with torch.autocast(
                where.device.type, enabled=False
            ):  # bfloat16 would round boxes to 1/256 of the picture
                box, carriers = self.box_head(
                    self.norm_spatial(spatial.float()).flatten(0, 1), cells
                )
                moment = self.norm_temporal(temporal.float())
                first, last = self.boundary_head(moment).unbind(-1)
                inside = self.inside_head(moment)[..., 0]
            boxes = box.unflatten(0, (batch, frames))
            if self.config.context:
                context = self.instance_context(
                    memory, boxes, inside, targets if self.training else None
                )
            found.append(
                DecoderStageOutputs(
                    boxes,
                    first,
                    last,
                    inside,
                    carriers.unflatten(0, (batch, frames)),
                    heard,
                    context,
                )
            )
        contexts = [stage.context for stage in found if stage.context is not None]
        stacked = {
            name: torch.stack([getattr(stage, name) for stage in found])
            for name in ("boxes", "start_logits", "end_logits", "inside_logits")
        }
        return CgstvgOutputs(
            **stacked,
            box_confidence=torch.stack([context.box_confidence for context in contexts])
            if contexts
            else torch.zeros(0),
            context_mask=torch.stack([context.context_mask for context in contexts])
            if contexts
            else torch.zeros(0, dtype=torch.bool),
            frame_positions=inputs.frame_positions,
            box_attention=torch.stack([stage.box_attention for stage in found]),
            cell_boxes=cells.boxes.unflatten(0, (batch, frames))
            if len(cells.boxes)
            else torch.zeros(0),
            cell_centers=memory.centers,
            temporal_attention=torch.stack([stage.temporal_attention for stage in found]),
        )

    def encode(self, inputs: ModelInputs) -> CgstvgMemory:
        """Fusion (sec. 3.1): per frame `[H·W appearance ; H·W motion ; L text]`, positions and types added once, at the input."""
        frames, rows, columns = inputs.appearance.shape[1:4]
        text = self.project_text(to_compute_dtype(inputs.text)) + self.stream_embeddings[2]
        positions, mask, centres = cell_positions(inputs.map_size, rows, columns, text.shape[-1])
        motion = from_square_grid(
            self.project_motion(to_compute_dtype(inputs.motion)),
            inputs.picture_in_square,
            inputs.map_size,
            rows,
            columns,
        )
        seen = [
            self.project_appearance(to_compute_dtype(inputs.appearance)).flatten(2, 3)
            + self.stream_embeddings[0],
            motion.flatten(2, 3) + self.stream_embeddings[1],
        ]
        visual = [inputs.expand_to_queries(part + positions[:, None]) for part in seen]
        size, positions, mask, centres = (
            inputs.expand_to_queries(own) for own in (inputs.map_size, positions, mask, centres)
        )
        states = torch.cat([*visual, text[:, None].expand(-1, frames, -1, -1)], 2).flatten(0, 1)
        tokens = torch.cat([mask, mask, inputs.text_mask], 1).repeat_interleave(frames, 0)
        heard = tokens
        if self.config.text_balance == "num_cells":
            heard = balance_text_attention(
                torch.cat([mask, mask], 1), inputs.text_mask
            ).repeat_interleave(frames, 0)
        for layer in self.encoder:
            states = layer(states, None, heard)
        return CgstvgMemory(
            states,
            tokens,
            positions,
            centres,
            size.repeat_interleave(frames, 0),
            inputs.frame_positions,
            (rows, columns),
        )


@dataclass(frozen=True)
class DecoderStageOutputs:
    """What a decoding stage finds; names and shapes as in `Outputs`, without the stages."""

    boxes: Tensor
    start_logits: Tensor
    end_logits: Tensor
    inside_logits: Tensor
    box_attention: Tensor
    temporal_attention: Tensor
    context: InstanceContextOutputs | None


@dataclass
class CgstvgMemory:
    """X̃ of B·T frames: states `[B·T, 2·H·W + L, d]` and which of them count `[B·T, 2·H·W + L]`; of their cells the positions
    `[B, H·W, d]`, centres `[B, H·W, 2]` and rows and columns that are no padding `[B·T, 2]`; `frame_positions` `[B, T]`.
    """

    states: Tensor
    mask: Tensor
    positions: Tensor
    centers: Tensor
    size: Tensor
    frame_positions: Tensor
    shape: tuple[int, int]

    @property
    def num_frames(self) -> int:
        """Cells of a map."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def time_positions(self) -> Tensor:
        """Sine positions of the frames, `[B, T, d]`."""
        return sinusoidal_time(self.frame_positions, self.states.shape[-1])

    @property
    def visual_states(self) -> Tensor:
        """Appearance and motion cells, `[B·T, 2, H·W, d]`."""
        return self.states[:, : 2 * self.num_frames].unflatten(1, (2, self.num_frames))

    @cached_property
    def frame_centers(self) -> Tensor:
        """`[B·T, H·W, 2]`."""
        return self.centers.repeat_interleave(self.frame_positions.shape[1], 0)

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centres of the appearance tokens: what a box head attends to."""
        return (
            self.visual_states[:, 0].float(),
            self.positions,
            self.mask[:, : self.num_frames],
            self.centers,
        )


@dataclass
class InstanceContextOutputs:
    """What a stage hands to the next: a token per frame `[B, T, d]`, which are kept `[B, T]`, and s^s `[B, T]`."""

    tokens: Tensor
    context_mask: Tensor
    box_confidence: Tensor


class InstanceContext(nn.Module):
    """ICG and ICR (sec. 3.3, 3.4, Figure 4), shared by all stages."""

    def __init__(self, config: CgstvgConfig) -> None:
        super().__init__()
        c = self.config = config
        self.appearance_confidence, self.motion_confidence = (
            MLP(c.hidden_dim, c.hidden_dim, 1),
            MLP(c.hidden_dim, c.hidden_dim, 1),
        )
        self.fuse_motion = MLP(2 * c.hidden_dim, c.hidden_dim, c.hidden_dim)

    def forward(
        self, memory: CgstvgMemory, boxes: Tensor, inside: Tensor, targets: Targets | None
    ) -> InstanceContextOutputs:
        """Boxes `[B, T, 4]`, logits of s^t `[B, T]` → the context after refinement."""
        flat, frames = boxes.flatten(0, 1), boxes.shape[:2]
        if self.config.region_pooling == "roi_align":
            weights = roi_align_weights(flat, memory.size, memory.shape)
        else:
            weights = mean_pool_weights(flat, memory.frame_centers)
        weights = weights.to(memory.states.dtype)[:, None]
        appearance, motion = (
            (weights @ cells)[:, 0].unflatten(0, frames) for cells in memory.visual_states.unbind(1)
        )
        quality = (
            self.appearance_confidence(appearance).float().sigmoid()
            + self.motion_confidence(motion).float().sigmoid()
        )[..., 0] / 2
        if targets is not None and self.config.teacher_iou is not None:
            kept = _frames_near_truth(targets, boxes, self.config.teacher_iou)
        else:
            kept = self.select_context(inside.detach().float().sigmoid(), quality.detach())
        return InstanceContextOutputs(
            self.fuse_motion(torch.cat([appearance, motion], -1)), kept, quality
        )

    def select_context(self, temporal: Tensor, spatial: Tensor) -> Tensor:
        """Which frames pass the filters, by s^t and s^s `[B, T]`."""
        c = self.config
        passes = {
            "none": torch.ones_like(temporal, dtype=torch.bool),
            "temporal": temporal >= c.theta_t,
            "spatial": spatial >= c.theta_s,
            "both": (temporal >= c.theta_t) & (spatial >= c.theta_s),
            "sum": (temporal + spatial) / 2 >= c.single_threshold,
            "product": (temporal * spatial).sqrt() >= c.single_threshold,
        }
        return passes[c.refinement]


def _frames_near_truth(truth: Targets, boxes: Tensor, least: float) -> Tensor:
    """Where boxes `[B, T, 4]` have at least this GIoU with a true one, `[B, T]`."""
    return truth.box_mask & (
        generalized_box_iou(
            *(cxcywh_to_xyxy(part.detach().float()) for part in (boxes, truth.boxes))
        )
        >= least
    )


class ContextAttention(FrameQueryAttention):
    """The same, at the context."""

    def attend_context(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs,
    ) -> Tensor:
        """At the kept context of all frames; where none is kept the queries stay as they are."""
        some = context.context_mask.any(1, keepdim=True)
        keys = context.tokens + memory.time_positions
        seen = self.attention(
            queries + positions + memory.time_positions,
            keys,
            context.tokens,
            context.context_mask | ~some,
        )
        return torch.where(some[..., None], self.norm(queries + self.dropout(seen)), queries)


class SpatialBlock(nn.Module):
    """`Q ← CA(CA(SA(Q), C), X̃)` (sec. 3.2); without context `CA(SA(Q), X̃)`."""

    def __init__(self, config: CgstvgConfig, uses_context: bool) -> None:
        super().__init__()
        self.frame_attention, self.memory_attention = (
            FrameQueryAttention(config.hidden_dim, config.num_heads, config.dropout)
            for _ in range(2)
        )
        self.context_attention = (
            ContextAttention(config.hidden_dim, config.num_heads, config.dropout)
            if uses_context
            else None
        )

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs | None,
    ) -> Tensor:
        """`[B, T, d]` → `[B, T, d]`."""
        queries = self.frame_attention.attend_frames(queries, positions)
        if self.context_attention is not None and context is not None:
            queries = self.context_attention.attend_context(queries, positions, memory, context)
        return self.memory_attention.attend_within_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )[0]


class TemporalBlock(nn.Module):
    """`P ← MLP(CA(SA(P), X̃))` (sec. 3.2), the MLP being a transformer's FFN; with `temporal_context` (Table 7) CA(…, C) before X̃."""

    def __init__(self, config: CgstvgConfig, uses_context: bool) -> None:
        super().__init__()
        self.frame_attention, self.memory_attention = (
            FrameQueryAttention(config.hidden_dim, config.num_heads, config.dropout)
            for _ in range(2)
        )
        self.context_attention = (
            ContextAttention(config.hidden_dim, config.num_heads, config.dropout)
            if uses_context
            else None
        )
        self.feed_forward = FeedForward(config.hidden_dim, config.ffn_dim, config.dropout)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs | None,
    ) -> tuple[Tensor, Tensor]:
        """`[B, T, d]` → `[B, T, d]`, and how much each motion cell was looked at, `[B, T, H·W]`."""
        queries = self.frame_attention.attend_frames(queries, positions)
        if self.context_attention is not None and context is not None:
            queries = self.context_attention.attend_context(queries, positions, memory, context)
        queries, weights = self.memory_attention.attend_within_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )
        count = memory.num_frames
        return self.feed_forward(queries), weights[..., count : 2 * count]
