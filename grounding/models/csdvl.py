"""CSDVL: Collaborative Static and Dynamic Vision-Language Streams for Spatio-Temporal Video Grounding (CVPR 2023).

A static stream finds what the sentence names in single frames (encoder and decoder as DETR's, one object query per
frame); a dynamic stream finds when the described event happens in clips (STCMT). After each of their layers a
collaboration block passes where the object is from static to dynamic (eq. (2)) and what moves where from dynamic to
static. Heads: a box per frame, a score per frame and clip, a score for every proposal `[i/T_d, (j+1)/T_d)`.

Where the paper leaves things open:
- Eq. (1) prints `Q_l = W_l^v H_l`; it means W_l^q. Attention is multi-head with an output projection everywhere.
- Eq. (2)'s A is a second softmax of the decoder's cross-attention with its projected query × α, over the H·W visual
  and L text tokens, visual part without renormalising, mean over heads; gradients flow through it (`detach_guidance`
  stops them). It is about 1/HW: `guidance_scale=num_cells` multiplies it by H·W, which a network trained from scratch in
  minutes needs; `one` is the paper's.
- Motion cells that are padding of the square are masked in attention and means (`mask_padding`).
- Fixed sine positions everywhere. A motion cell's position is where it lies in the *picture*, so that both streams
  speak of the same place, and the dynamic → static attention reads values that carry it: a query can learn where.
- `box_head=mlp` is the paper's. From scratch it learns next to nothing in minutes; `attention` does.
- `clip_pool=mean` is the paper's spatial mean of F. An object covers a few of the cells, so the mean buries what it
  does, and from scratch the time loss does not move for hundreds of steps; `attention` learns which cells to hear.
- sum / fc_sum / concat_fc (Table 5) have no layer norm of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from grounding.models.config import TransformerConfig
from grounding.modules.alignment import (
    frame_clip_indices,
    frames_to_clips_matrix,
    square_cell_coordinates,
    to_square_grid,
)
from grounding.modules.attention import Attention
from grounding.modules.box_heads import AttentionBoxHead, MLPBoxHead
from grounding.modules.box_ops import full_frame_boxes
from grounding.modules.layers import MLP, EncoderLayer, FeedForward, to_compute_dtype
from grounding.modules.position_encoding import cell_positions, sinusoidal_2d, sinusoidal_time
from grounding.modules.proposal_map import ProposalHead
from grounding.structures.inputs import ModelInputs
from grounding.structures.span_scores import ProposalPrediction

CollaborationKind = Literal["full", "none", "s2d", "d2s", "sum", "fc_sum", "concat_fc"]


class CsdvlConfig(TransformerConfig):
    """Everything that shapes the network; the defaults are the paper's for HC-STVG."""

    motion_product: ClassVar[str] = "motion"
    """The product that motion maps come from."""
    uses_images: ClassVar[bool] = False
    """It is given maps."""

    num_layers: int = Field(default=6, ge=1)
    num_frames: int = Field(default=48, ge=1)
    num_clips: int = Field(default=16, ge=1)
    alpha: float = Field(default=0.1, gt=0)
    guidance_scale: Literal["none", "num_cells"] = "none"
    detach_guidance: bool = False
    collaboration: CollaborationKind = "full"
    query_self_attention: bool = True
    streams: Literal["both", "dynamic"] = "both"
    dynamic_spatial_tokens: bool = True
    text_attends_pooled_clips: bool = True
    mask_padding: bool = True
    box_head: Literal["mlp", "attention"] = "mlp"
    clip_pooling: Literal["mean", "attention"] = "mean"
    proposal_map_channels: int = Field(default=512, ge=1)
    proposal_map_kernel: int = Field(default=5, ge=1)
    proposal_map_layers: int = Field(default=8, ge=0)

    @model_validator(mode="after")
    def _check_kernel_is_odd(self) -> CsdvlConfig:
        if self.proposal_map_kernel % 2 == 0:
            raise ValueError(f"proposal_map_kernel must be odd, not {self.proposal_map_kernel}")
        return self


