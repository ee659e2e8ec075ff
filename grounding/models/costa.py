"""CoSTA: End-to-End Comprehensive Space-Time Entanglement for Spatio-Temporal Video Grounding (AAAI 2024).

A space-time collaborative encoder lets a 3-D network run beside a 2-D one, over the frames themselves, and joins them after
every stage. Layers of spatial and temporal attention fuse each frame's cells, the words and a [CLS] token. A temporal decoder
says when the event happens; its span goes into the entangled query of a spatial decoder, which moves a box in every frame.

Where the paper leaves things open:
- The 3-D network is not named. With R3D-18's stages (33.2 M parameters), ResNet-101 (42.4), RoBERTa (124.1, where it trains: cached
  words need none), the joints of both networks (1.4), fusion (15.8), decoders (20.3) and projections this one has 237.5 M; the paper
  states 235.0 M: so R3D-18 it is, by inference. Of the 1 % more, 1.4 M are the joints (x_l has other widths than φ_l) and 0.8 M the
  projections of places in the concatenated attention; the paper describes neither. A pooling after its stem brings it to ResNet's
  map sizes. It starts from fresh weights, with norms over groups of channels; `y_1` is joined as the others are (the stem feeds φ_1).
- Only the sum is said to be of normed features: concatenation and Hadamard product are of plain ones.
- [CLS] is one learned vector, the same for all frames. The temporal layers' queries and keys carry its place in time; the spatial
  ones' the cells' places, and none for words and [CLS]. Memory is what is left without [CLS].
- `t_e > t_s` holds of half-open spans: an event may begin and end with one frame.
- The event part is the decoder's content: each layer changes it, and moves the anchors by what it has become. From layer to layer
  anchors pass no gradient, but for the first ones, which would learn nothing else. One MLP moves them in all layers.
- Content and place of the concatenated attention stay apart in every head, as in Conditional DETR.
- The last queries that say whether the object is there are the temporal decoder's: the spatial decoder's have been told.
- `text_balance=num_cells`, `box_head=attention` and the attention weights of the temporal decoder (`heard`) are ours, for training from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from grounding.models.config import TransformerConfig
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
"""Pixels of videos that are encoded at once: what a pass without gradients holds does not grow with the batch."""


class CostaConfig(TransformerConfig):
    """Everything that shapes the network; the defaults are the paper's, or STCAT's where it states none."""

    hidden_dim_divisor: ClassVar[tuple[int, str]] = (8, "a box' sine positions")
    uses_images: ClassVar[bool] = True
    """It is given the frames themselves."""
    motion_product: ClassVar[None] = None
    """It reads no motion: it has a network for that."""
    num_clips: ClassVar[None] = None
    """It has no clips: it answers by frames."""
    num_layers: int = Field(default=6, ge=1)
    """N: layers of fusion."""
    num_decoder_layers: int = Field(default=6, ge=1)
    """Of the temporal and of the spatial decoder, each."""
    num_frames: int = Field(default=64, ge=1)
    backbones: Literal["both", "2d", "3d"] = "both"
    connection: LateralFusion = "sum"
    r3d_width: int = Field(default=64, ge=NORM_GROUPS)
    """Channels of the 3-D network's stem and first stage; twice as many after each further stage."""
    train_image_encoder: bool = True
    """The 2-D network trains, but for its stem, its first stage and its norms; false: it stays as it is."""
    temporal_fusion: bool = True
    """Fusion has layers over time."""
    entangled_queries: bool = True
    """The spatial decoder is told the span; false: its queries begin as [CLS]."""
    teacher_forcing_rate: float = Field(default=0.9, ge=0, le=1)
    """How often in training that is the true span."""
    box_head: Literal["mlp", "attention"] = "mlp"
    text_balance: Literal["none", "num_cells"] = "none"
    """Among a frame's tokens every word counts as one of them, or all words together begin as loud as all cells."""

    @model_validator(mode="after")
    def _check_groups_fit(self) -> CostaConfig:
        if self.r3d_width % NORM_GROUPS:
            raise ValueError(
                f"r3d_width must be a multiple of {NORM_GROUPS} (groups of channels), not {self.r3d_width}"
            )
        return self


@dataclass
class CostaOutputs(FramewiseOutputs):
    """What the network answers: boxes are the anchors after every layer of the spatial decoder, the rest is the temporal decoder's."""

    encoder_presence_logits: Tensor
    decoder_presence_logits: Tensor
    """Logits `[B, T]` of the object's attendance, by the encoder's [CLS] and by the temporal decoder's last queries."""
    event_mask: Tensor
    """`[B, T]`: the frames that the entangled queries hold for the event's."""


