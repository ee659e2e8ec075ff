"""CSDVL: Collaborative Static and Dynamic Vision-Language Streams for Spatio-Temporal Video Grounding (CVPR 2023).

A static stream finds what the sentence names in single frames (encoder and decoder as DETR's, one object query per
frame); a dynamic stream finds when the described event happens in clips (STCMT). After each of their layers a
collaboration block passes where the object is from static to dynamic (eq. (2)) and what moves where from dynamic to
static. Heads: a box per frame, a score per frame and clip, a score for every proposal `[i/T_d, (j+1)/T_d)`.

Where the paper leaves things open:
- Eq. (1) prints `Q_l = W_l^v H_l`; it means W_l^q. Attention is multi-head with an output projection everywhere.
- Eq. (2)'s A is a second softmax of the decoder's cross-attention with its projected query × α, over the H·W visual
  and L text tokens, visual part without renormalising, mean over heads; gradients flow through it (`detach_guide`
  stops them). It is about 1/HW: `guide_gain=cells` multiplies it by H·W, which a network trained from scratch in
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
from grounding.modules.alignment import clip_index, frames_to_clips, into_square, square_cells
from grounding.modules.attention import Attention
from grounding.modules.box_heads import AttentionBoxHead, MLPBoxHead
from grounding.modules.box_ops import whole_pictures
from grounding.modules.layers import MLP, EncoderLayer, FeedForward, as_computed
from grounding.modules.position_encoding import map_cells, sine_2d, sine_time
from grounding.modules.proposal_map import ProposalHead
from grounding.structures.inputs import Inputs
from grounding.structures.span_scores import Proposals

Collaboration = Literal["full", "none", "s2d", "d2s", "sum", "fc_sum", "concat_fc"]


class CsdvlConfig(TransformerConfig):
    """Everything that shapes the network; the defaults are the paper's for HC-STVG."""

    motion: ClassVar[str] = "motion"
    """The product that motion maps come from."""
    pictures: ClassVar[bool] = False
    """It is given maps."""

    layers: int = Field(default=6, ge=1)
    frames: int = Field(default=48, ge=1)
    clips: int = Field(default=16, ge=1)
    alpha: float = Field(default=0.1, gt=0)
    guide_gain: Literal["one", "cells"] = "one"
    detach_guide: bool = False
    collaboration: Collaboration = "full"
    query_mixing: bool = True
    streams: Literal["both", "dynamic"] = "both"
    dynamic_space: bool = True
    text_pools_space: bool = True
    mask_padding: bool = True
    box_head: Literal["mlp", "attention"] = "mlp"
    clip_pool: Literal["mean", "attention"] = "mean"
    map_channels: int = Field(default=512, ge=1)
    map_kernel: int = Field(default=5, ge=1)
    map_layers: int = Field(default=8, ge=0)

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> CsdvlConfig:
        if self.map_kernel % 2 == 0:
            raise ValueError(f"map_kernel must be odd, not {self.map_kernel}")
        return self


@dataclass
class Outputs:
    """What the network answers."""

    boxes: Tensor
    """`[layers, B, T_s, 4]` cxcywh in [0, 1] after every layer; the last is the prediction."""
    proposals: Tensor
    """Logits `[B, T_d, T_d]`, valid where i ≤ j."""
    frame_scores: Tensor
    """Logits `[B, T_s]`."""
    clip_scores: Tensor
    """Logits `[B, T_d]`."""
    guides: Tensor
    """A of eq. (2) on the frames' own cells, after every layer, `[layers, B, T_s, H, W]`."""
    carriers: Tensor
    """Which cells carry the box (`box_head=attention`), after every layer, `[layers, B, T_s, H, W]`; sums to 1 over cells.
    With `box_head=mlp` uniform."""
    cell_boxes: Tensor
    """The box each cell proposes (`box_head=attention`), `[B, T_s, H·W, 4]` cxcywh; empty with `box_head=mlp`."""
    cell_centres: Tensor
    """`[B, H·W, 2]` (x, y) of the cells in [0, 1]."""
    heard: Tensor
    """How each clip's cells are weighed into its feature F_d, `[B, T_d, S]`; sums to 1 over cells."""
    heard_centres: Tensor
    """`[B, S, 2]` (x, y) of the motion cells as shares of the picture."""

    def when(self) -> list[Proposals]:
        """What it says of when, query by query."""
        return [Proposals(map) for map in self.proposals.detach().double().sigmoid().cpu().numpy()]


