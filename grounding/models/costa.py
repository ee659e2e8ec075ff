"""CoSTA (AAAI 2024).

Paper: End-to-End Comprehensive Space-Time Entanglement for Spatio-Temporal Video Grounding.

A space-time collaborative encoder runs a 3-D network beside a 2-D network, on the frames, and fuses
both after every stage, eq. (1). Layers of spatial and temporal attention then fuse each
frame's cells, the text tokens and a [CLS] token. A temporal decoder predicts the event's span. The
span enters the entangled queries of a spatial decoder, eq. (4), which updates a box in every frame.

Shapes: B queries, V videos, T frames, L text tokens, d channels, H·W cells per frame.

Decisions where the paper is ambiguous:

- The 3-D network is not named; the parameter count implies R3D-18. With R3D-18's stages (33.2 M
  parameters), ResNet-101 (42.4), RoBERTa (124.1, if it trains: cached token states need none), the
  lateral connections of both networks (1.4), fusion (15.8), decoders (20.3) and projections, the
  model has 237.5 M. The paper states 235.0 M. Of the excess of 1 %, 1.4 M are the lateral
  connections (x_l and φ_l differ in width), and 0.8 M the position projections of the concatenated
  attention. The paper describes neither.
- The 3-D network has a pooling layer after its stem, for ResNet's map sizes. It starts from random
  weights, with norms over groups of channels. `y_1` is fused like the others (the stem feeds φ_1).
- Only the sum is described as a sum of normalized features. Concatenation and Hadamard product use
  plain features.
- [CLS] is one learned vector, the same for all frames. Queries and keys of the temporal layers
  carry its time position. Those of the spatial layers carry the cells' positions; text tokens and
  [CLS] have none. The decoders' memory excludes [CLS].
- `t_e > t_s` applies to half-open spans: an event may start and end with the same frame.
- The event part is the decoder's content. Each layer updates it, and the updated content moves the
  anchors. Anchors pass no gradient from layer to layer. The initial anchors do receive a gradient,
  because they would learn nothing otherwise. All layers share the MLP that updates anchors.
- Content and position of the concatenated attention stay separate in every head, as in Conditional
  DETR.
- The presence head reads the temporal decoder's final queries. The spatial decoder's queries
  already encode the predicted span.

Deviations from the paper, for training from scratch (off by default):

- `text_balance=num_cells` and `box_head=attention`.
- Supervision of the temporal decoder's attention weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from grounding.models.config import TransformerConfig
from grounding.models.output import AttentionKind, framewise_attention_maps
from grounding.modules.activation_checkpointing import checkpoint_layers
from grounding.modules.attention import PairedAttention, balance_text_attention
from grounding.modules.box_heads import AttentionBoxHead, CellProposals
from grounding.modules.frame_outputs import FramewiseOutputs, most_likely_span
from grounding.modules.freezing import set_trainable
from grounding.modules.layers import (
    MLP,
    EncoderLayer,
    FeedForward,
    FrameQueryAttention,
    to_compute_dtype,
)
from grounding.modules.position_encoding import cell_positions, sinusoidal_box, sinusoidal_time
from grounding.modules.r3d import NORM_GROUPS, LateralFusion, R3dTrunk
from grounding.modules.variable_resolution import encode_by_resolution
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets

if TYPE_CHECKING:
    from pipeline.encoders.appearance import AppearanceEncoder
    from pipeline.encoders.text import TextEncoder

MAX_CONVOLUTION_PIXELS = 1 << 22
"""Pixels per encoder call. Without gradients the peak memory is independent of the batch size."""


class CostaConfig(TransformerConfig):
    """Configuration of the model. The defaults are the paper's, or STCAT's where it states none."""

    hidden_dim_divisor: ClassVar[tuple[int, str]] = (8, "a box' sine positions")
    """Number that divides `hidden_dim`, and the reason for the requirement."""
    uses_images: ClassVar[bool] = True
    """The model reads images."""
    motion_product: ClassVar[None] = None
    """The model reads no cached motion: its 3-D network sees the frames."""
    num_clips: ClassVar[None] = None
    """The model has no clips: it predicts per frame."""

    num_layers: int = Field(default=6, ge=1)
    """N, layers of the fusion."""
    num_decoder_layers: int = Field(default=6, ge=1)
    """Layers of each decoder, temporal and spatial."""
    num_frames: int = Field(default=64, ge=1)
    """T_s, frames of a training pass."""
    backbones: Literal["both", "2d", "3d"] = "both"
    """Visual networks: the paper's collaboration of both, or one of them alone."""
    connection: LateralFusion = "sum"
    """Fusion of the 2-D and 3-D networks after every stage."""
    r3d_width: int = Field(default=64, ge=NORM_GROUPS)
    """Channels of the 3-D network's stem and first stage; doubled after each further stage."""
    train_image_encoder: bool = True
    """Train the 2-D network, except its stem, first stage and norms; false: freeze all of it."""
    temporal_fusion: bool = True
    """Use temporal layers in the fusion."""
    entangled_queries: bool = True
    """Encode the span in the spatial queries; false: the spatial queries start as [CLS]."""
    teacher_forcing_rate: float = Field(default=0.9, ge=0, le=1)
    """β, probability in training that the encoded span is the ground truth."""
    box_head: Literal["mlp", "attention"] = "mlp"
    """Box head: the paper's anchor updates, or attention over cells, which learns from scratch."""
    text_balance: Literal["none", "num_cells"] = "none"
    """Initial weight of text in a frame's tokens. `none`: each word counts as one token.
    `num_cells`: all words together weigh as much as all cells."""

    @model_validator(mode="after")
    def _check_groups_fit(self) -> CostaConfig:
        """Reject widths that group norms cannot split evenly."""
        if self.r3d_width % NORM_GROUPS:
            raise ValueError(
                f"r3d_width must be a multiple of {NORM_GROUPS} (groups of channels), "
                f"not {self.r3d_width}"
            )
        return self