class Costa(nn.Module):
    """The whole network, from pictures and words to tubes. `dims` are the channels of (pictures, nothing, stored token states).

    With a `text_encoder` that trains too, words are token ids instead of states.
    """

    def __init__(
        self,
        dims: tuple[int, int, int],
        config: CostaConfig,
        image_encoder: AppearanceEncoder,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        c = self.config = config
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        set_trainable(image_encoder, c.train_image_encoder and c.backbones != "3d")
        if text_encoder is not None:
            text_encoder.requires_grad_(True)
        beside = image_encoder.stage_channels if c.backbones == "both" else None
        self.r3d = (
            None
            if c.backbones == "2d"
            else R3dTrunk(c.r3d_width, beside, image_encoder.has_stem_pooling, c.connection)
        )
        self.project_video = nn.Linear(
            image_encoder.channels if self.r3d is None else self.r3d.widths[-1], c.hidden_dim
        )
        words = dims[2] if text_encoder is None else text_encoder.channels
        self.project_text = nn.Sequential(
            nn.Linear(words, c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )
        self.class_token = nn.Parameter(0.02 * torch.randn(c.hidden_dim))
        self.spatial_encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout)
            for _ in range(c.num_layers)
        )
        over_time = c.num_layers if c.temporal_fusion else 0
        self.temporal_encoder = nn.ModuleList(
            EncoderLayer(c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout) for _ in range(over_time)
        )
        self.presence_head = MLP(c.hidden_dim, c.hidden_dim, 1)
        self.temporal_decoder, self.spatial_decoder = TemporalDecoder(c), SpatialDecoder(c)
        self.event_token = nn.Embedding(2, c.hidden_dim) if c.entangled_queries else None

    def train(self, mode: bool = True) -> Costa:
        """Train or evaluate; the 2-D network's norms keep their statistics either way."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs, targets: Targets | None = None) -> CostaOutputs:
        """`inputs` with pictures for maps, RGB uint8 `[V, T, h, w, 3]` (`map_size` in pixels). `truth` is looked at only in training,
        with `beta` above 0.
        """
        memory, cls = self.encode(inputs)
        first, last, decoded, heard = self.temporal_decoder(cls, memory)
        told = self.select_span(first[-1], last[-1], targets if self.training else None)
        boxes, carriers, cell_boxes = self.spatial_decoder(
            self.embed_event(told, cls, memory.time), cls, memory
        )
        return CostaOutputs(
            boxes=boxes,
            start_logits=first,
            end_logits=last,
            encoder_presence_logits=self.presence_head(cls)[..., 0],
            decoder_presence_logits=decoded,
            event_mask=told,
            frame_positions=inputs.frame_positions,
            box_attention=carriers,
            cell_boxes=cell_boxes,
            cell_centers=memory.centers,
            temporal_attention=heard,
        )

    def encode(self, inputs: ModelInputs) -> tuple[CostaMemory, Tensor]:
        """Space-time feature encoding: the frames' memory, and [CLS] of each `[B, T, d]`."""
        maps, size = self.encode_images(inputs.appearance, inputs.map_size)
        (batch, frames), (rows, columns) = inputs.frame_positions.shape, maps.shape[2:4]
        words = (
            inputs.text
            if self.text_encoder is None
            else self.text_encoder(inputs.text[..., 0], inputs.text_mask)
        )
        text = self.project_text(to_compute_dtype(words))
        positions, mask, centres = cell_positions(
            inputs.expand_to_queries(size), rows, columns, text.shape[-1]
        )
        positions = torch.cat([positions, torch.zeros_like(text)], 1).repeat_interleave(frames, 0)
        loud, counted = (
            self.config.text_balance == "num_cells",
            torch.cat([mask, inputs.text_mask], 1),
        )
        heard = balance_text_attention(mask, inputs.text_mask) if loud else counted
        mask = counted.repeat_interleave(frames, 0)
        time = sinusoidal_time(inputs.frame_positions, text.shape[-1])
        visual = inputs.expand_to_queries(self.project_video(maps).flatten(2, 3))
        states = torch.cat([visual, text[:, None].expand(-1, frames, -1, -1)], 2).flatten(0, 1)
        cls = self.class_token.expand(batch, frames, -1)
        everywhere = functional.pad(positions, (0, 0, 0, 1))
        heard = functional.pad(heard, (0, 1), value=0.0 if loud else 1.0).repeat_interleave(
            frames, 0
        )  # [CLS] is one token
        for number, layer in enumerate(self.spatial_encoder):
            tokens = layer(
                torch.cat([states, cls.reshape(batch * frames, 1, -1)], 1), everywhere, heard
            )
            states, cls = tokens[:, :-1], tokens[:, -1].unflatten(0, (batch, frames))
            if self.config.temporal_fusion:
                cls = self.temporal_encoder[number](cls, time, None)
        return CostaMemory(states, positions, mask, centres, time), cls

    def encode_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Spatio-temporal maps `[V, T, H, W, C]`, zero-padded to the largest, and their rows and columns `[V, 2]`.

        Pictures are encoded at their own size: nothing of a query's batch reaches them.
        """
        return encode_by_resolution(images, sizes, self._encode_resolution)

    def _encode_resolution(self, images: Tensor) -> Tensor:
        """Videos of one size `[n, T, h, w, 3]` → `[n, T, H, W, C]`, as many at once as have `TOGETHER` pixels, or one."""
        count = max(1, MAX_CONVOLUTION_PIXELS // images[0, ..., 0].numel())
        return torch.cat([self.encode_videos(part) for part in images.split(count)])

    def encode_videos(self, videos: Tensor) -> Tensor:
        """RGB `[n, T, h, w, 3]` → y_4 `[n, T, H, W, C]` (of the 2-D network alone x_4)."""
        pictures = self.image_encoder.normalize(videos.flatten(0, 1).permute(0, 3, 1, 2))
        still: list[Tensor] = []
        if self.config.backbones != "3d":
            x = self.image_encoder.stem(pictures)
            for stage in self.image_encoder.stages:
                x = stage(x)
                still.append(x)
        if self.r3d is None:
            return still[-1].permute(0, 2, 3, 1).unflatten(0, videos.shape[:2])
        return self.r3d(pictures.unflatten(0, videos.shape[:2]).transpose(1, 2), still or None)

    def select_span(
        self, start_logits: Tensor, end_logits: Tensor, targets: Targets | None
    ) -> Tensor:
        """The frames `[B, T]` that are taken for the event's: by logits `[B, T]`, or with probability β, query by query, the true ones."""
        predicted = most_likely_span(start_logits.detach(), end_logits.detach())
        if targets is None:
            return predicted
        taught = (
            torch.rand(len(predicted), 1, device=predicted.device)
            < self.config.teacher_forcing_rate
        )
        return torch.where(taught, targets.frame_labels > 0, predicted)

    def embed_event(self, event_mask: Tensor, cls: Tensor, time: Tensor) -> Tensor:
        """Eq. (4): `Emb(a_i)`, inside the span with `PE(i)`; without entanglement [CLS]. `[B, T, d]`."""
        return (
            cls
            if self.event_token is None
            else self.event_token(event_mask.long()) + event_mask[..., None] * time
        )

    def enable_activation_checkpointing(self) -> None:
        """Gradient checkpointing of all networks (`checkpoint_layers`)."""
        checkpoint_layers(self)
        for stack in (
            self.temporal_decoder,
            self.spatial_decoder,
            *([self.r3d] if self.r3d is not None else []),
        ):
            checkpoint_layers(stack)
        checkpoint_layers(self.image_encoder.body, nn.Sequential)
        if self.text_encoder is not None:
            checkpoint_layers(self.text_encoder.roberta.encoder)