class Csdvl(nn.Module):
    """The whole network. `dims` are the channels of the stored (appearance, motion, text) features."""

    def __init__(self, dims: tuple[int, int, int], config: CsdvlConfig) -> None:
        super().__init__()
        c = config
        self.streams, self.alpha, self.gain = c.streams, c.alpha, c.guide_gain
        self.detach_guide, self.dynamic_space, self.mask_padding = (
            c.detach_guide,
            c.dynamic_space,
            c.mask_padding,
        )
        self.project_appearance = nn.Linear(dims[0], c.d)
        self.project_motion = nn.Linear(dims[1], c.d)
        self.project_text = nn.Sequential(
            nn.Linear(dims[2], c.d), nn.LayerNorm(c.d, eps=1e-12), nn.Dropout(c.dropout)
        )
        if c.streams == "both":
            self.encoder = nn.ModuleList(
                EncoderLayer(c.d, c.heads, c.ffn, c.dropout) for _ in range(c.layers)
            )
            self.decoder = nn.ModuleList(
                StaticDecoderLayer(c.d, c.heads, c.ffn, c.dropout) for _ in range(c.layers)
            )
            self.collaboration = nn.ModuleList(collaboration_block(c) for _ in range(c.layers))
            self.object_query = nn.Parameter(torch.randn(c.d))
            self.decoder_norm = nn.LayerNorm(c.d)
            self.box_head = MLPBoxHead(c.d) if c.box_head == "mlp" else AttentionBoxHead(c.d)
            self.frame_head = nn.Linear(c.d, 1)
        self.dynamic = nn.ModuleList(
            DynamicLayer(c.d, c.heads, c.ffn, c.dropout, c.text_pools_space)
            for _ in range(c.layers)
        )
        self.listen = nn.Linear(c.d, 1) if c.clip_pool == "attention" else None
        self.proposal_head = ProposalHead(c.d, c.map_channels, c.map_kernel, c.map_layers)
        self.clip_head = MLP(c.d, c.d, c.d, 1)

    def forward(self, inputs: Inputs) -> Outputs:
        text, text_mask = self.project_text(as_computed(inputs.text)), inputs.text_mask
        place = Places.of(inputs, text.shape[-1], self.mask_padding)
        clips = inputs.by_query(
            self.project_motion(as_computed(inputs.motion.flatten(2, 3)[:, :, place.kept]))
        )
        if not self.dynamic_space:
            clips, place = place.mean(clips)[:, :, None], place.without_space()
        words, boxes, carried, guides = text, [], [], []
        if self.streams == "both":
            memory = self.encode(inputs, text, place)
            queries = torch.zeros_like(memory.states[:, :1])
            with torch.autocast(text.device.type, enabled=False):
                cells = self.box_head.look(*memory.cells)
        for index, layer in enumerate(self.dynamic):
            clips, words = layer(clips, words, text_mask, place)
            if self.streams == "both":
                queries, guide = self.decoder[index](queries, self.object_query, memory, self.alpha)
                guide = memory.visual(guide[:, 0])
                guides.append(guide)
                gain = place.map_size.prod(-1)[:, None, None, None] if self.gain == "cells" else 1.0
                weight = (guide.detach() if self.detach_guide else guide) * gain
                own = queries[:, 0].unflatten(0, inputs.frame_tau.shape)
                clips, own = self.collaboration[index](clips, own, weight, place)
                queries = own.flatten(0, 1)[:, None]
                with torch.autocast(
                    queries.device.type, enabled=False
                ):  # bfloat16 would round boxes to 1/256 of the picture
                    box, carriers = self.box_head(self.decoder_norm(queries[:, 0].float()), cells)
                boxes.append(box.unflatten(0, inputs.frame_tau.shape))
                carried.append(memory.visual(carriers))
        heard = place.heard(self.listen(clips)[..., 0] if self.listen else None, clips.shape[1])
        pooled = torch.einsum("btsd,bts->btd", clips, heard.to(clips.dtype))
        frame_scores = (
            self.frame_head(self.decoder_norm(own))[..., 0]
            if boxes
            else torch.zeros_like(inputs.frame_tau)
        )
        return Outputs(
            boxes=torch.stack(boxes) if boxes else whole_pictures(inputs.frame_tau)[None],
            proposals=self.proposal_head(pooled),
            frame_scores=frame_scores,
            clip_scores=self.clip_head(pooled)[..., 0],
            guides=torch.stack(guides) if guides else torch.zeros(0),
            carriers=torch.stack(carried) if carried else torch.zeros(0),
            cell_boxes=cells.boxes.unflatten(0, inputs.frame_tau.shape)
            if boxes and len(cells.boxes)
            else torch.zeros(0),
            cell_centres=place.cell_centres,
            heard=heard,
            heard_centres=place.space_centres,
        )

    def encode(self, inputs: Inputs, text: Tensor, place: Places) -> Memory:
        """Cross-modal encoder: per frame `[H·W visual ; L text]` tokens (sec. 3.1)."""
        batch, frames = inputs.frame_tau.shape
        visual = inputs.by_query(
            self.project_appearance(as_computed(inputs.appearance)).flatten(2, 3)
        )
        states = torch.cat([visual, text[:, None].expand(-1, frames, -1, -1)], 2).flatten(0, 1)
        positions = torch.cat([place.cell_positions, torch.zeros_like(text)], 1)
        mask = torch.cat([place.cell_mask, inputs.text_mask], 1)
        memory = Memory(
            states,
            positions.repeat_interleave(frames, 0),
            mask.repeat_interleave(frames, 0),
            place.cell_centres,
            (batch, frames, *inputs.appearance.shape[2:4]),
        )
        for layer in self.encoder:
            memory.states = layer(memory.states, memory.positions, memory.mask)
        return memory