@dataclass
class CostaOutputs(FramewiseOutputs):
    """Outputs of the model.

    Boxes are the anchors after every layer of the spatial decoder. Boundary logits come from the
    temporal decoder.
    """

    encoder_presence_logits: Tensor
    """`[B, T]`, logits of the object's presence in a frame, from the encoder's [CLS]."""
    decoder_presence_logits: Tensor
    """`[B, T]`, the same from the temporal decoder's final queries."""
    event_mask: Tensor
    """`[B, T]`, True at frames of the span that the entangled queries encode."""

    def attention_maps(self) -> dict[AttentionKind, Tensor]:
        """Return the attention maps of a batch without padding of maps.

        Returns:
            Weights by kind, [layers, B, T, H, W] each (`framewise_attention_maps`).
        """
        return framewise_attention_maps(self)


@dataclass
class CostaMemory:
    """Encoder output of B·T frames, without [CLS]."""

    states: Tensor
    """`[B·T, H·W + L, d]`, visual cells, then text tokens."""
    positions: Tensor
    """`[B·T, H·W + L, d]`, position encodings; 0 for text."""
    mask: Tensor
    """`[B·T, H·W + L]`, False at padding."""
    centers: Tensor
    """`[B, H·W, 2]`, cell centers (x, y) in [0, 1]."""
    time: Tensor
    """`[B, T, d]`, time positions of the frames."""

    def __post_init__(self) -> None:
        """Compute the keys of the temporal decoder's attention."""
        self.positioned_states = self.states + self.positions

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centers of the cells, the input of a box head."""
        num_cells = self.centers.shape[1]
        num_frames = self.time.shape[1]

        return (
            self.states[:, :num_cells].float(),
            self.positions[:, :num_cells],
            self.mask[:, :num_cells],
            self.centers.repeat_interleave(num_frames, 0),
        )


class TemporalLayer(nn.Module):
    """Layer of the temporal decoder: attention between frames, attention to a frame's tokens, FFN.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.frame_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.memory_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.feed_forward = FeedForward(c.hidden_dim, c.ffn_dim, c.dropout)

    def forward(self, queries: Tensor, memory: CostaMemory) -> tuple[Tensor, Tensor]:
        """Update the temporal queries.

        Args:
            queries: [B, T, d].
            memory: Encoder output.

        Returns:
            Queries [B, T, d], and the attention to the frame's tokens [B, T, H·W + L].
        """
        queries = self.frame_attention.attend_frames(queries, None)
        queries, weights = self.memory_attention.attend_within_frame(
            queries, None, memory.positioned_states, memory.states, memory.mask
        )

        return self.feed_forward(queries), weights


