"""Multi-head attention: with torch.nn.MultiheadAttention's parameters, and its weights at another temperature; and one whose
queries and keys are pairs. A query that is alone costs no projection of its keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """softmax(QKᵀ/√d_k)V over `heads` heads. Parameter names and layout are torch.nn.MultiheadAttention's."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """`[n, Q, d]`, `[n, K, d]`, `[n, K, d]` → `[n, Q, d]`. `key_mask` `[n, K]` is True at keys that count, or holds logits to add."""
        if query.shape[1] == 1:
            return self._attend_single_query(
                _mask_logits(self._is_self_attention(query, key), key_mask), value
            )
        return self._attend(*self._queries_and_keys(query, key), value, key_mask)

    def with_weights(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The same, and attention weights `[n, Q, K]`, mean over heads, of the projected query multiplied by `scale`."""
        if query.shape[1] == 1:
            logits = self._is_self_attention(query, key)
            seen = self._attend_single_query(_mask_logits(logits, key_mask), value)
            return seen, _mask_logits(logits * scale, key_mask).softmax(-1).mean(1, keepdim=True)
        q, k = self._queries_and_keys(query, key)
        logits = q * scale @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if key_mask is not None:
            logits = logits.masked_fill(~key_mask[:, None, None, :], float("-inf"))
        return self._attend(q, k, value, key_mask), logits.softmax(-1).mean(1)

    def _is_self_attention(self, query: Tensor, key: Tensor) -> Tensor:
        """Logits `[n, heads, K]` of the one query of each. It is taken to where the keys come from, rather than all keys to where
        it is: `q·(W_k x + b_k)` is `(W_kᵀq)·x` and what is the same for all keys, which the softmax does not see.
        """
        (q,) = self._project(query, 0, 1)
        _, to_keys, _ = self.in_proj_weight.unflatten(0, (3, self.num_heads, -1))
        asked = torch.einsum("nhe,hed->nhd", q[:, :, 0], to_keys) / q.shape[-1] ** 0.5
        return asked @ key.transpose(1, 2)

    def _attend_single_query(self, logits: Tensor, value: Tensor) -> Tensor:
        """The mix by logits `[n, heads, K]` of values `[n, K, d]`, which are projected when mixed: `[n, 1, d]`."""
        weights = functional.dropout(logits.softmax(-1), self.dropout, self.training)
        to_values, bias = (
            of.unflatten(0, (3, self.num_heads, -1))[2]
            for of in (self.in_proj_weight, self.in_proj_bias)
        )
        mixed = (
            torch.einsum("nhd,hed->nhe", weights @ value, to_values)
            + weights.sum(-1, keepdim=True) * bias
        )
        return self.out_proj(mixed.flatten(1)[:, None])

    def _attend(self, q: Tensor, k: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        mask = None if key_mask is None else key_mask[:, None, None, :]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        (v,) = self._project(value, 2, 3)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _queries_and_keys(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Both projected, by one product where they are the same."""
        if query is key:
            q, k = self._project(query, 0, 2)
        else:
            (q,), (k,) = self._project(query, 0, 1), self._project(key, 1, 2)
        return q, k

    def _project(self, x: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        """Linear projections `first` to `end` (of query, key, value), each split into heads: `[n, S, d]` → `[n, heads, S, d/heads]`."""
        d = x.shape[-1]
        rows = slice(first * d, end * d)
        projected = functional.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return (
            projected.unflatten(-1, (end - first, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
            .unbind()
        )


def balance_text_attention(cells: Tensor, text_tokens: Tensor) -> Tensor:
    """Masks of cells `[n, C]` and of words `[n, L]` as logits to add to a frame's tokens `[n, C + L]`: words get log(cells / words), so
    that all of them begin with as much of the attention as all cells. Without, a dozen words are hardly heard among a hundred cells.
    """
    gain = (cells.sum(-1, keepdim=True) / text_tokens.sum(-1, keepdim=True)).log()
    logits = torch.cat(
        [torch.zeros_like(cells, dtype=gain.dtype), gain.expand(text_tokens.shape)], 1
    )
    return logits.masked_fill(~torch.cat([cells, text_tokens], 1), float("-inf"))


def _mask_logits(logits: Tensor, key_mask: Tensor | None) -> Tensor:
    """Logits `[n, heads, K]` with -inf at keys that do not count, or with the mask's own logits added."""
    if key_mask is None:
        return logits
    return (
        logits + key_mask[:, None]
        if key_mask.is_floating_point()
        else logits.masked_fill(~key_mask[:, None], float("-inf"))
    )


class PairedAttention(nn.Module):
    """Attention of one query that is, as its keys are, two vectors put together in every head, what and where (Conditional DETR): what
    is compared with what, where with where, and both count alike.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_position = (
            nn.Linear(hidden_dim, hidden_dim),
            nn.Linear(hidden_dim, hidden_dim),
        )
        self.key_content, self.key_position = (
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
        )  # softmax would not see a bias
        self.value, self.out = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self,
        query: tuple[Tensor, Tensor],
        key: tuple[Tensor, Tensor],
        value: Tensor,
        key_mask: Tensor,
    ) -> Tensor:
        """Pairs of `[n, 1, d]` and of `[n, K, d]`, values `[n, K, d]` → `[n, 1, d]`. `key_mask` `[n, K]` is True at keys that count.

        The query goes to where keys come from, and values are projected when mixed, as in `Attention`.
        """
        what = self._project_query(self.query_content(query[0]), self.key_content.weight) @ key[
            0
        ].transpose(1, 2)
        where = self._project_query(self.query_position(query[1]), self.key_position.weight) @ key[
            1
        ].transpose(1, 2)
        logits = (what + where) / (2 * value.shape[-1] / self.num_heads) ** 0.5
        weights = functional.dropout(
            _mask_logits(logits, key_mask).softmax(-1), self.dropout, self.training
        )
        mixed = torch.einsum(
            "nhd,hed->nhe", weights @ value, self.value.weight.unflatten(0, (self.num_heads, -1))
        )
        mixed = mixed + weights.sum(-1, keepdim=True) * self.value.bias.unflatten(
            0, (self.num_heads, -1)
        )
        return self.out(mixed.flatten(1)[:, None])

    def _project_query(self, query: Tensor, to_keys: Tensor) -> Tensor:
        """`[n, 1, d]` → by head what all of a key is multiplied with, `[n, heads, d]`."""
        return torch.einsum(
            "nhe,hed->nhd",
            query[:, 0].unflatten(-1, (self.num_heads, -1)),
            to_keys.unflatten(0, (self.num_heads, -1)),
        )
