"""CG-STVG (CVPR 2024).

Paper: Context-Guided Spatio-Temporal Video Grounding.

An encoder fuses every frame's appearance, motion and text tokens. A decoder of K stages refines one
spatial and one temporal query per frame. Each stage predicts a box and pools the features in it
(instance context generation, ICG). Frames with low confidence are dropped (instance context
refinement, ICR). The next stage attends to the remaining context.

Shapes: B queries, T frames, L text tokens, d channels, H·W cells per frame, K stages.

Decisions where the paper is ambiguous:

- `R_k = B_k`: the regions of ICG are the stage's boxes, and one MLP serves both. RoIAlign 7×7 and a
  mean give one token per frame from the appearance part of the memory (C^a) and one from its
  motion part (C^m).
- A query attends to the tokens of its own frame (memory), and to the context of all frames that ICR
  keeps. The context carries time positions.
- If ICR drops all frames, the stage runs without context, like the first stage.
- Motion has one map per frame, on the cells of the appearance map. The map is Video Swin's (in
  windows: `pipeline/encoders/swin.py`), or the map of the nearest SlowFast clip.
- Sentences are not truncated (the paper truncates at 30 tokens).
- `query_positions=learned` is the paper's: zero content and one learned position for each of T_s
  parts of the segment, interpolated for frames between them. With `boxes`, as in the released code,
  the previous stage's box is added to a spatial query's position. The first stage uses the box of
  the whole picture.
- Queries pass a layer norm before the heads, as in DETR.
- The released code selects the context by the ground-truth boxes, in training (`teacher_iou`) and
  in its tests. Here predictions never use the ground truth.
- All stages share the heads and ICR's MLPs.
- Positions are added once, at the input (sec. 3.1).

Deviations from the paper, for training from scratch (off by default):

- `text_balance=num_cells` and `box_head=attention`.
- Supervision of the temporal blocks' attention to motion cells. With supervised attention to
  appearance cells, the temporal queries attended to the object's appearance and learned no event
  boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from grounding.models.config import TransformerConfig
from grounding.models.output import AttentionKind, framewise_attention_maps
from grounding.modules.alignment import from_square_grid
from grounding.modules.attention import balance_text_attention
from grounding.modules.box_heads import AttentionBoxHead, CellProposals, MLPBoxHead
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
    """Configuration of the model. The defaults are the paper's."""

    num_clips: ClassVar[None] = None
    """The model has no clips: motion is sampled at each frame."""
    uses_images: ClassVar[bool] = False
    """The model reads cached appearance maps."""

    num_layers: int = Field(default=6, ge=0)
    """Layers of the encoder."""
    num_stages: int = Field(default=6, ge=1)
    """K, decoding stages."""
    num_frames: int = Field(default=64, ge=1)
    """T_s, frames of a training pass."""
    motion_product: Literal["swin", "motion"] = "swin"
    """Store product with the motion maps: Video Swin's or SlowFast's."""
    query_positions: Literal["learned", "boxes"] = "learned"
    """Positions of the spatial queries: learned, or learned plus the previous stage's box."""
    context: bool = True
    """Use instance context (ICG). With one stage the context has no effect on the predictions."""
    refinement: Refinement = "both"
    """ICR by temporal confidence, by spatial confidence, or by one after the other (`both`).
    `sum` and `product` combine the confidences into one level."""
    theta_t: float = Field(default=0.7, ge=0, le=1)
    """θ_t, minimum of the temporal confidence."""
    theta_s: float = Field(default=0.8, ge=0, le=1)
    """θ_s, minimum of the spatial confidence."""
    single_threshold: float = Field(default=0.75, ge=0, le=1)
    """Minimum of half the sum, or of the square root of the product, in one-level refinement."""
    temporal_context: bool = False
    """Temporal blocks attend to the context, too (Table 7)."""
    region_pooling: Literal["roi_align", "mean"] = "roi_align"
    """Pooling of a region's cells: RoIAlign, or the mean of the cells with their center in it."""
    teacher_iou: float | None = Field(default=None, ge=-1, le=1)
    """Minimum GIoU of a frame's box with its ground truth for a frame to be context in training.
    None: the context is selected by `refinement`, as in prediction."""
    box_head: Literal["mlp", "attention"] = "mlp"
    """Box head: the paper's MLP, or attention over cells, which learns from scratch."""
    text_balance: Literal["none", "num_cells"] = "none"
    """Initial weight of text in a frame's tokens. `none`: each word counts as one token.
    `num_cells`: all words together weigh as much as all cells."""