@dataclass
class CostaMemory:
    """What B·T frames offer the decoders: states and positions (0 at words) `[B·T, H·W + L, d]`, which of them count
    `[B·T, H·W + L]`; centres of the cells `[B, H·W, 2]`, and the frames' places in time `[B, T, d]`.
    """

    states: Tensor
    positions: Tensor
    mask: Tensor
    centers: Tensor
    time: Tensor

    def __post_init__(self) -> None:
        self.positioned_states = self.states + self.positions

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centres of the cells: what a box head attends to."""
        count, frames = self.centers.shape[1], self.time.shape[1]
        return (
            self.states[:, :count].float(),
            self.positions[:, :count],
            self.mask[:, :count],
            self.centers.repeat_interleave(frames, 0),
        )


class TemporalDecoder(nn.Module):
    """Temporal boundary prediction, from [CLS] to start and end."""

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.event_query, self.query_mixer = (
            MLP(c.hidden_dim, c.hidden_dim, c.hidden_dim),
            nn.Linear(c.hidden_dim, c.hidden_dim),
        )
        self.layers = nn.ModuleList(TemporalLayer(c) for _ in range(c.num_decoder_layers))
        self.boundary_head, self.presence_head = (
            MLP(c.hidden_dim, c.hidden_dim, 2),
            MLP(c.hidden_dim, c.hidden_dim, 1),
        )

    def forward(self, cls: Tensor, memory: CostaMemory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`[B, T, d]` → logits of first and last `[layers, B, T]`, of attendance `[B, T]`, weights of cells `[layers, B, T, H·W]`."""
        queries = self.query_mixer(self.event_query(cls) + memory.time)  # eq. (2)
        found = []
        for layer in self.layers:
            queries, weights = layer(queries, memory)
            found.append(
                (*self.boundary_head(queries).unbind(-1), weights[..., : memory.centers.shape[1]])
            )
        first, last, heard = (torch.stack(parts) for parts in zip(*found, strict=True))
        return first, last, self.presence_head(queries)[..., 0], heard