class TemporalDecoder(nn.Module):
    """Temporal boundary prediction, from [CLS] to start and end logits.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.event_query = MLP(c.hidden_dim, c.hidden_dim, c.hidden_dim)
        self.query_mixer = nn.Linear(c.hidden_dim, c.hidden_dim)
        self.layers = nn.ModuleList(TemporalLayer(c) for _ in range(c.num_decoder_layers))
        self.boundary_head = MLP(c.hidden_dim, c.hidden_dim, 2)
        self.presence_head = MLP(c.hidden_dim, c.hidden_dim, 1)

    def forward(self, cls: Tensor, memory: CostaMemory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict the event's boundaries and the object's presence.

        Args:
            cls: [B, T, d], [CLS] of each frame.
            memory: Encoder output.

        Returns:
            Start logits and end logits [layers, B, T] each, presence logits [B, T], and the
            attention to each cell [layers, B, T, H·W].
        """
        num_cells = memory.centers.shape[1]
        queries = self.query_mixer(self.event_query(cls) + memory.time)  # eq. (2)

        start_logits: list[Tensor] = []
        end_logits: list[Tensor] = []
        cell_weights: list[Tensor] = []
        for layer in self.layers:
            queries, weights = layer(queries, memory)

            start, end = self.boundary_head(queries).unbind(-1)  # [B, T]
            start_logits.append(start)
            end_logits.append(end)
            cell_weights.append(weights[..., :num_cells])

        return (
            torch.stack(start_logits),
            torch.stack(end_logits),
            self.presence_head(queries)[..., 0],
            torch.stack(cell_weights),
        )