@dataclass
class CgstvgOutputs(FramewiseOutputs):
    """Outputs of the model after every stage."""

    inside_logits: Tensor
    """`[K, B, T]`, logits of the temporal confidence s^t."""
    box_confidence: Tensor
    """`[K, B, T]`, spatial confidence s^s in [0, 1]; empty without context."""
    context_mask: Tensor
    """`[K, B, T]`, True at frames whose context the next stage reads; empty without context."""

    def attention_maps(self) -> dict[AttentionKind, Tensor]:
        """Return the attention maps of a batch without padding of maps.

        Returns:
            Weights by kind, [K, B, T, H, W] each (`framewise_attention_maps`).
        """
        return framewise_attention_maps(self)


@dataclass(frozen=True)
class DecoderStageOutputs:
    """Outputs of one decoding stage; shapes as in `CgstvgOutputs`, without the axis of stages."""

    boxes: Tensor
    start_logits: Tensor
    end_logits: Tensor
    inside_logits: Tensor
    box_attention: Tensor
    temporal_attention: Tensor
    context: InstanceContextOutputs | None


@dataclass
class CgstvgMemory:
    """Encoder output X̃ of B·T frames."""

    states: Tensor
    """`[B·T, 2·H·W + L, d]`, appearance cells, motion cells, text tokens."""
    mask: Tensor
    """`[B·T, 2·H·W + L]`, False at padding."""
    positions: Tensor
    """`[B, H·W, d]`, position encodings of the cells."""
    centers: Tensor
    """`[B, H·W, 2]`, cell centers (x, y) in [0, 1]."""
    size: Tensor
    """`[B·T, 2]`, rows and columns of the maps without padding."""
    frame_positions: Tensor
    """`[B, T]`, τ of each frame in its segment."""
    shape: tuple[int, int]
    """Rows H and columns W of the maps."""

    @property
    def num_cells(self) -> int:
        """H·W, cells of a map."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def time_positions(self) -> Tensor:
        """Sine positions of the frames, `[B, T, d]`."""
        return sinusoidal_time(self.frame_positions, self.states.shape[-1])

    @property
    def visual_states(self) -> Tensor:
        """Appearance and motion cells, `[B·T, 2, H·W, d]`."""
        visual = self.states[:, : 2 * self.num_cells]
        return visual.unflatten(1, (2, self.num_cells))

    @cached_property
    def frame_centers(self) -> Tensor:
        """Cell centers of every frame, `[B·T, H·W, 2]`."""
        return self.centers.repeat_interleave(self.frame_positions.shape[1], 0)

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centers of the appearance cells, the input of a box head."""
        return (
            self.visual_states[:, 0].float(),
            self.positions,
            self.mask[:, : self.num_cells],
            self.centers,
        )


@dataclass
class InstanceContextOutputs:
    """Instance context that a stage passes to the next stage."""

    tokens: Tensor
    """`[B, T, d]`, one token per frame."""
    context_mask: Tensor
    """`[B, T]`, True at frames kept by ICR."""
    box_confidence: Tensor
    """`[B, T]`, spatial confidence s^s."""


