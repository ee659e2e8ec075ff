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
- `word_gain=cells`, `box_head=attention` and the attention weights of the temporal blocks on motion cells (`heard`) are ours, for
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
from grounding.modules.alignment import from_square
from grounding.modules.attention import words_as_loud_as_cells
from grounding.modules.box_heads import AttentionBoxHead, MLPBoxHead
from grounding.modules.box_ops import corners, giou, whole_pictures
from grounding.modules.frame_outputs import FrameOutputs
from grounding.modules.layers import MLP, EncoderLayer, FeedForward, Looking, as_computed
from grounding.modules.position_encoding import learned_at, map_cells, sine_box, sine_time
from grounding.modules.roi import mean_weights, roi_weights
from grounding.structures.inputs import Inputs
from grounding.structures.targets import Targets

Refinement = Literal["none", "temporal", "spatial", "both", "sum", "product"]


class CgstvgConfig(TransformerConfig):
    """Everything that shapes the network; the defaults are the paper's."""

    clips: ClassVar[None] = None
    """It has no clips: motion is taken at each frame."""
    pictures: ClassVar[bool] = False
    """It is given maps."""
    layers: int = Field(default=6, ge=0)
    stages: int = Field(default=6, ge=1)
    frames: int = Field(default=64, ge=1)
    motion: Literal["swin", "motion"] = "swin"
    """The product that motion maps come from."""
    query_positions: Literal["learned", "boxes"] = "learned"
    context: bool = True
    """Instance context (ICG). With one stage nothing looks at it."""
    refinement: Refinement = "both"
    """ICR: by temporal confidence, spatial confidence, one after the other (`both`), or by their sum or product (one level)."""
    theta_t: float = Field(default=0.7, ge=0, le=1)
    theta_s: float = Field(default=0.8, ge=0, le=1)
    theta_one: float = Field(default=0.75, ge=0, le=1)
    """Of the one-level refinements: half the sum, or the square root of the product, must reach it."""
    context_in_time: bool = False
    """The temporal blocks look at the context, too."""
    region: Literal["roi_align", "mean"] = "roi_align"
    truth_iou: float | None = Field(default=None, ge=-1, le=1)
    """In training the context is that of the frames whose box has at least this GIoU with the true one."""
    box_head: Literal["mlp", "attention"] = "mlp"
    word_gain: Literal["one", "cells"] = "one"
    """Among a frame's tokens every word counts as one of them, or all words together begin as loud as all cells."""


@dataclass
class Outputs(FrameOutputs):
    """What the network answers, after every stage."""

    inside: Tensor
    """Logits `[K, B, T]` of the temporal confidence s^t."""
    quality: Tensor
    """Spatial confidence s^s in [0, 1], `[K, B, T]`; empty without context."""
    kept: Tensor
    """`[K, B, T]`: the frames whose context the next stage looks at; empty without context."""


