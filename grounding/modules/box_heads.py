"""Two ways from an object query to a box."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grounding.modules.layers import MLP

Boxes = tuple[Tensor, Tensor, Tensor]
"""Boxes `[n, 4]` cxcywh, the weights of the cells that carry them `[n, HW]`, and each cell's own box `[n, HW, 4]`."""


class MLPBoxHead(nn.Module):
    """The paper's head (sec. 3.4): a 3-layer MLP on the query, sigmoid, cxcywh. It leans on MDETR's weights."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mlp = MLP(d, d, d, 4)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor, mask: Tensor, centres: Tensor) -> Boxes:
        """Queries `[n, d]`; the other arguments are the attention head's. Weights are uniform, each cell has the one box."""
        box = self.mlp(queries).sigmoid()
        return box, mask / mask.sum(-1, keepdim=True), box[:, None].expand(-1, mask.shape[-1], -1)


class AttentionBoxHead(nn.Module):
    """Boxes carried by attention over cells (ours): every cell of the memory proposes the box of what lies there,
    and the query says with one more attention which cells it means. It learns from scratch."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(d, d), nn.Linear(d, d)
        self.mlp = MLP(d, d, 4)

    def forward(self, queries: Tensor, memory: Tensor, positions: Tensor, mask: Tensor, centres: Tensor) -> Boxes:
        """Queries `[n, d]`, visual memory `[n, HW, d]`, its sine positions and mask `[n, HW]`, cell centres
        `[n, HW, 2]` in [0, 1]. The box is the mean of the cells' boxes under the attention."""
        logits = torch.einsum("nd,nsd->ns", self.query(queries), self.key(memory + positions)) / queries.shape[-1] ** 0.5
        weight = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        offset, size = self.mlp(memory).split(2, -1)
        cells = torch.cat([centres + 0.5 * offset.tanh(), size.sigmoid()], -1)
        return torch.einsum("ns,nsc->nc", weight, cells), weight, cells