@dataclass
class CsdvlOutputs:
    """What the network answers."""

    boxes: Tensor
    """`[layers, B, T_s, 4]` cxcywh in [0, 1] after every layer; the last is the prediction."""
    proposal_logits: Tensor
    """Logits `[B, T_d, T_d]`, valid where i ≤ j."""
    frame_logits: Tensor
    """Logits `[B, T_s]`."""
    clip_logits: Tensor
    """Logits `[B, T_d]`."""
    guidance: Tensor
    """A of eq. (2) on the frames' own cells, after every layer, `[layers, B, T_s, H, W]`."""
    box_attention: Tensor
    """Which cells carry the box (`box_head=attention`), after every layer, `[layers, B, T_s, H, W]`; sums to 1 over cells.
    With `box_head=mlp` uniform."""
    cell_boxes: Tensor
    """The box each cell proposes (`box_head=attention`), `[B, T_s, H·W, 4]` cxcywh; empty with `box_head=mlp`."""
    cell_centers: Tensor
    """`[B, H·W, 2]` (x, y) of the cells in [0, 1]."""
    temporal_attention: Tensor
    """How each clip's cells are weighed into its feature F_d, `[B, T_d, S]`; sums to 1 over cells."""
    temporal_cell_centers: Tensor
    """`[B, S, 2]` (x, y) of the motion cells as shares of the picture."""

    def span_predictions(self) -> list[ProposalPrediction]:
        """What it says of when, query by query."""
        return [
            ProposalPrediction(map)
            for map in self.proposal_logits.detach().double().sigmoid().cpu().numpy()
        ]