class TemporalLayer(nn.Module):
    """Attention between frames, attention to the own frame's tokens, FFN."""

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.frame_attention, self.memory_attention = (
            FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout) for _ in range(2)
        )
        self.feed_forward = FeedForward(c.hidden_dim, c.ffn_dim, c.dropout)

    def forward(self, queries: Tensor, memory: CostaMemory) -> tuple[Tensor, Tensor]:
        """`[B, T, d]` → `[B, T, d]`, and the weights of the own frame's tokens `[B, T, H·W + L]`."""
        queries = self.frame_attention.attend_frames(queries, None)
        queries, weights = self.memory_attention.attend_within_frame(
            queries, None, memory.positioned_states, memory.states, memory.mask
        )
        return self.feed_forward(queries), weights


class SpatialDecoder(nn.Module):
    """Spatial localisation: anchors that every layer moves, by what the event part has become."""

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
        """Event parts and [CLS] `[B, T, d]` → boxes `[layers, B, T, 4]`, their carriers `[layers, B, T, H·W]` and what the cells
        propose `[B, T, H·W, 4]` (empty without).
        """
        shape = event.shape[:2]
        with torch.autocast(
            event.device.type, enabled=False
        ):  # bfloat16 would round boxes to 1/256 of the picture
            anchors = self.initial_anchor(cls.float()).sigmoid()
            cells = None if self.box_head is None else self.box_head.prepare(*memory.cells)
        found = []
        for layer in self.layers:
            event = layer(event, sinusoidal_box(anchors, self.hidden_dim // 2), memory)
            with torch.autocast(event.device.type, enabled=False):
                boxes, carriers = self._update_anchors(event.float(), anchors, cells, memory)
            found.append((boxes, carriers))
            anchors = boxes.detach()
        boxes, carriers = (torch.stack(parts) for parts in zip(*found, strict=True))
        return (
            boxes,
            carriers,
            event.new_zeros(0) if cells is None else cells.boxes.unflatten(0, shape),
        )

    def _update_anchors(
        self, event: Tensor, anchors: Tensor, cells: CellProposals | None, memory: CostaMemory
    ) -> tuple[Tensor, Tensor]:
        """The anchors after a layer `[B, T, 4]`, and which cells carry them `[B, T, H·W]`."""
        if self.box_head is not None and cells is not None:
            boxes, carriers = self.box_head(event.flatten(0, 1), cells)
            return boxes.view_as(anchors), carriers.unflatten(0, anchors.shape[:2])
        assert self.anchor_update is not None
        mask = memory.cells[2].unflatten(0, anchors.shape[:2])
        return (anchors.logit(1e-5) + self.anchor_update(event)).sigmoid(), mask / mask.sum(
            -1, keepdim=True
        )


class SpatialLayer(nn.Module):
    """Figure 5 (b): both parts summed between frames, put together at the own frame's tokens; FFN."""

    def __init__(self, config: CostaConfig) -> None:
        super().__init__()
        c = config
        self.frame_attention = FrameQueryAttention(c.hidden_dim, c.num_heads, c.dropout)
        self.memory_attention, self.norm, self.dropout = (
            PairedAttention(c.hidden_dim, c.num_heads, c.dropout),
            nn.LayerNorm(c.hidden_dim),
            nn.Dropout(c.dropout),
        )
        self.feed_forward = FeedForward(c.hidden_dim, c.ffn_dim, c.dropout)

    def forward(self, event: Tensor, anchors: Tensor, memory: CostaMemory) -> Tensor:
        """Event parts and the anchors' positions `[B, T, d]` → event parts."""
        event = self.frame_attention.attend_frames(event, anchors)
        both = event.flatten(0, 1)[:, None], anchors.flatten(0, 1)[:, None]
        seen = self.memory_attention(
            both, (memory.states, memory.positions), memory.states, memory.mask
        )
        return self.feed_forward(self.norm(event + self.dropout(seen.view_as(event))))