@dataclass
class Memory:
    """The static stream's memory of B·T_s frames: states and sine positions `[B·T_s, H·W + L, d]`, mask `[B·T_s, H·W + L]`."""

    states: Tensor
    positions: Tensor
    mask: Tensor
    centres: Tensor
    shape: tuple[int, int, int, int]

    def visual(self, weights: Tensor) -> Tensor:
        """The visual part of weights over tokens, `[B·T_s, H·W + L]` → `[B, T_s, H, W]`."""
        _, _, rows, columns = self.shape
        return weights[:, : rows * columns].reshape(self.shape)

    @cached_property
    def placed(self) -> Tensor:
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
            self.centres,
        )


@dataclass
class Places:
    """Where everything lies: sine positions, masks and the maps between the streams' space and time."""

    cell_positions: Tensor
    """Appearance cells, `[B, H·W, d]`."""
    cell_mask: Tensor
    """`[B, H·W]`, False at batch padding."""
    cell_centres: Tensor
    """`[B, H·W, 2]` as shares of the picture."""
    kept: Tensor
    """`[S]`: the motion cells (of h·w) that are picture in any query of the batch; the others are left out."""
    space: Tensor
    """Kept motion cells, `[B, S, d]`."""
    space_mask: Tensor
    """`[B, S]`, False at padding of the square."""
    space_centres: Tensor
    """`[B, S, 2]` as shares of the picture."""
    time: Tensor
    """Clips, `[1, T_d, d]`."""
    frame_time: Tensor
    """Frames, `[B, T_s, d]`."""
    clip_of_frame: Tensor
    """`[B, T_s]`."""
    frames_of_clip: Tensor
    """Averaging matrix `[B, T_d, T_s]`."""
    map_size: Tensor
    square: Tensor
    motion_shape: tuple[int, int]

    @classmethod
    def of(cls, inputs: Inputs, d: int, mask_padding: bool) -> Places:
        rows, columns = inputs.appearance.shape[2:4]
        clips, height, width = inputs.motion.shape[1:4]
        device = inputs.motion.device
        map_size, square = inputs.by_query(inputs.map_size), inputs.by_query(inputs.square)
        positions, mask, middles = map_cells(map_size, rows, columns, d)
        corners, centres, inside = (
            part.flatten(1, 2) for part in square_cells(square, height, width)
        )
        if not mask_padding:
            inside = torch.ones_like(inside)
        kept = inside.any(0).nonzero()[:, 0]
        middle = (torch.arange(clips, device=device) + 0.5) / clips
        return cls(
            cell_positions=positions,
            cell_mask=mask,
            cell_centres=middles,
            kept=kept,
            space=sine_2d(corners[:, kept], d),
            space_mask=inside[:, kept],
            space_centres=centres[:, kept],
            time=sine_time(middle, d)[None],
            frame_time=sine_time(inputs.frame_tau, d),
            clip_of_frame=clip_index(inputs.frame_tau, clips),
            frames_of_clip=frames_to_clips(inputs.frame_tau, clips),
            map_size=map_size,
            square=square,
            motion_shape=(height, width),
        )

    def without_space(self) -> Places:
        """The same places for motion maps of a single cell (ablation "w/o spatial", Table 4)."""
        middle = torch.full_like(self.space_centres[:, :1], 0.5)
        mask = torch.ones_like(self.space_mask[:, :1])
        return replace(
            self,
            space=torch.zeros_like(self.space[:, :1]),
            space_mask=mask,
            space_centres=middle,
            motion_shape=(1, 1),
        )

    def mean(self, clips: Tensor) -> Tensor:
        """Spatial mean over cells that are picture, `[B, T_d, S, d]` → `[B, T_d, d]`."""
        return torch.einsum(
            "btsd,bts->btd", clips, self.heard(None, clips.shape[1]).to(clips.dtype)
        )

    def heard(self, logits: Tensor | None, clips: int) -> Tensor:
        """Weights over the cells of each clip, `[B, T_d, S]`: the softmax of logits `[B, T_d, S]`, or uniform without."""
        if logits is None:
            return (self.space_mask / self.space_mask.sum(-1, keepdim=True))[:, None].expand(
                -1, clips, -1
            )
        return logits.masked_fill(~self.space_mask[:, None], float("-inf")).softmax(-1)

    def guide(self, weights: Tensor) -> Tensor:
        """A on the motion cells: placed, resized, averaged over each clip's frames; `[B, T_s, H, W]` → `[B, T_d, S, 1]`."""
        rows, columns = self.motion_shape
        if (rows, columns) == (1, 1):
            placed = (weights.sum((2, 3)) / self.map_size.prod(-1, keepdim=True))[..., None]
        else:
            placed = into_square(weights, self.map_size, self.square, rows, columns).flatten(2)[
                ..., self.kept
            ]
        return torch.einsum("bkt,bts->bks", self.frames_of_clip, placed)[..., None]

    def clips_at_frames(self, clips: Tensor) -> Tensor:
        """Each frame's clip, `[B, T_d, …]` → `[B, T_s, …]` (temporal replication)."""
        return clips[torch.arange(len(clips), device=clips.device)[:, None], self.clip_of_frame]


