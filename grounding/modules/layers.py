"""Layers that systems share, each post-norm where it is residual: the transformer's FFN, DETR's MLP and encoder layer, and
the attentions of a decoder with one query per frame.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.modules.attention import Attention


class FeedForward(nn.Module):
    """`LN(x + W₂·dropout(relu(W₁x)))`, the post-norm FFN of a transformer layer; `[…, d]` → `[…, d]`."""

    def __init__(self, hidden_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(hidden_dim, ffn_dim), nn.Linear(ffn_dim, hidden_dim)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(functional.relu(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(inner)))


class MLP(nn.Module):
    """Linear layers with ReLU between them; `[…, widths[0]]` → `[…, widths[-1]]`."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class EncoderLayer(nn.Module):
    """DETR's encoder layer, post-norm: self-attention over a frame's visual and text tokens, FFN."""

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.norm, self.dropout = (
            Attention(hidden_dim, num_heads, dropout),
            nn.LayerNorm(hidden_dim),
            nn.Dropout(dropout),
        )
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, dropout)

    def forward(self, x: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """Tokens `[n, S, d]`, positions alike (added to queries and keys) or None, mask `[n, S]` (or logits) or None → `[n, S, d]`."""
        placed = x if positions is None else x + positions
        return self.feed_forward(
            self.norm(x + self.dropout(self.self_attn(placed, placed, x, mask)))
        )


class FrameQueryAttention(nn.Module):
    """A post-norm attention of one query per frame, `LN(x + Attention(x, …))`."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden_dim, num_heads, dropout)
        self.norm, self.dropout = nn.LayerNorm(hidden_dim), nn.Dropout(dropout)

    def attend_frames(self, queries: Tensor, positions: Tensor | None) -> Tensor:
        """The queries of all frames at each other, `[B, T, d]`, with positions alike or None."""
        placed = queries if positions is None else queries + positions
        return self.norm(queries + self.dropout(self.attention(placed, placed, queries)))

    def attend_within_frame(
        self, queries: Tensor, positions: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each query `[B, T, d]` at its own frame's tokens: keys and values `[B·T, S, d]`, mask `[B·T, S]`. Gives the attention
        weights too, `[B, T, S]`.
        """
        batch, frames, d = queries.shape
        asking = (queries if positions is None else queries + positions).reshape(
            batch * frames, 1, d
        )
        seen, weights = self.attention.with_weights(asking, keys, values, mask)
        return self.norm(queries + self.dropout(seen.reshape(batch, frames, d))), weights.reshape(
            batch, frames, -1
        )


def to_compute_dtype(features: Tensor) -> Tensor:
    """Features as a network's first layer takes them: autocast casts by itself, without a float32 copy in between."""
    return features if torch.is_autocast_enabled(features.device.type) else features.float()
