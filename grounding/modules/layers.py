"""Layers that several systems share; all residual layers are post-norm."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.modules.attention import Attention


class FeedForward(nn.Module):
    """The feed-forward block of a transformer layer, `LN(x + W₂·dropout(relu(W₁x)))`.

    Args:
        hidden_dim: Width d of input and output.
        ffn_dim: Width of the hidden layer.
        dropout: Dropout probability of the hidden layer and of the residual branch.
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x` [..., d]; returns [..., d]."""
        hidden = self.dropout(functional.relu(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(hidden)))


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        *widths: Widths of the input, of every hidden layer, and of the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

        for in_features, out_features in pairwise(widths):
            self.layers.append(nn.Linear(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to `x` [..., widths[0]]; returns [..., widths[-1]]."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))

        return self.layers[-1](x)


class EncoderLayer(nn.Module):
    """DETR's encoder layer, post-norm: self-attention over a frame's tokens, then feed-forward.

    Args:
        hidden_dim: Width d of the tokens.
        num_heads: Number of attention heads.
        ffn_dim: Width of the feed-forward block's hidden layer.
        dropout: Dropout probability of attention weights and residual branches.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_dim, num_heads, dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, dropout)

    def forward(self, x: Tensor, positions: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply the layer.

        Args:
            x: [n, S, d], visual and text tokens of n frames.
            positions: [n, S, d], added to queries and keys; None without positions.
            mask: [n, S], bool (True at valid tokens) or float (logits); None if all are valid.

        Returns:
            [n, S, d].
        """
        # Queries and keys are the same tensor: `Attention` projects both with one product.
        queries = x if positions is None else x + positions

        attended = self.self_attn(queries, queries, x, mask)
        normed = self.norm(x + self.dropout(attended))
        return self.feed_forward(normed)


class FrameQueryAttention(nn.Module):
    """A post-norm attention block of one query per frame, `LN(x + Attention(x, …))`.

    Args:
        hidden_dim: Width d of queries, keys and values.
        num_heads: Number of attention heads.
        dropout: Dropout probability of attention weights and of the residual branch.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden_dim, num_heads, dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def attend_frames(self, queries: Tensor, positions: Tensor | None) -> Tensor:
        """Attend from every frame's query to the queries of all frames.

        Args:
            queries: [B, T, d].
            positions: [B, T, d], added to queries and keys; None without positions.

        Returns:
            [B, T, d].
        """
        positioned = queries if positions is None else queries + positions
        attended = self.attention(positioned, positioned, queries)
        return self.norm(queries + self.dropout(attended))

    def attend_within_frame(
        self, queries: Tensor, positions: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend from every frame's query to the tokens of the same frame.

        Args:
            queries: [B, T, d].
            positions: [B, T, d], added to the queries; None without positions.
            keys: [B·T, S, d], keys of the tokens of each frame.
            values: [B·T, S, d], values of the tokens of each frame.
            mask: [B·T, S], bool (True at valid tokens) or float (logits).

        Returns:
            queries: [B, T, d], the updated queries.
            weights: [B, T, S], attention weights, mean over heads.
        """
        batch, frames, dim = queries.shape
        positioned = queries if positions is None else queries + positions

        # One row per frame, with a single query each.
        frame_queries = positioned.reshape(batch * frames, 1, dim)
        attended, weights = self.attention.with_weights(frame_queries, keys, values, mask)

        residual = self.dropout(attended.reshape(batch, frames, dim))
        updated = self.norm(queries + residual)
        return updated, weights.reshape(batch, frames, -1)


def to_compute_dtype(features: Tensor) -> Tensor:
    """Return features in a dtype that a network's first layer accepts.

    Autocast casts inputs by itself. Without autocast, half-precision features become float32. With
    autocast, features stay as they are, so no float32 copy is made.

    Args:
        features: Cached features of any float dtype.

    Returns:
        The features, float32 without autocast.
    """
    if torch.is_autocast_enabled(features.device.type):
        return features

    return features.float()