class Cgstvg(nn.Module):
    """The whole network. `dims` are the channels of the stored (appearance, motion, text) features."""

    def __init__(self, dims: tuple[int, int, int], config: CgstvgConfig) -> None:
        super().__init__()
        c = self.config = config
        self.project_appearance, self.project_motion = (
            nn.Linear(dims[0], c.d),
            nn.Linear(dims[1], c.d),
        )
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.d), nn.LayerNorm(c.d, eps=1e-12), nn.Dropout(c.dropout)
        )
        self.types = nn.Parameter(0.02 * torch.randn(3, c.d))
        self.encoder = nn.ModuleList(
            EncoderLayer(c.d, c.heads, c.ffn, c.dropout) for _ in range(c.layers)
        )
        self.spatial = nn.ModuleList(
            SpatialBlock(c, sees_context=c.context and k > 0) for k in range(c.stages)
        )
        self.temporal = nn.ModuleList(
            TemporalBlock(c, sees_context=c.context and c.context_in_time and k > 0)
            for k in range(c.stages)
        )
        self.where, self.when = (nn.Parameter(torch.randn(c.frames, c.d)) for _ in range(2))
        self.place_of_box = MLP(2 * c.d, c.d, c.d) if c.query_positions == "boxes" else None
        self.norm_spatial, self.norm_temporal = nn.LayerNorm(c.d), nn.LayerNorm(c.d)
        self.box_head = MLPBoxHead(c.d) if c.box_head == "mlp" else AttentionBoxHead(c.d)
        self.boundary_head, self.inside_head = MLP(c.d, c.d, 2), MLP(c.d, c.d, 1)
        if c.context:
            self.instance = InstanceContext(c)

    def forward(self, inputs: Inputs, truth: Targets | None = None) -> Outputs:
        """`truth` is looked at only in training with `truth_iou`."""
        memory = self.encode(inputs)
        batch, frames = inputs.frame_tau.shape
        where, when = (learned_at(table, inputs.frame_tau) for table in (self.where, self.when))
        spatial, temporal = torch.zeros_like(where), torch.zeros_like(when)
        boxes: Tensor = whole_pictures(inputs.frame_tau)
        context: Context | None = None
        with torch.autocast(where.device.type, enabled=False):
            cells = self.box_head.look(*memory.cells)
        found: list[Stage] = []
        for spatial_block, temporal_block in zip(self.spatial, self.temporal, strict=True):
            placed = (
                where
                if self.place_of_box is None
                else where + self.place_of_box(sine_box(boxes.detach(), self.config.d))
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
                context = self.instance(memory, boxes, inside, truth if self.training else None)
            found.append(
                Stage(
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
            for name in ("boxes", "first", "last", "inside")
        }
        return Outputs(
            **stacked,
            quality=torch.stack([context.quality for context in contexts])
            if contexts
            else torch.zeros(0),
            kept=torch.stack([context.kept for context in contexts])
            if contexts
            else torch.zeros(0, dtype=torch.bool),
            frame_tau=inputs.frame_tau,
            carriers=torch.stack([stage.carriers for stage in found]),
            cell_boxes=cells.boxes.unflatten(0, (batch, frames))
            if len(cells.boxes)
            else torch.zeros(0),
            cell_centres=memory.centres,
            heard=torch.stack([stage.heard for stage in found]),
        )

    def encode(self, inputs: Inputs) -> Memory:
        """Fusion (sec. 3.1): per frame `[H·W appearance ; H·W motion ; L text]`, positions and types added once, at the input."""
        frames, rows, columns = inputs.appearance.shape[1:4]
        text = self.project_text(as_computed(inputs.text)) + self.types[2]
        positions, mask, centres = map_cells(inputs.map_size, rows, columns, text.shape[-1])
        motion = from_square(
            self.project_motion(as_computed(inputs.motion)),
            inputs.square,
            inputs.map_size,
            rows,
            columns,
        )
        seen = [
            self.project_appearance(as_computed(inputs.appearance)).flatten(2, 3) + self.types[0],
            motion.flatten(2, 3) + self.types[1],
        ]
        visual = [inputs.by_query(part + positions[:, None]) for part in seen]
        size, positions, mask, centres = (
            inputs.by_query(own) for own in (inputs.map_size, positions, mask, centres)
        )
        states = torch.cat([*visual, text[:, None].expand(-1, frames, -1, -1)], 2).flatten(0, 1)
        tokens = torch.cat([mask, mask, inputs.text_mask], 1).repeat_interleave(frames, 0)
        heard = tokens
        if self.config.word_gain == "cells":
            heard = words_as_loud_as_cells(
                torch.cat([mask, mask], 1), inputs.text_mask
            ).repeat_interleave(frames, 0)
        for layer in self.encoder:
            states = layer(states, None, heard)
        return Memory(
            states,
            tokens,
            positions,
            centres,
            size.repeat_interleave(frames, 0),
            inputs.frame_tau,
            (rows, columns),
        )


@dataclass(frozen=True)
class Stage:
    """What a decoding stage finds; names and shapes as in `Outputs`, without the stages."""

    boxes: Tensor
    first: Tensor
    last: Tensor
    inside: Tensor
    carriers: Tensor
    heard: Tensor
    context: Context | None


@dataclass
class Memory:
    """X̃ of B·T frames: states `[B·T, 2·H·W + L, d]` and which of them count `[B·T, 2·H·W + L]`; of their cells the positions
    `[B, H·W, d]`, centres `[B, H·W, 2]` and rows and columns that are no padding `[B·T, 2]`; `frame_tau` `[B, T]`.
    """

    states: Tensor
    mask: Tensor
    positions: Tensor
    centres: Tensor
    size: Tensor
    frame_tau: Tensor
    shape: tuple[int, int]

    @property
    def count(self) -> int:
        """Cells of a map."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def time(self) -> Tensor:
        """Sine positions of the frames, `[B, T, d]`."""
        return sine_time(self.frame_tau, self.states.shape[-1])

    @property
    def visual(self) -> Tensor:
        """Appearance and motion cells, `[B·T, 2, H·W, d]`."""
        return self.states[:, : 2 * self.count].unflatten(1, (2, self.count))

    @cached_property
    def frame_centres(self) -> Tensor:
        """`[B·T, H·W, 2]`."""
        return self.centres.repeat_interleave(self.frame_tau.shape[1], 0)

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centres of the appearance tokens: what a box head attends to."""
        return self.visual[:, 0].float(), self.positions, self.mask[:, : self.count], self.centres


@dataclass
class Context:
    """What a stage hands to the next: a token per frame `[B, T, d]`, which are kept `[B, T]`, and s^s `[B, T]`."""

    tokens: Tensor
    kept: Tensor
    quality: Tensor


class InstanceContext(nn.Module):
    """ICG and ICR (sec. 3.3, 3.4, Figure 4), shared by all stages."""

    def __init__(self, config: CgstvgConfig) -> None:
        super().__init__()
        c = self.config = config
        self.appearance_quality, self.motion_quality = MLP(c.d, c.d, 1), MLP(c.d, c.d, 1)
        self.join = MLP(2 * c.d, c.d, c.d)

    def forward(
        self, memory: Memory, boxes: Tensor, inside: Tensor, truth: Targets | None
    ) -> Context:
        """Boxes `[B, T, 4]`, logits of s^t `[B, T]` → the context after refinement."""
        flat, frames = boxes.flatten(0, 1), boxes.shape[:2]
        if self.config.region == "roi_align":
            weights = roi_weights(flat, memory.size, memory.shape)
        else:
            weights = mean_weights(flat, memory.frame_centres)
        weights = weights.to(memory.states.dtype)[:, None]
        appearance, motion = (
            (weights @ cells)[:, 0].unflatten(0, frames) for cells in memory.visual.unbind(1)
        )
        quality = (
            self.appearance_quality(appearance).float().sigmoid()
            + self.motion_quality(motion).float().sigmoid()
        )[..., 0] / 2
        if truth is not None and self.config.truth_iou is not None:
            kept = _close_to(truth, boxes, self.config.truth_iou)
        else:
            kept = self.kept(inside.detach().float().sigmoid(), quality.detach())
        return Context(self.join(torch.cat([appearance, motion], -1)), kept, quality)

    def kept(self, temporal: Tensor, spatial: Tensor) -> Tensor:
        """Which frames pass the filters, by s^t and s^s `[B, T]`."""
        c = self.config
        passes = {
            "none": torch.ones_like(temporal, dtype=torch.bool),
            "temporal": temporal >= c.theta_t,
            "spatial": spatial >= c.theta_s,
            "both": (temporal >= c.theta_t) & (spatial >= c.theta_s),
            "sum": (temporal + spatial) / 2 >= c.theta_one,
            "product": (temporal * spatial).sqrt() >= c.theta_one,
        }
        return passes[c.refinement]


def _close_to(truth: Targets, boxes: Tensor, least: float) -> Tensor:
    """Where boxes `[B, T, 4]` have at least this GIoU with a true one, `[B, T]`."""
    return truth.boxed & (
        giou(*(corners(part.detach().float()) for part in (boxes, truth.boxes))) >= least
    )


class LookingAtContext(Looking):
    """The same, at the context."""

    def at_context(
        self, queries: Tensor, positions: Tensor, memory: Memory, context: Context
    ) -> Tensor:
        """At the kept context of all frames; where none is kept the queries stay as they are."""
        some = context.kept.any(1, keepdim=True)
        keys = context.tokens + memory.time
        seen = self.attention(
            queries + positions + memory.time, keys, context.tokens, context.kept | ~some
        )
        return torch.where(some[..., None], self.norm(queries + self.dropout(seen)), queries)


class SpatialBlock(nn.Module):
    """`Q ← CA(CA(SA(Q), C), X̃)` (sec. 3.2); without context `CA(SA(Q), X̃)`."""

    def __init__(self, config: CgstvgConfig, sees_context: bool) -> None:
        super().__init__()
        self.frames, self.memory = (
            Looking(config.d, config.heads, config.dropout) for _ in range(2)
        )
        self.context = (
            LookingAtContext(config.d, config.heads, config.dropout) if sees_context else None
        )

    def forward(
        self, queries: Tensor, positions: Tensor, memory: Memory, context: Context | None
    ) -> Tensor:
        """`[B, T, d]` → `[B, T, d]`."""
        queries = self.frames.at_frames(queries, positions)
        if self.context is not None and context is not None:
            queries = self.context.at_context(queries, positions, memory, context)
        return self.memory.at_own_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )[0]


class TemporalBlock(nn.Module):
    """`P ← MLP(CA(SA(P), X̃))` (sec. 3.2), the MLP being a transformer's FFN; with `context_in_time` (Table 7) CA(…, C) before X̃."""

    def __init__(self, config: CgstvgConfig, sees_context: bool) -> None:
        super().__init__()
        self.frames, self.memory = (
            Looking(config.d, config.heads, config.dropout) for _ in range(2)
        )
        self.context = (
            LookingAtContext(config.d, config.heads, config.dropout) if sees_context else None
        )
        self.feed_forward = FeedForward(config.d, config.ffn, config.dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, memory: Memory, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """`[B, T, d]` → `[B, T, d]`, and how much each motion cell was looked at, `[B, T, H·W]`."""
        queries = self.frames.at_frames(queries, positions)
        if self.context is not None and context is not None:
            queries = self.context.at_context(queries, positions, memory, context)
        queries, weights = self.memory.at_own_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )
        count = memory.count
        return self.feed_forward(queries), weights[..., count : 2 * count]