class SpatialLayer(nn.Module):
    """Layer of the spatial decoder (Figure 5 (b)).

    Event part and anchor position are summed in the attention between frames, and concatenated in
    the attention to a frame's tokens. An FFN follows.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.frame_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.memory_attention = PairedAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.norm = nn.LayerNorm(c.hidden_dim)
        self.dropout = nn.Dropout(c.dropout)
        self.feed_forward = FeedForward(c.hidden_dim, c.ffn_dim, c.dropout)

    def forward(self, event: Tensor, anchors: Tensor, memory: CostaMemory) -> Tensor:
        """Update the event part of the spatial queries.

        Args:
            event: [B, T, d].
            anchors: [B, T, d], position encodings of the anchors.
            memory: Encoder output.

        Returns:
            [B, T, d].
        """
        event = self.frame_attention.attend_frames(event, anchors)

        # One query per frame: [B·T, 1, d].
        content = event.flatten(0, 1)[:, None]
        position = anchors.flatten(0, 1)[:, None]
        attended = self.memory_attention(
            (content, position), (memory.states, memory.positions), memory.states, memory.mask
        )

        event = self.norm(event + self.dropout(attended.view_as(event)))
        return self.feed_forward(event)


class SpatialDecoder(nn.Module):
    """Spatial localization: every layer updates the anchors by the updated event part.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.hidden_dim = c.hidden_dim
        self.initial_anchor = MLP(c.hidden_dim, c.hidden_dim, 4)
        self.layers = nn.ModuleList(SpatialLayer(c) for _ in range(c.num_decoder_layers))
        self.anchor_update = (
            MLP(c.hidden_dim, c.hidden_dim, c.hidden_dim, 4) if c.box_head == "mlp" else None
        )
        self.box_head = AttentionBoxHead(c.hidden_dim) if c.box_head == "attention" else None

    def forward(
        self, event: Tensor, cls: Tensor, memory: CostaMemory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict a box in every frame.

        Args:
            event: [B, T, d], event part of the queries, eq. (4).
            cls: [B, T, d], [CLS] of each frame, for the initial anchors.
            memory: Encoder output.

        Returns:
            Boxes [layers, B, T, 4] cxcywh, the weights of the cells that make them
            [layers, B, T, H·W], and each cell's box [B, T, H·W, 4]. Cell boxes are empty with
            `box_head=mlp`.
        """
        batch_shape = event.shape[:2]  # (B, T)

        # Boxes are computed in float32: bfloat16 would round them to 1/256 of the picture.
        with torch.autocast(event.device.type, enabled=False):
            anchors = self.initial_anchor(cls.float()).sigmoid()  # [B, T, 4]
            cells = None if self.box_head is None else self.box_head.prepare(*memory.cells)

        all_boxes: list[Tensor] = []
        all_weights: list[Tensor] = []
        for layer in self.layers:
            anchor_positions = sinusoidal_box(anchors, self.hidden_dim // 2)  # [B, T, d]
            event = layer(event, anchor_positions, memory)

            with torch.autocast(event.device.type, enabled=False):
                boxes, weights = self._update_anchors(event.float(), anchors, cells, memory)
            all_boxes.append(boxes)
            all_weights.append(weights)

            # Later anchors pass no gradient to earlier layers.
            anchors = boxes.detach()

        cell_boxes = event.new_zeros(0)
        if cells is not None:
            cell_boxes = cells.boxes.unflatten(0, batch_shape)

        return torch.stack(all_boxes), torch.stack(all_weights), cell_boxes

    def _update_anchors(
        self, event: Tensor, anchors: Tensor, cells: CellProposals | None, memory: CostaMemory
    ) -> tuple[Tensor, Tensor]:
        """Return the anchors after a layer [B, T, 4], and their cells' weights [B, T, H·W]."""
        batch_shape = anchors.shape[:2]

        # Attention head: a weighted mean of the cells' boxes.
        if self.box_head is not None and cells is not None:
            boxes, weights = self.box_head(event.flatten(0, 1), cells)
            return boxes.view_as(anchors), weights.unflatten(0, batch_shape)

        # The paper's update, in logit space. Cell weights are uniform.
        assert self.anchor_update is not None
        mask = memory.cells[2].unflatten(0, batch_shape)  # [B, T, H·W]
        uniform = mask / mask.sum(-1, keepdim=True)
        boxes = (anchors.logit(1e-5) + self.anchor_update(event)).sigmoid()
        return boxes, uniform


class Costa(nn.Module):
    """CoSTA, from images and text to tubes.

    Args:
        dims: Channels of (images, nothing, stored token states).
        config: The model's configuration.
        image_encoder: The 2-D network.
        text_encoder: Text encoder that trains, too; `inputs.text` then holds token ids. None:
            `inputs.text` holds token states.
    """

    def __init__(
        self,
        dims: tuple[int, int, int],
        config: CostaConfig,
        image_encoder: AppearanceEncoder,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        c = config
        self.config = config

        # 2-D network and text encoder.
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        set_trainable(image_encoder, c.train_image_encoder and c.backbones != "3d")
        if text_encoder is not None:
            text_encoder.requires_grad_(True)

        # 3-D network with its lateral connections, eq. (1).
        self.r3d: R3dTrunk | None = None
        if c.backbones != "2d":
            lateral_channels = image_encoder.stage_channels if c.backbones == "both" else None
            self.r3d = R3dTrunk(
                c.r3d_width, lateral_channels, image_encoder.has_stem_pooling, c.connection
            )

        # Projections to d channels.
        video_dim = image_encoder.channels if self.r3d is None else self.r3d.widths[-1]
        text_dim = dims[2] if text_encoder is None else text_encoder.channels
        self.project_video = nn.Linear(video_dim, c.hidden_dim)
        self.project_text = nn.Sequential(
            nn.Linear(text_dim, c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )

        # Fusion: spatial layers per frame, temporal layers over the [CLS] tokens.
        self.class_token = nn.Parameter(0.02 * torch.randn(c.hidden_dim))
        self.spatial_encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )
        num_temporal_layers = c.num_layers if c.temporal_fusion else 0
        self.temporal_encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(num_temporal_layers)
        )

        # Presence head, decoders, and the event token of eq. (4).
        self.presence_head = MLP(c.hidden_dim, c.hidden_dim, 1)
        self.temporal_decoder = TemporalDecoder(c)
        self.spatial_decoder = SpatialDecoder(c)
        self.event_token = nn.Embedding(2, c.hidden_dim) if c.entangled_queries else None

    def train(self, mode: bool = True) -> Costa:
        """Set the training mode. The 2-D network's batch norms keep their statistics.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            The module itself.
        """
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs, targets: Targets | None = None) -> CostaOutputs:
        """Ground the sentences of a batch.

        Args:
            inputs: Batch with images in place of maps, RGB uint8 [V, T, h, w, 3], and their sizes
                in pixels as `map_size`.
            targets: Ground truth; read only in training, with `teacher_forcing_rate` above 0.

        Returns:
            Boxes and boundary logits after every layer, presence logits and attention weights.
        """
        memory, cls = self.encode(inputs)

        # Temporal decoder: when the event happens.
        start_logits, end_logits, decoder_presence_logits, temporal_attention = (
            self.temporal_decoder(cls, memory)
        )
        event_mask = self.select_span(
            start_logits[-1], end_logits[-1], targets if self.training else None
        )

        # Spatial decoder: its queries encode the span.
        event = self.embed_event(event_mask, cls, memory.time)
        boxes, box_attention, cell_boxes = self.spatial_decoder(event, cls, memory)

        return CostaOutputs(
            boxes=boxes,
            start_logits=start_logits,
            end_logits=end_logits,
            encoder_presence_logits=self.presence_head(cls)[..., 0],
            decoder_presence_logits=decoder_presence_logits,
            event_mask=event_mask,
            frame_positions=inputs.frame_positions,
            box_attention=box_attention,
            cell_boxes=cell_boxes,
            cell_centers=memory.centers,
            temporal_attention=temporal_attention,
        )

    def encode(self, inputs: ModelInputs) -> tuple[CostaMemory, Tensor]:
        """Encode and fuse the frames and the text (space-time feature encoding).

        Args:
            inputs: The batch.

        Returns:
            The memory of B·T frames, and [CLS] of each frame [B, T, d].
        """
        batch, num_frames = inputs.frame_positions.shape

        # Visual maps and text tokens.
        maps, map_size = self.encode_images(inputs.appearance, inputs.map_size)
        rows, columns = maps.shape[2:4]
        text = self._project_tokens(inputs)  # [B, L, d]

        # Positions and mask of a frame's tokens; text has no position.
        positions, cell_mask, centers = cell_positions(
            inputs.expand_to_queries(map_size), rows, columns, text.shape[-1]
        )
        positions = torch.cat([positions, torch.zeros_like(text)], 1)  # [B, H·W + L, d]
        positions = positions.repeat_interleave(num_frames, 0)  # [B·T, H·W + L, d]
        token_mask = torch.cat([cell_mask, inputs.text_mask], 1)  # [B, H·W + L]
        time = sinusoidal_time(inputs.frame_positions, text.shape[-1])  # [B, T, d]

        # Per frame: H·W cells, then L text tokens.
        visual = inputs.expand_to_queries(self.project_video(maps).flatten(2, 3))  # [B, T, H·W, d]
        text_per_frame = text[:, None].expand(-1, num_frames, -1, -1)  # [B, T, L, d]
        states = torch.cat([visual, text_per_frame], 2).flatten(0, 1)  # [B·T, H·W + L, d]

        # [CLS] is the last token of a frame. It has no position and is never masked.
        cls = self.class_token.expand(batch, num_frames, -1)  # [B, T, d]
        layer_positions = functional.pad(positions, (0, 0, 0, 1))  # [B·T, H·W + L + 1, d]
        layer_mask = self._encoder_mask(cell_mask, inputs.text_mask)  # [B, H·W + L + 1]
        layer_mask = layer_mask.repeat_interleave(num_frames, 0)

        # Fusion layers: space within each frame, then time over the [CLS] tokens.
        for index, layer in enumerate(self.spatial_encoder):
            frame_cls = cls.reshape(batch * num_frames, 1, -1)
            tokens = layer(torch.cat([states, frame_cls], 1), layer_positions, layer_mask)
            states = tokens[:, :-1]
            cls = tokens[:, -1].unflatten(0, (batch, num_frames))

            if self.config.temporal_fusion:
                cls = self.temporal_encoder[index](cls, time, None)

        mask = token_mask.repeat_interleave(num_frames, 0)  # [B·T, H·W + L]
        return CostaMemory(states, positions, mask, centers, time), cls

    def _project_tokens(self, inputs: ModelInputs) -> Tensor:
        """Return the projected token states [B, L, d], from token ids with a text encoder."""
        states = inputs.text  # [B, L, C]
        if self.text_encoder is not None:
            token_ids = inputs.text[..., 0]  # [B, L]
            states = self.text_encoder(token_ids, inputs.text_mask)

        return self.project_text(to_compute_dtype(states))

    def _encoder_mask(self, cell_mask: Tensor, text_mask: Tensor) -> Tensor:
        """Return the attention mask [B, H·W + L + 1] of cells, text and [CLS], or its logits."""
        if self.config.text_balance == "num_cells":
            logits = balance_text_attention(cell_mask, text_mask)
            return functional.pad(logits, (0, 1), value=0.0)

        token_mask = torch.cat([cell_mask, text_mask], 1)
        return functional.pad(token_mask, (0, 1), value=1.0)

    def encode_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode videos of several sizes into spatio-temporal maps.

        Each video is encoded at its own size, so the other videos of a batch do not affect it.

        Args:
            images: [V, T, h, w, 3] uint8 RGB, padded to the batch's largest size.
            sizes: [V, 2], height and width of each video without padding, in pixels.

        Returns:
            Maps [V, T, H, W, C], zero-padded to the largest map, and their rows and columns
            [V, 2].
        """
        return encode_by_resolution(images, sizes, self._encode_resolution)

    def _encode_resolution(self, images: Tensor) -> Tensor:
        """Encode videos of one size: [n, T, h, w, 3] → [n, T, H, W, C]."""
        # Encode in chunks of at most MAX_CONVOLUTION_PIXELS pixels, at least one video each.
        pixels_per_video = images[0, ..., 0].numel()
        chunk_size = max(1, MAX_CONVOLUTION_PIXELS // pixels_per_video)

        maps = []
        for chunk in images.split(chunk_size):
            maps.append(self.encode_videos(chunk))

        return torch.cat(maps)

    def encode_videos(self, videos: Tensor) -> Tensor:
        """Run the 2-D and 3-D networks, eq. (1).

        Args:
            videos: [n, T, h, w, 3] uint8 RGB.

        Returns:
            y_4 [n, T, H, W, C]; x_4 with the 2-D network alone.
        """
        batch_shape = videos.shape[:2]  # (n, T)
        frames = videos.flatten(0, 1).permute(0, 3, 1, 2)  # [n·T, 3, h, w]
        frames = self.image_encoder.normalize(frames)

        # 2-D network: x_1 … x_4, one map per stage.
        image_features: list[Tensor] = []
        if self.config.backbones != "3d":
            x = self.image_encoder.stem(frames)
            for stage in self.image_encoder.stages:
                x = stage(x)  # [n·T, C_l, h_l, w_l]
                image_features.append(x)

        if self.r3d is None:
            return image_features[-1].permute(0, 2, 3, 1).unflatten(0, batch_shape)

        # 3-D network, fused with x_l after every stage.
        clips = frames.unflatten(0, batch_shape).transpose(1, 2)  # [n, 3, T, h, w]
        return self.r3d(clips, image_features or None)

    def select_span(
        self, start_logits: Tensor, end_logits: Tensor, targets: Targets | None
    ) -> Tensor:
        """Return the frames of the span that the entangled queries encode.

        Args:
            start_logits: [B, T].
            end_logits: [B, T].
            targets: Ground truth, used for each query with probability β; None: never used.

        Returns:
            [B, T], True inside the span.
        """
        predicted = most_likely_span(start_logits.detach(), end_logits.detach())
        if targets is None:
            return predicted

        draws = torch.rand(len(predicted), 1, device=predicted.device)  # [B, 1]
        use_target = draws < self.config.teacher_forcing_rate
        return torch.where(use_target, targets.frame_labels > 0, predicted)

    def embed_event(self, event_mask: Tensor, cls: Tensor, time: Tensor) -> Tensor:
        """Return the event part of the spatial queries, eq. (4).

        Args:
            event_mask: [B, T], True inside the span.
            cls: [B, T, d], [CLS] of each frame.
            time: [B, T, d], time positions PE(i).

        Returns:
            `Emb(a_i)`, plus `PE(i)` inside the span, [B, T, d]. Without entanglement: [CLS].
        """
        if self.event_token is None:
            return cls

        return self.event_token(event_mask.long()) + event_mask[..., None] * time

    def enable_activation_checkpointing(self) -> None:
        """Checkpoint the layers of all networks (`checkpoint_layers`)."""
        checkpoint_layers(self)
        checkpoint_layers(self.temporal_decoder)
        checkpoint_layers(self.spatial_decoder)

        if self.r3d is not None:
            checkpoint_layers(self.r3d)

        checkpoint_layers(self.image_encoder.body, nn.Sequential)

        if self.text_encoder is not None:
            checkpoint_layers(self.text_encoder.roberta.encoder)