class InstanceContext(nn.Module):
    """Instance context generation and refinement, ICG and ICR (sec. 3.3, 3.4, Figure 4).

    All stages share the module.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CgstvgConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.appearance_confidence = MLP(c.hidden_dim, c.hidden_dim, 1)
        self.motion_confidence = MLP(c.hidden_dim, c.hidden_dim, 1)
        self.fuse_motion = MLP(2 * c.hidden_dim, c.hidden_dim, c.hidden_dim)

    def forward(
        self, memory: CgstvgMemory, boxes: Tensor, inside: Tensor, targets: Targets | None
    ) -> InstanceContextOutputs:
        """Pool the features in a stage's boxes and select the frames to keep.

        Args:
            memory: Encoder output.
            boxes: [B, T, 4], cxcywh in [0, 1]; they receive no gradient.
            inside: [B, T], logits of the temporal confidence s^t; they receive no gradient.
            targets: Ground truth for the selection with `teacher_iou`, or None.

        Returns:
            The refined context.
        """
        # ICG: pool the appearance and motion cells in each frame's box.
        weights = self._region_weights(memory, boxes)[:, None]  # [B·T, 1, H·W]
        appearance_cells, motion_cells = memory.visual_states.unbind(1)  # [B·T, H·W, d]
        appearance = (weights @ appearance_cells)[:, 0].unflatten(0, boxes.shape[:2])  # [B, T, d]
        motion = (weights @ motion_cells)[:, 0].unflatten(0, boxes.shape[:2])  # [B, T, d]

        # Spatial confidence s^s: the mean over appearance and motion.
        appearance_confidence = self.appearance_confidence(appearance).float().sigmoid()
        motion_confidence = self.motion_confidence(motion).float().sigmoid()
        box_confidence = (appearance_confidence + motion_confidence)[..., 0] / 2  # [B, T]

        # ICR: select frames by their confidences, or by the ground truth in training.
        if targets is not None and self.config.teacher_iou is not None:
            context_mask = _frames_near_truth(targets, boxes, self.config.teacher_iou)
        else:
            temporal = inside.detach().float().sigmoid()
            context_mask = self.select_context(temporal, box_confidence.detach())

        tokens = self.fuse_motion(torch.cat([appearance, motion], -1))
        return InstanceContextOutputs(tokens, context_mask, box_confidence)

    def _region_weights(self, memory: CgstvgMemory, boxes: Tensor) -> Tensor:
        """Return the weights [B·T, H·W] that pool the cells of each frame's box."""
        flat_boxes = boxes.flatten(0, 1)  # [B·T, 4]

        if self.config.region_pooling == "roi_align":
            weights = roi_align_weights(flat_boxes, memory.size, memory.shape)
        else:
            weights = mean_pool_weights(flat_boxes, memory.frame_centers)

        return weights.to(memory.states.dtype)

    def select_context(self, temporal: Tensor, spatial: Tensor) -> Tensor:
        """Return the frames whose confidences reach the thresholds (ICR, sec. 3.4).

        Args:
            temporal: s^t, [B, T] in [0, 1].
            spatial: s^s, [B, T] in [0, 1].

        Returns:
            [B, T], True at frames to keep.
        """
        c = self.config

        if c.refinement == "none":
            return torch.ones_like(temporal, dtype=torch.bool)
        if c.refinement == "temporal":
            return temporal >= c.theta_t
        if c.refinement == "spatial":
            return spatial >= c.theta_s
        if c.refinement == "both":
            return (temporal >= c.theta_t) & (spatial >= c.theta_s)
        if c.refinement == "sum":
            return (temporal + spatial) / 2 >= c.single_threshold

        return (temporal * spatial).sqrt() >= c.single_threshold


def _frames_near_truth(targets: Targets, boxes: Tensor, min_iou: float) -> Tensor:
    """Return the frames [B, T] whose box [B, T, 4] has at least this GIoU with the target."""
    pred_xyxy = cxcywh_to_xyxy(boxes.detach().float())
    target_xyxy = cxcywh_to_xyxy(targets.boxes.detach().float())
    iou = generalized_box_iou(pred_xyxy, target_xyxy)  # [B, T]

    return targets.box_mask & (iou >= min_iou)


class ContextAttention(FrameQueryAttention):
    """Attention of the frames' queries to the instance context."""

    def attend_context(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs,
    ) -> Tensor:
        """Attend to the context of all frames that ICR kept.

        Args:
            queries: [B, T, d].
            positions: [B, T, d], positions of the queries.
            memory: Encoder output, for the frames' time positions.
            context: Context of the previous stage.

        Returns:
            [B, T, d]; the queries unchanged where the context is empty.
        """
        has_context = context.context_mask.any(1, keepdim=True)  # [B, 1]

        # A softmax needs at least one key: without context all keys count, and the result is
        # discarded below.
        key_mask = context.context_mask | ~has_context  # [B, T]
        attended = self.attention(
            queries + positions + memory.time_positions,
            context.tokens + memory.time_positions,
            context.tokens,
            key_mask,
        )
        updated = self.norm(queries + self.dropout(attended))

        return torch.where(has_context[..., None], updated, queries)


