"""Layers that systems share, each post-norm where it is residual: the transformer's FFN, DETR's MLP and encoder layer."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from grounding.modules.attention import Attention


class FeedForward(nn.Module):
    """`LN(x + W₂·dropout(relu(W₁x)))`, the post-norm FFN of a transformer layer; `[…, d]` → `[…, d]`."""

    def __init__(self, d: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d, inner), nn.Linear(inner, d)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(d)

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

    def __init__(self, d: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn, self.norm, self.dropout = Attention(d, heads, dropout), nn.LayerNorm(d), nn.Dropout(dropout)
        self.feed_forward = FeedForward(d, ffn, dropout)

    def forward(self, x: Tensor, positions: Tensor | None, mask: Tensor) -> Tensor:
        """Tokens `[n, S, d]`, positions alike (added to queries and keys) or None, mask `[n, S]` → `[n, S, d]`."""
        placed = x if positions is None else x + positions
        return self.feed_forward(self.norm(x + self.dropout(self.self_attn(placed, placed, x, mask))))