class Csdvl(nn.Module):
    """The whole network. `dims` are the channels of the stored (appearance, motion, text) features."""

    def __init__(self, dims: tuple[int, int, int], config: CsdvlConfig) -> None:
        super().__init__()
        c = config
        self.streams, self.alpha, self.guidance_scale = c.streams, c.alpha, c.guidance_scale
        self.detach_guidance, self.dynamic_spatial_tokens, self.mask_padding = (
            c.detach_guidance,
            c.dynamic_spatial_tokens,
            c.mask_padding,
        )
        self.project_appearance = nn.Linear(dims[0], c.hidden_dim)
        self.project_motion = nn.Linear(dims[1], c.hidden_dim)
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.hidden_dim),
            nn.LayerNorm(c.hidden_dim, eps=1e-12),
            nn.Dropout(c.dropout),
        )
        if c.streams == "both":
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
        self.dynamic_layers = nn.ModuleList(
            DynamicLayer(
                c.hidden_dim, c.num_heads, c.ffn_dim, c.dropout, c.text_attends_pooled_clips
            )
            for _ in range(c.num_layers)
        )
        self.clip_attention = nn.Linear(c.hidden_dim, 1) if c.clip_pooling == "attention" else None
        self.proposal_head = ProposalHead(
            c.hidden_dim, c.proposal_map_channels, c.proposal_map_kernel, c.proposal_map_layers
        )
        self.clip_head = MLP(c.hidden_dim, c.hidden_dim, c.hidden_dim, 1)

    def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
        text, text_mask = self.project_text(to_compute_dtype(inputs.text)), inputs.text_mask
        place = TokenGeometry.from_inputs(inputs, text.shape[-1], self.mask_padding)
        clips = inputs.expand_to_queries(
            self.project_motion(
                to_compute_dtype(inputs.motion.flatten(2, 3)[:, :, place.motion_cell_indices])
            )
        )
        if not self.dynamic_spatial_tokens:
            clips, place = place.mean_pool(clips)[:, :, None], place.without_space()
        words, boxes, carried, guides = text, [], [], []
        if self.streams == "both":
            memory = self.encode(inputs, text, place)
            queries = torch.zeros_like(memory.states[:, :1])
            with torch.autocast(text.device.type, enabled=False):
                cells = self.box_head.prepare(*memory.cells)
        for index, layer in enumerate(self.dynamic_layers):
            clips, words = layer(clips, words, text_mask, place)
            if self.streams == "both":
                queries, guide = self.decoder[index](queries, self.object_query, memory, self.alpha)
                guide = memory.visual_weights(guide[:, 0])
                guides.append(guide)
                gain = (
                    place.map_size.prod(-1)[:, None, None, None]
                    if self.guidance_scale == "num_cells"
                    else 1.0
                )
                weight = (guide.detach() if self.detach_guidance else guide) * gain
                own = queries[:, 0].unflatten(0, inputs.frame_positions.shape)
                clips, own = self.collaboration[index](clips, own, weight, place)
                queries = own.flatten(0, 1)[:, None]
                with torch.autocast(
                    queries.device.type, enabled=False
                ):  # bfloat16 would round boxes to 1/256 of the picture
                    box, carriers = self.box_head(self.decoder_norm(queries[:, 0].float()), cells)
                boxes.append(box.unflatten(0, inputs.frame_positions.shape))
                carried.append(memory.visual_weights(carriers))
        heard = place.pool_weights(
            self.clip_attention(clips)[..., 0] if self.clip_attention else None, clips.shape[1]
        )
        pooled = torch.einsum("btsd,bts->btd", clips, heard.to(clips.dtype))
        frame_scores = (
            self.frame_head(self.decoder_norm(own))[..., 0]
            if boxes
            else torch.zeros_like(inputs.frame_positions)
        )
        return CsdvlOutputs(
            boxes=torch.stack(boxes) if boxes else full_frame_boxes(inputs.frame_positions)[None],
            proposal_logits=self.proposal_head(pooled),
            frame_logits=frame_scores,
            clip_logits=self.clip_head(pooled)[..., 0],
            guidance=torch.stack(guides) if guides else torch.zeros(0),
            box_attention=torch.stack(carried) if carried else torch.zeros(0),
            cell_boxes=cells.boxes.unflatten(0, inputs.frame_positions.shape)
            if boxes and len(cells.boxes)
            else torch.zeros(0),
            cell_centers=place.cell_centers,
            temporal_attention=heard,
            temporal_cell_centers=place.motion_cell_centers,
        )

    def encode(self, inputs: ModelInputs, text: Tensor, geometry: TokenGeometry) -> CsdvlMemory:
        """Cross-modal encoder: per frame `[H·W visual ; L text]` tokens (sec. 3.1)."""
        batch, frames = inputs.frame_positions.shape
        visual = inputs.expand_to_queries(
            self.project_appearance(to_compute_dtype(inputs.appearance)).flatten(2, 3)
        )
        states = torch.cat([visual, text[:, None].expand(-1, frames, -1, -1)], 2).flatten(0, 1)
        positions = torch.cat([geometry.cell_positions, torch.zeros_like(text)], 1)
        mask = torch.cat([geometry.cell_mask, inputs.text_mask], 1)
        memory = CsdvlMemory(
            states,
            positions.repeat_interleave(frames, 0),
            mask.repeat_interleave(frames, 0),
            geometry.cell_centers,
            (batch, frames, *inputs.appearance.shape[2:4]),
        )
        for layer in self.encoder:
            memory.states = layer(memory.states, memory.positions, memory.mask)
        return memory