class SpatialBlock(nn.Module):
    """Spatial decoding block `Q ← CA(CA(SA(Q), C), X̃)`; without context `CA(SA(Q), X̃)` (sec. 3.2).

    Args:
        config: The model's configuration.
        uses_context: Attend to the context C of the previous stage.
    """

    def __init__(self, config: CgstvgConfig, uses_context: bool) -> None:
        super().__init__()
        c = config
        self.frame_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.memory_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.context_attention = (
            ContextAttention(c.hidden_dim, c.num_heads, c.dropout) if uses_context else None
        )

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs | None,
    ) -> Tensor:
        """Update the spatial queries.

        Args:
            queries: Q, [B, T, d].
            positions: [B, T, d], positions of the queries.
            memory: Encoder output X̃.
            context: Context C of the previous stage; None in the first stage.

        Returns:
            [B, T, d].
        """
        queries = self.frame_attention.attend_frames(queries, positions)

        if self.context_attention is not None and context is not None:
            queries = self.context_attention.attend_context(queries, positions, memory, context)

        queries, _ = self.memory_attention.attend_within_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )
        return queries


class TemporalBlock(nn.Module):
    """Temporal decoding block `P ← MLP(CA(SA(P), X̃))` (sec. 3.2).

    The MLP is a transformer's FFN. With `temporal_context` (Table 7) CA(…, C) comes before X̃.

    Args:
        config: The model's configuration.
        uses_context: Attend to the context C of the previous stage.
    """

    def __init__(self, config: CgstvgConfig, uses_context: bool) -> None:
        super().__init__()
        c = config
        self.frame_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.memory_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.context_attention = (
            ContextAttention(c.hidden_dim, c.num_heads, c.dropout) if uses_context else None
        )
        self.feed_forward = FeedForward(c.hidden_dim, c.ffn_dim, c.dropout)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: CgstvgMemory,
        context: InstanceContextOutputs | None,
    ) -> tuple[Tensor, Tensor]:
        """Update the temporal queries.

        Args:
            queries: P, [B, T, d].
            positions: [B, T, d], positions of the queries.
            memory: Encoder output X̃.
            context: Context C of the previous stage; None in the first stage.

        Returns:
            Queries [B, T, d], and the attention to each motion cell [B, T, H·W].
        """
        queries = self.frame_attention.attend_frames(queries, positions)

        if self.context_attention is not None and context is not None:
            queries = self.context_attention.attend_context(queries, positions, memory, context)

        queries, weights = self.memory_attention.attend_within_frame(
            queries, positions, memory.states, memory.states, memory.mask
        )  # weights: [B, T, 2·H·W + L]
        motion_weights = weights[..., memory.num_cells : 2 * memory.num_cells]

        return self.feed_forward(queries), motion_weights