class StaticDecoderLayer(nn.Module):
    """DETR's decoder layer for one object query per frame. Self-attention sees that single query: it mixes no frames."""

    def __init__(self, d: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(d, heads, dropout), Attention(d, heads, dropout)
        self.norm_self, self.norm_cross, self.dropout = (
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Dropout(dropout),
        )
        self.feed_forward = FeedForward(d, ffn, dropout)

    def forward(
        self, queries: Tensor, position: Tensor, memory: Memory, alpha: float
    ) -> tuple[Tensor, Tensor]:
        """Queries `[B·T_s, 1, d]`, their learned position `[d]` → queries and A over all tokens `[B·T_s, 1, H·W + L]`."""
        placed = queries + position
        queries = self.norm_self(queries + self.dropout(self.self_attn(placed, placed, queries)))
        placed, keys = queries + position, memory.placed
        seen, guide = self.cross_attn.with_weights(
            placed, keys, memory.states, memory.mask, scale=alpha
        )
        queries = self.norm_cross(queries + self.dropout(seen))
        return self.feed_forward(queries), guide


class DynamicLayer(nn.Module):
    """One layer of the space-time cross-modal transformer (sec. 3.2, Figure 3 (b))."""

    def __init__(
        self, d: int, heads: int, ffn: int, dropout: float, text_pools_space: bool
    ) -> None:
        super().__init__()
        self.text_pools_space = text_pools_space
        names = ("time", "space", "words", "to_words", "to_clips")
        self.attend = nn.ModuleDict({name: Attention(d, heads, dropout) for name in names})
        self.norm = nn.ModuleDict({name: nn.LayerNorm(d) for name in names})
        self.dropout = nn.Dropout(dropout)
        self.clips_ffn, self.words_ffn = FeedForward(d, ffn, dropout), FeedForward(d, ffn, dropout)

    def forward(
        self, clips: Tensor, words: Tensor, text_mask: Tensor, place: Places
    ) -> tuple[Tensor, Tensor]:
        """Clips `[B, T_d, S, d]` and words `[B, L, d]` → the same shapes."""
        batch, count, cells, d = clips.shape
        # divided attention: the same cell over time, then the cells of one clip
        over_time = clips.transpose(1, 2).reshape(batch * cells, count, d)
        over_time = self._step("time", over_time, over_time, over_time, place.time)
        x = (
            over_time.reshape(batch, cells, count, d)
            .transpose(1, 2)
            .reshape(batch * count, cells, d)
        )
        space, space_mask = (
            place.space.repeat_interleave(count, 0),
            place.space_mask.repeat_interleave(count, 0),
        )
        x = self._step("space", x, x, x, space, space_mask).reshape(batch, count * cells, d)
        words = self._step("words", words, words, words, None, text_mask)
        # eq. (1), both directions from the states before it
        if self.text_pools_space:
            seen, seen_mask, at = place.mean(x.reshape(clips.shape)), None, place.time
        else:
            seen, seen_mask = x, place.space_mask.repeat(1, count)
            at = (place.time[:, :, None] + place.space[:, None]).flatten(1, 2)
        asked = self.attend["to_words"](x, words, words, text_mask)
        told = self.attend["to_clips"](words, seen + at, seen, seen_mask)
        x = self.norm["to_words"](x + self.dropout(asked))
        words = self.norm["to_clips"](words + self.dropout(told))
        return self.clips_ffn(x).reshape(clips.shape), self.words_ffn(words)

    def _step(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        at: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`LN(x + SA(x))` with positions on queries and keys."""
        placed = query if at is None else query + at
        return self.norm[name](query + self.dropout(self.attend[name](placed, placed, value, mask)))


def collaboration_block(config: CsdvlConfig) -> nn.Module:
    """The block after each pair of layers (sec. 3.3), or what Table 5 puts in its place."""
    if config.collaboration in ("sum", "fc_sum", "concat_fc"):
        return SymmetricCollaboration(config.d, config.collaboration)
    directions = {
        "full": (True, True),
        "none": (False, False),
        "s2d": (True, False),
        "d2s": (False, True),
    }
    to_dynamic, to_static = directions[config.collaboration]
    return Collaborate(
        config.d, config.heads, config.dropout, to_dynamic, to_static, config.query_mixing
    )


class Collaborate(nn.Module):
    """Cross-stream collaboration (sec. 3.3, Figure 4). Both directions read the states before the block."""

    def __init__(
        self,
        d: int,
        heads: int,
        dropout: float,
        to_dynamic: bool,
        to_static: bool,
        query_mixing: bool,
    ) -> None:
        super().__init__()
        self.to_dynamic, self.to_static, self.query_mixing = to_dynamic, to_static, query_mixing
        self.dropout = nn.Dropout(dropout)
        if to_dynamic:
            self.guided, self.norm_guided = nn.Linear(d, d), nn.LayerNorm(d)
        if to_static:
            self.ask, self.norm_ask = Attention(d, heads, dropout), nn.LayerNorm(d)
            if query_mixing:
                self.mix, self.norm_mix = Attention(d, heads, dropout), nn.LayerNorm(d)

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, place: Places
    ) -> tuple[Tensor, Tensor]:
        """F `[B, T_d, S, d]`, O `[B, T_s, d]`, A `[B, T_s, H, W]` → new F and O."""
        told = self._dynamic_to_static(clips, queries, place) if self.to_static else queries
        if self.to_dynamic:
            clips = self.norm_guided(clips + place.guide(weights) * self.guided(clips))
        return clips, told

    def _dynamic_to_static(self, clips: Tensor, queries: Tensor, place: Places) -> Tensor:
        batch, frames, d = queries.shape
        seen = place.clips_at_frames(clips + place.space[:, None]).flatten(0, 1)
        mask = place.space_mask.repeat_interleave(frames, 0)
        asked = self.ask(queries.reshape(batch * frames, 1, d), seen, seen, mask).reshape(
            batch, frames, d
        )
        queries = self.norm_ask(queries + self.dropout(asked))
        if self.query_mixing:
            placed = queries + place.frame_time
            queries = self.norm_mix(queries + self.dropout(self.mix(placed, placed, queries)))
        return queries


class SymmetricCollaboration(nn.Module):
    """Table 5's symmetric exchanges: each stream takes in the other, aligned in time, spread over or averaged over space."""

    def __init__(self, d: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        width = 2 * d if kind == "concat_fc" else d
        if kind != "sum":
            self.into_dynamic, self.into_static = nn.Linear(width, d), nn.Linear(width, d)

    def forward(
        self, clips: Tensor, queries: Tensor, weights: Tensor, place: Places
    ) -> tuple[Tensor, Tensor]:
        """F `[B, T_d, S, d]`, O `[B, T_s, d]` → new F and O; A is not used."""
        spread = torch.einsum("bkt,btd->bkd", place.frames_of_clip, queries)[:, :, None].expand_as(
            clips
        )
        pooled = place.clips_at_frames(place.mean(clips))
        if self.kind == "sum":
            return clips + spread, queries + pooled
        if self.kind == "fc_sum":
            return clips + self.into_dynamic(spread), queries + self.into_static(pooled)
        return self.into_dynamic(torch.cat([clips, spread], -1)), self.into_static(
            torch.cat([queries, pooled], -1)
        )