@dataclass
class CsdvlMemory:
    """The static stream's memory of B·T_s frames: states and sine positions `[B·T_s, H·W + L, d]`, mask `[B·T_s, H·W + L]`."""

    states: Tensor
    positions: Tensor
    mask: Tensor
    centers: Tensor
    shape: tuple[int, int, int, int]

    def visual_weights(self, weights: Tensor) -> Tensor:
        """The visual part of weights over tokens, `[B·T_s, H·W + L]` → `[B, T_s, H, W]`."""
        _, _, rows, columns = self.shape
        return weights[:, : rows * columns].reshape(self.shape)

    @cached_property
    def positioned_states(self) -> Tensor:
        """The states with their positions: what a decoder layer's attention compares with. Only once they are final."""
        return self.states + self.positions

    @property
    def cells(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States, positions, mask and centres of the visual tokens: what a box head attends to."""
        count = self.shape[2] * self.shape[3]
        return (
            self.states[:, :count].float(),
            self.positions[:, :count],
            self.mask[:, :count],
            self.centers,
        )


@dataclass
class TokenGeometry:
    """Where everything lies: sine positions, masks and the maps between the streams' space and time."""

    cell_positions: Tensor
    """Appearance cells, `[B, H·W, d]`."""
    cell_mask: Tensor
    """`[B, H·W]`, False at batch padding."""
    cell_centers: Tensor
    """`[B, H·W, 2]` as shares of the picture."""
    motion_cell_indices: Tensor
    """`[S]`: the motion cells (of h·w) that are picture in any query of the batch; the others are left out."""
    motion_cell_positions: Tensor
    """Kept motion cells, `[B, S, d]`."""
    motion_cell_mask: Tensor
    """`[B, S]`, False at padding of the square."""
    motion_cell_centers: Tensor
    """`[B, S, 2]` as shares of the picture."""
    clip_positions: Tensor
    """Clips, `[1, T_d, d]`."""
    frame_time_positions: Tensor
    """Frames, `[B, T_s, d]`."""
    clip_of_frame: Tensor
    """`[B, T_s]`."""
    frames_to_clips_matrix: Tensor
    """Averaging matrix `[B, T_d, T_s]`."""
    map_size: Tensor
    picture_in_square: Tensor
    motion_shape: tuple[int, int]

    @classmethod
    def from_inputs(cls, inputs: ModelInputs, hidden_dim: int, mask_padding: bool) -> TokenGeometry:
        rows, columns = inputs.appearance.shape[2:4]
        clips, height, width = inputs.motion.shape[1:4]
        device = inputs.motion.device
        map_size, square = (
            inputs.expand_to_queries(inputs.map_size),
            inputs.expand_to_queries(inputs.picture_in_square),
        )
        positions, mask, middles = cell_positions(map_size, rows, columns, hidden_dim)
        corners, centres, inside = (
            part.flatten(1, 2) for part in square_cell_coordinates(square, height, width)
        )
        if not mask_padding:
            inside = torch.ones_like(inside)
        kept = inside.any(0).nonzero()[:, 0]
        middle = (torch.arange(clips, device=device) + 0.5) / clips
        return cls(
            cell_positions=positions,
            cell_mask=mask,
            cell_centers=middles,
            motion_cell_indices=kept,
            motion_cell_positions=sinusoidal_2d(corners[:, kept], hidden_dim),
            motion_cell_mask=inside[:, kept],
            motion_cell_centers=centres[:, kept],
            clip_positions=sinusoidal_time(middle, hidden_dim)[None],
            frame_time_positions=sinusoidal_time(inputs.frame_positions, hidden_dim),
            clip_of_frame=frame_clip_indices(inputs.frame_positions, clips),
            frames_to_clips_matrix=frames_to_clips_matrix(inputs.frame_positions, clips),
            map_size=map_size,
            picture_in_square=square,
            motion_shape=(height, width),
        )

    def without_space(self) -> TokenGeometry:
        """The same places for motion maps of a single cell (ablation "w/o spatial", Table 4)."""
        middle = torch.full_like(self.motion_cell_centers[:, :1], 0.5)
        mask = torch.ones_like(self.motion_cell_mask[:, :1])
        return replace(
            self,
            motion_cell_positions=torch.zeros_like(self.motion_cell_positions[:, :1]),
            motion_cell_mask=mask,
            motion_cell_centers=middle,
            motion_shape=(1, 1),
        )

    def mean_pool(self, clips: Tensor) -> Tensor:
        """Spatial mean over cells that are picture, `[B, T_d, S, d]` → `[B, T_d, d]`."""
        return torch.einsum(
            "btsd,bts->btd", clips, self.pool_weights(None, clips.shape[1]).to(clips.dtype)
        )

    def pool_weights(self, logits: Tensor | None, clips: int) -> Tensor:
        """Weights over the cells of each clip, `[B, T_d, S]`: the softmax of logits `[B, T_d, S]`, or uniform without."""
        if logits is None:
            return (self.motion_cell_mask / self.motion_cell_mask.sum(-1, keepdim=True))[
                :, None
            ].expand(-1, clips, -1)
        return logits.masked_fill(~self.motion_cell_mask[:, None], float("-inf")).softmax(-1)

    def map_guidance(self, weights: Tensor) -> Tensor:
        """A on the motion cells: placed, resized, averaged over each clip's frames; `[B, T_s, H, W]` → `[B, T_d, S, 1]`."""
        rows, columns = self.motion_shape
        if (rows, columns) == (1, 1):
            placed = (weights.sum((2, 3)) / self.map_size.prod(-1, keepdim=True))[..., None]
        else:
            placed = to_square_grid(
                weights, self.map_size, self.picture_in_square, rows, columns
            ).flatten(2)[..., self.motion_cell_indices]
        return torch.einsum("bkt,bts->bks", self.frames_to_clips_matrix, placed)[..., None]

    def clips_at_frames(self, clips: Tensor) -> Tensor:
        """Each frame's clip, `[B, T_d, …]` → `[B, T_s, …]` (temporal replication)."""
        return clips[torch.arange(len(clips), device=clips.device)[:, None], self.clip_of_frame]


class StaticDecoderLayer(nn.Module):
    """DETR's decoder layer for one object query per frame. Self-attention sees that single query: it mixes no frames."""

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = (
            Attention(hidden_dim, num_heads, dropout),
            Attention(hidden_dim, num_heads, dropout),
        )
        self.norm_self, self.norm_cross, self.dropout = (
            nn.LayerNorm(hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.Dropout(dropout),
        )
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, dropout)

    def forward(
        self, queries: Tensor, position: Tensor, memory: CsdvlMemory, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Queries `[B·T_s, 1, d]`, their learned position `[d]` → queries and A over all tokens `[B·T_s, 1, H·W + L]`."""
        placed = queries + position
        queries = self.norm_self(queries + self.dropout(self.self_attn(placed, placed, queries)))
        placed, keys = queries + position, memory.positioned_states
        seen, guide = self.cross_attn.with_weights(
            placed, keys, memory.states, memory.mask, scale=alpha
        )
        queries = self.norm_cross(queries + self.dropout(seen))
        return self.feed_forward(queries), guide


class DynamicLayer(nn.Module):
    """One layer of the space-time cross-modal transformer (sec. 3.2, Figure 3 (b))."""

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
        names = ("time", "space", "words", "to_words", "to_clips")
        self.attend = nn.ModuleDict(
            {name: Attention(hidden_dim, num_heads, dropout) for name in names}
        )
        self.norm = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in names})
        self.dropout = nn.Dropout(dropout)
        self.clips_ffn, self.text_ffn = (
            FeedForward(hidden_dim, ffn_dim, dropout),
            FeedForward(hidden_dim, ffn_dim, dropout),
        )

    def forward(
        self, clips: Tensor, text: Tensor, text_mask: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """Clips `[B, T_d, S, d]` and words `[B, L, d]` → the same shapes."""
        batch, count, cells, d = clips.shape
        # divided attention: the same cell over time, then the cells of one clip
        over_time = clips.transpose(1, 2).reshape(batch * cells, count, d)
        over_time = self._attend("time", over_time, over_time, over_time, geometry.clip_positions)
        x = (
            over_time.reshape(batch, cells, count, d)
            .transpose(1, 2)
            .reshape(batch * count, cells, d)
        )
        space, space_mask = (
            geometry.motion_cell_positions.repeat_interleave(count, 0),
            geometry.motion_cell_mask.repeat_interleave(count, 0),
        )
        x = self._attend("space", x, x, x, space, space_mask).reshape(batch, count * cells, d)
        text = self._attend("words", text, text, text, None, text_mask)
        # eq. (1), both directions from the states before it
        if self.text_attends_pooled_clips:
            seen, seen_mask, at = (
                geometry.mean_pool(x.reshape(clips.shape)),
                None,
                geometry.clip_positions,
            )
        else:
            seen, seen_mask = x, geometry.motion_cell_mask.repeat(1, count)
            at = (
                geometry.clip_positions[:, :, None] + geometry.motion_cell_positions[:, None]
            ).flatten(1, 2)
        asked = self.attend["to_words"](x, text, text, text_mask)
        told = self.attend["to_clips"](text, seen + at, seen, seen_mask)
        x = self.norm["to_words"](x + self.dropout(asked))
        text = self.norm["to_clips"](text + self.dropout(told))
        return self.clips_ffn(x).reshape(clips.shape), self.text_ffn(text)

    def _attend(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_positions: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`LN(x + SA(x))` with positions on queries and keys."""
        placed = query if query_positions is None else query + query_positions
        return self.norm[name](query + self.dropout(self.attend[name](placed, placed, value, mask)))


def build_collaboration(config: CsdvlConfig) -> nn.Module:
    """The block after each pair of layers (sec. 3.3), or what Table 5 puts in its place."""
    if config.collaboration in ("sum", "fc_sum", "concat_fc"):
        return SymmetricCollaboration(config.hidden_dim, config.collaboration)
    directions = {
        "full": (True, True),
        "none": (False, False),
        "s2d": (True, False),
        "d2s": (False, True),
    }
    to_dynamic, to_static = directions[config.collaboration]
    return CrossStreamCollaboration(
        config.hidden_dim,
        config.num_heads,
        config.dropout,
        to_dynamic,
        to_static,
        config.query_self_attention,
    )


class CrossStreamCollaboration(nn.Module):
    """Cross-stream collaboration (sec. 3.3, Figure 4). Both directions read the states before the block."""

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
        self.to_dynamic, self.to_static, self.query_self_attention = (
            to_dynamic,
            to_static,
            query_self_attention,
        )
        self.dropout = nn.Dropout(dropout)
        if to_dynamic:
            self.guidance_projection, self.norm_guidance = (
                nn.Linear(hidden_dim, hidden_dim),
                nn.LayerNorm(hidden_dim),
            )
        if to_static:
            self.clip_attention, self.norm_clip_attention = (
                Attention(hidden_dim, num_heads, dropout),
                nn.LayerNorm(hidden_dim),
            )
            if query_self_attention:
                self.query_attention, self.norm_query_attention = (
                    Attention(hidden_dim, num_heads, dropout),
                    nn.LayerNorm(hidden_dim),
                )

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """F `[B, T_d, S, d]`, O `[B, T_s, d]`, A `[B, T_s, H, W]` → new F and O."""
        told = self._dynamic_to_static(clips, queries, geometry) if self.to_static else queries
        if self.to_dynamic:
            clips = self.norm_guidance(
                clips + geometry.map_guidance(weights) * self.guidance_projection(clips)
            )
        return clips, told

    def _dynamic_to_static(self, clips: Tensor, queries: Tensor, geometry: TokenGeometry) -> Tensor:
        batch, frames, d = queries.shape
        seen = geometry.clips_at_frames(clips + geometry.motion_cell_positions[:, None]).flatten(
            0, 1
        )
        mask = geometry.motion_cell_mask.repeat_interleave(frames, 0)
        asked = self.clip_attention(
            queries.reshape(batch * frames, 1, d), seen, seen, mask
        ).reshape(batch, frames, d)
        queries = self.norm_clip_attention(queries + self.dropout(asked))
        if self.query_self_attention:
            placed = queries + geometry.frame_time_positions
            queries = self.norm_query_attention(
                queries + self.dropout(self.query_attention(placed, placed, queries))
            )
        return queries


class SymmetricCollaboration(nn.Module):
    """Table 5's symmetric exchanges: each stream takes in the other, aligned in time, spread over or averaged over space."""

    def __init__(self, hidden_dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        width = 2 * hidden_dim if kind == "concat_fc" else hidden_dim
        if kind != "sum":
            self.dynamic_fusion, self.static_fusion = (
                nn.Linear(width, hidden_dim),
                nn.Linear(width, hidden_dim),
            )

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, geometry: TokenGeometry
    ) -> tuple[Tensor, Tensor]:
        """F `[B, T_d, S, d]`, O `[B, T_s, d]` → new F and O; A is not used."""
        spread = torch.einsum("bkt,btd->bkd", geometry.frames_to_clips_matrix, queries)[
            :, :, None
        ].expand_as(clips)
        pooled = geometry.clips_at_frames(geometry.mean_pool(clips))
        if self.kind == "sum":
            return clips + spread, queries + pooled
        if self.kind == "fc_sum":
            return clips + self.dynamic_fusion(spread), queries + self.static_fusion(pooled)
        return self.dynamic_fusion(torch.cat([clips, spread], -1)), self.static_fusion(
            torch.cat([queries, pooled], -1)
        )