class Cgstvg(nn.Module):
    """CG-STVG on cached features.

    Args:
        dims: Channels of the stored (appearance, motion, text) features.
        config: The model's configuration.
    """

    def __init__(self, dims: tuple[int, int, int], config: CgstvgConfig) -> None:
        super().__init__()
        c = config
        self.config = config

        # Projections of the features to d channels, and one embedding per kind of token.
        self.project_appearance = nn.Linear(dims[0], c.hidden_dim)
        self.project_motion = nn.Linear(dims[1], c.hidden_dim)
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )
        self.stream_embeddings = nn.Parameter(0.02 * torch.randn(3, c.hidden_dim))

        # Encoder (sec. 3.1).
        self.encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )

        # Decoding stages (sec. 3.2). The first stage has no context.
        self.spatial_blocks = nn.ModuleList()
        for stage in range(c.num_stages):
            uses_context = c.context and stage > 0
            self.spatial_blocks.append(SpatialBlock(c, uses_context))

        self.temporal_blocks = nn.ModuleList()
        for stage in range(c.num_stages):
            uses_context = c.context and c.temporal_context and stage > 0
            self.temporal_blocks.append(TemporalBlock(c, uses_context))

        # Positions of the queries.
        self.spatial_query = nn.Parameter(torch.randn(c.num_frames, c.hidden_dim))
        self.temporal_query = nn.Parameter(torch.randn(c.num_frames, c.hidden_dim))
        self.box_position_projection = (
            MLP(2 * c.hidden_dim, c.hidden_dim, c.hidden_dim)
            if c.query_positions == "boxes"
            else None
        )

        # Heads, shared by all stages.
        self.norm_spatial = nn.LayerNorm(c.hidden_dim)
        self.norm_temporal = nn.LayerNorm(c.hidden_dim)
        self.box_head = (
            MLPBoxHead(c.hidden_dim) if c.box_head == "mlp" else AttentionBoxHead(c.hidden_dim)
        )
        self.boundary_head = MLP(c.hidden_dim, c.hidden_dim, 2)
        self.inside_head = MLP(c.hidden_dim, c.hidden_dim, 1)

        # ICG and ICR (sec. 3.3, 3.4).
        if c.context:
            self.instance_context = InstanceContext(c)

    def forward(self, inputs: ModelInputs, targets: Targets | None = None) -> CgstvgOutputs:
        """Ground the sentences of a batch.

        Args:
            inputs: Appearance maps, motion maps and token states of B queries.
            targets: Ground truth; read only in training with `teacher_iou`.

        Returns:
            Boxes, temporal logits and attention weights after every stage.
        """
        memory = self.encode(inputs)

        # Queries: zero content, learned positions.
        positions = inputs.frame_positions  # [B, T]
        spatial_positions = interpolate_learned_positions(self.spatial_query, positions)
        temporal_positions = interpolate_learned_positions(self.temporal_query, positions)
        spatial = torch.zeros_like(spatial_positions)  # [B, T, d]
        temporal = torch.zeros_like(temporal_positions)  # [B, T, d]

        with torch.autocast(spatial.device.type, enabled=False):
            cells = self.box_head.prepare(*memory.cells)

        # Decoding stages. Each stage reads the boxes and the context of the previous one.
        boxes: Tensor = full_frame_boxes(positions)
        context: InstanceContextOutputs | None = None
        stages: list[DecoderStageOutputs] = []
        for spatial_block, temporal_block in zip(
            self.spatial_blocks, self.temporal_blocks, strict=True
        ):
            box_positions = self._add_box_positions(spatial_positions, boxes)
            spatial = spatial_block(spatial, box_positions, memory, context)
            temporal, temporal_attention = temporal_block(
                temporal, temporal_positions, memory, context
            )

            stage = self._predict_stage(
                spatial, temporal, temporal_attention, memory, cells, targets
            )
            stages.append(stage)
            boxes = stage.boxes
            context = stage.context

        return self._stack_stages(stages, inputs, memory, cells)

    def encode(self, inputs: ModelInputs) -> CgstvgMemory:
        """Fuse each frame's appearance, motion and text tokens (sec. 3.1).

        Positions and token-type embeddings are added once, at the input.

        Args:
            inputs: The batch.

        Returns:
            The encoder output X̃ of B·T frames.
        """
        num_frames, rows, columns = inputs.appearance.shape[1:4]

        # Features on the cells of the appearance map.
        text = self.project_text(to_compute_dtype(inputs.text)) + self.stream_embeddings[2]
        positions, mask, centers = cell_positions(inputs.map_size, rows, columns, text.shape[-1])
        motion = from_square_grid(
            self.project_motion(to_compute_dtype(inputs.motion)),
            inputs.picture_in_square,
            inputs.map_size,
            rows,
            columns,
        )  # [V, T, H, W, d]
        appearance = self.project_appearance(to_compute_dtype(inputs.appearance))  # [V, T, H, W, d]

        # Token-type embeddings and positions, then from videos to queries.
        appearance = appearance.flatten(2, 3) + self.stream_embeddings[0]  # [V, T, H·W, d]
        motion = motion.flatten(2, 3) + self.stream_embeddings[1]  # [V, T, H·W, d]
        appearance = inputs.expand_to_queries(appearance + positions[:, None])
        motion = inputs.expand_to_queries(motion + positions[:, None])
        map_size = inputs.expand_to_queries(inputs.map_size)
        positions = inputs.expand_to_queries(positions)
        mask = inputs.expand_to_queries(mask)
        centers = inputs.expand_to_queries(centers)

        # Per frame: H·W appearance cells, H·W motion cells, L text tokens.
        text_per_frame = text[:, None].expand(-1, num_frames, -1, -1)  # [B, T, L, d]
        states = torch.cat([appearance, motion, text_per_frame], 2).flatten(0, 1)
        token_mask = torch.cat([mask, mask, inputs.text_mask], 1).repeat_interleave(num_frames, 0)

        attention_mask = token_mask
        if self.config.text_balance == "num_cells":
            cell_mask = torch.cat([mask, mask], 1)  # [B, 2·H·W]
            balanced = balance_text_attention(cell_mask, inputs.text_mask)  # [B, 2·H·W + L]
            attention_mask = balanced.repeat_interleave(num_frames, 0)

        for layer in self.encoder:
            states = layer(states, None, attention_mask)

        return CgstvgMemory(
            states,
            token_mask,
            positions,
            centers,
            map_size.repeat_interleave(num_frames, 0),
            inputs.frame_positions,
            (rows, columns),
        )

    def _add_box_positions(self, positions: Tensor, boxes: Tensor) -> Tensor:
        """Return the spatial queries' positions [B, T, d], with the last boxes if configured."""
        if self.box_position_projection is None:
            return positions

        encoded = sinusoidal_box(boxes.detach(), self.config.hidden_dim)  # [B, T, 2·d]
        return positions + self.box_position_projection(encoded)

    def _predict_stage(
        self,
        spatial: Tensor,
        temporal: Tensor,
        temporal_attention: Tensor,
        memory: CgstvgMemory,
        cells: CellProposals,
        targets: Targets | None,
    ) -> DecoderStageOutputs:
        """Apply the heads and ICG and ICR to a stage's queries [B, T, d]."""
        batch_shape = spatial.shape[:2]  # (B, T)

        # Heads, in float32: bfloat16 would round boxes to 1/256 of the picture.
        with torch.autocast(spatial.device.type, enabled=False):
            normed = self.norm_spatial(spatial.float()).flatten(0, 1)  # [B·T, d]
            flat_boxes, box_attention = self.box_head(normed, cells)

            moment = self.norm_temporal(temporal.float())  # [B, T, d]
            start_logits, end_logits = self.boundary_head(moment).unbind(-1)
            inside_logits = self.inside_head(moment)[..., 0]
        boxes = flat_boxes.unflatten(0, batch_shape)

        context = None
        if self.config.context:
            context = self.instance_context(
                memory, boxes, inside_logits, targets if self.training else None
            )

        return DecoderStageOutputs(
            boxes=boxes,
            start_logits=start_logits,
            end_logits=end_logits,
            inside_logits=inside_logits,
            box_attention=box_attention.unflatten(0, batch_shape),
            temporal_attention=temporal_attention,
            context=context,
        )

    def _stack_stages(
        self,
        stages: list[DecoderStageOutputs],
        inputs: ModelInputs,
        memory: CgstvgMemory,
        cells: CellProposals,
    ) -> CgstvgOutputs:
        """Stack the outputs of all stages."""
        # Without context there are neither confidences nor masks.
        contexts = [stage.context for stage in stages if stage.context is not None]
        box_confidence = torch.zeros(0)
        context_mask = torch.zeros(0, dtype=torch.bool)
        if contexts:
            box_confidence = torch.stack([context.box_confidence for context in contexts])
            context_mask = torch.stack([context.context_mask for context in contexts])

        # Only the attention head makes a box proposal per cell.
        cell_boxes = torch.zeros(0)
        if len(cells.boxes):
            cell_boxes = cells.boxes.unflatten(0, inputs.frame_positions.shape)

        return CgstvgOutputs(
            boxes=torch.stack([stage.boxes for stage in stages]),
            start_logits=torch.stack([stage.start_logits for stage in stages]),
            end_logits=torch.stack([stage.end_logits for stage in stages]),
            frame_positions=inputs.frame_positions,
            box_attention=torch.stack([stage.box_attention for stage in stages]),
            cell_boxes=cell_boxes,
            cell_centers=memory.centers,
            temporal_attention=torch.stack([stage.temporal_attention for stage in stages]),
            inside_logits=torch.stack([stage.inside_logits for stage in stages]),
            box_confidence=box_confidence,
            context_mask=context_mask,
        )
