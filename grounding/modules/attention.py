"""Multi-head attention with torch.nn.MultiheadAttention's parameters, and its weights at another temperature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """softmax(QKᵀ/√d_k)V over `heads` heads. Parameter names and layout are torch.nn.MultiheadAttention's."""

    def __init__(self, d: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """`[n, Q, d]`, `[n, K, d]`, `[n, K, d]` → `[n, Q, d]`. `key_mask` `[n, K]` is True at keys that count."""
        q, k, v = self._project(query, 0), self._project(key, 1), self._project(value, 2)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, key_mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Attention weights `[n, Q, K]`, mean over heads, with the projected query multiplied by `scale`."""
        q, k = self._project(query, 0) * scale, self._project(key, 1)
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None, :], float("-inf"))
        return logits.softmax(-1).mean(1)

    def _project(self, x: Tensor, part: int) -> Tensor:
        """Linear projection number `part` (query, key, value) split into heads: `[n, S, d]` → `[n, heads, S, d/heads]`."""
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return functional.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
