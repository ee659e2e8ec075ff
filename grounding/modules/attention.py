"""Multi-head attention: a variant of `torch.nn.MultiheadAttention` and a paired attention.

With a single query, logits are computed without a projection of the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention softmax(QKᵀ/√d_k)V.

    Names and layout of the parameters are those of `torch.nn.MultiheadAttention`, so published
    weights load.

    Args:
        hidden_dim: Width d of queries, keys and values.
        num_heads: Number of heads; divides `hidden_dim`.
        dropout: Dropout probability of attention weights.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout

        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
    ) -> Tensor:
        """Attend from queries to keys and return the mixed values.

        Args:
            query: [n, Q, d].
            key: [n, K, d].
            value: [n, K, d].
            key_mask: [n, K], bool (True at valid keys) or float (added to the logits); None if
                all keys are valid.

        Returns:
            [n, Q, d].
        """
        if query.shape[1] == 1:
            logits = self._single_query_logits(query, key)  # [n, heads, K]
            masked = _mask_logits(logits, key_mask)
            return self._attend_single_query(masked, value)

        q, k = self._queries_and_keys(query, key)
        return self._attend(q, k, value, key_mask)

    def with_weights(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Attend as `forward` does and return the attention weights, too.

        Args:
            query: [n, Q, d].
            key: [n, K, d].
            value: [n, K, d].
            key_mask: [n, K], as in `forward`; with Q > 1, bool only.
            scale: Factor of the projected query for the returned weights (an inverse
                temperature). The mixed values do not depend on it.

        Returns:
            mixed: [n, Q, d], the result of `forward`.
            weights: [n, Q, K], mean over heads, without dropout.
        """
        if query.shape[1] == 1:
            logits = self._single_query_logits(query, key)  # [n, heads, K]
            mixed = self._attend_single_query(_mask_logits(logits, key_mask), value)
            scaled = _mask_logits(logits * scale, key_mask)
            weights = scaled.softmax(-1).mean(1, keepdim=True)  # [n, 1, K]
            return mixed, weights

        q, k = self._queries_and_keys(query, key)  # [n, heads, Q, e], [n, heads, K, e]
        scaled = q * scale @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # [n, heads, Q, K]

        if key_mask is not None:
            scaled = scaled.masked_fill(~key_mask[:, None, None, :], float("-inf"))

        weights = scaled.softmax(-1).mean(1)  # [n, Q, K]
        return self._attend(q, k, value, key_mask), weights

    def _single_query_logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return logits `[n, heads, K]` of one query per row.

        The query is projected into the space of the keys: `q·(W_k x + b_k) = (W_kᵀq)·x + q·b_k`.
        The last term is equal for all keys, and softmax ignores it.
        """
        (q,) = self._project(query, 0, 1)  # [n, heads, 1, e]

        projections = self.in_proj_weight.unflatten(0, (3, self.num_heads, -1))
        key_weight = projections[1]  # [heads, e, d]

        projected = torch.einsum("nhe,hed->nhd", q[:, :, 0], key_weight)  # [n, heads, d]
        scaled = projected / q.shape[-1] ** 0.5
        return scaled @ key.transpose(1, 2)

    def _attend_single_query(self, logits: Tensor, value: Tensor) -> Tensor:
        """Mix values `[n, K, d]` by logits `[n, heads, K]`, then project: `[n, 1, d]`."""
        weights = functional.dropout(logits.softmax(-1), self.dropout, self.training)

        weight_parts = self.in_proj_weight.unflatten(0, (3, self.num_heads, -1))
        bias_parts = self.in_proj_bias.unflatten(0, (3, self.num_heads, -1))
        value_weight = weight_parts[2]  # [heads, e, d]
        value_bias = bias_parts[2]  # [heads, e]

        # One projection of the mixed value replaces K projections of the values.
        mixed = weights @ value  # [n, heads, d]
        projected = torch.einsum("nhd,hed->nhe", mixed, value_weight)  # [n, heads, e]

        # Dropout changes the sum of the weights, and with it the share of the bias.
        total = weights.sum(-1, keepdim=True)  # [n, heads, 1]
        head_outputs = projected + total * value_bias
        return self.out_proj(head_outputs.flatten(1)[:, None])

    def _attend(self, q: Tensor, k: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """Attend with projected queries and keys `[n, heads, S, e]`; returns `[n, Q, d]`."""
        mask = None if key_mask is None else key_mask[:, None, None, :]  # [n, 1, 1, K]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)

        dropout = self.dropout if self.training else 0.0
        (v,) = self._project(value, 2, 3)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _queries_and_keys(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Project queries and keys, with one matrix product if both are the same tensor."""
        if query is key:
            q, k = self._project(query, 0, 2)
            return q, k

        (q,) = self._project(query, 0, 1)
        (k,) = self._project(key, 1, 2)
        return q, k

    def _project(self, x: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        """Apply projections `first` to `end` of (query, key, value): `[n, heads, S, e]` each."""
        dim = x.shape[-1]
        rows = slice(first * dim, end * dim)

        projected = functional.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        split = projected.unflatten(-1, (end - first, self.num_heads, -1))  # [n, S, p, heads, e]
        return split.permute(2, 0, 3, 1, 4).unbind()


def balance_text_attention(cells: Tensor, text_tokens: Tensor) -> Tensor:
    """Return attention logits that give all words together the weight of all cells.

    Words get log(cells / words). Without this offset, a dozen words have little influence among a
    hundred cells at the start of training.

    Args:
        cells: [n, C], True at valid cells.
        text_tokens: [n, L], True at valid words.

    Returns:
        [n, C + L], logits to add to the attention of a frame's tokens; −inf at padding.
    """
    num_cells = cells.sum(-1, keepdim=True)  # [n, 1]
    num_words = text_tokens.sum(-1, keepdim=True)  # [n, 1]
    offset = (num_cells / num_words).log()

    cell_logits = torch.zeros_like(cells, dtype=offset.dtype)  # [n, C]
    text_logits = offset.expand(text_tokens.shape)  # [n, L]
    logits = torch.cat([cell_logits, text_logits], 1)

    mask = torch.cat([cells, text_tokens], 1)
    return logits.masked_fill(~mask, float("-inf"))


def _mask_logits(logits: Tensor, key_mask: Tensor | None) -> Tensor:
    """Return logits `[n, heads, K]` with −inf at masked keys, or with the mask's logits added."""
    if key_mask is None:
        return logits

    if key_mask.is_floating_point():
        return logits + key_mask[:, None]

    return logits.masked_fill(~key_mask[:, None], float("-inf"))


class PairedAttention(nn.Module):
    """Attention of one query per row with separate content and position parts (Conditional DETR).

    Contents are compared with contents and positions with positions. Both logits have equal
    weight. This equals a concatenation of both vectors in every head.

    Args:
        hidden_dim: Width d of queries, keys and values.
        num_heads: Number of heads; divides `hidden_dim`.
        dropout: Dropout probability of attention weights.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout

        self.query_content = nn.Linear(hidden_dim, hidden_dim)
        self.query_position = nn.Linear(hidden_dim, hidden_dim)

        # A bias of the keys adds the same to all logits of a query, and softmax ignores it.
        self.key_content = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.key_position = nn.Linear(hidden_dim, hidden_dim, bias=False)

        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self,
        query: tuple[Tensor, Tensor],
        key: tuple[Tensor, Tensor],
        value: Tensor,
        key_mask: Tensor,
    ) -> Tensor:
        """Attend from one query per row to the keys.

        As in `Attention`, the query is projected into the space of the keys, and values are
        projected after mixing.

        Args:
            query: Content and position, [n, 1, d] each.
            key: Content and position, [n, K, d] each.
            value: [n, K, d].
            key_mask: [n, K], True at valid keys.

        Returns:
            [n, 1, d].
        """
        query_content, query_position = query
        key_content, key_position = key

        # Project each part of the query into the space of the keys: [n, heads, d].
        content = self._project_query(self.query_content(query_content), self.key_content.weight)
        content_logits = content @ key_content.transpose(1, 2)  # [n, heads, K]

        position = self._project_query(
            self.query_position(query_position), self.key_position.weight
        )
        position_logits = position @ key_position.transpose(1, 2)  # [n, heads, K]

        # A head compares two vectors of d / heads numbers each.
        head_dim = 2 * value.shape[-1] / self.num_heads
        logits = (content_logits + position_logits) / head_dim**0.5

        probabilities = _mask_logits(logits, key_mask).softmax(-1)
        weights = functional.dropout(probabilities, self.dropout, self.training)

        # Mix the values first, then project the mix of each head.
        value_weight = self.value.weight.unflatten(0, (self.num_heads, -1))  # [heads, e, d]
        value_bias = self.value.bias.unflatten(0, (self.num_heads, -1))  # [heads, e]
        mixed = weights @ value  # [n, heads, d]
        projected = torch.einsum("nhd,hed->nhe", mixed, value_weight)  # [n, heads, e]

        # Dropout changes the sum of the weights, and with it the share of the bias.
        total = weights.sum(-1, keepdim=True)  # [n, heads, 1]
        head_outputs = projected + total * value_bias
        return self.out(head_outputs.flatten(1)[:, None])

    def _project_query(self, query: Tensor, key_weight: Tensor) -> Tensor:
        """Project queries `[n, 1, d]` into the space of the keys, by head: `[n, heads, d]`."""
        query_heads = query[:, 0].unflatten(-1, (self.num_heads, -1))  # [n, heads, e]
        weight_heads = key_weight.unflatten(0, (self.num_heads, -1))  # [heads, e, d]
        return torch.einsum("nhe,hed->nhd", query_heads, weight_heads)
