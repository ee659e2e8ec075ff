"""Two ways from an object query to a box. What a head takes from the memory is the same for all layers: it is made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.modules.layers import MLP


@dataclass(frozen=True)
class CellProposals:
    """What n frames' cells offer: which of them count `[n, HW]`; with the attention head also keys `[n, HW, d]` and the box
    each proposes, `[n, HW, 4]` cxcywh.
    """

    mask: Tensor
    keys: Tensor
    boxes: Tensor


class MLPBoxHead(nn.Module):
    """The paper's head (sec. 3.4): a 3-layer MLP on the query, sigmoid, cxcywh. It leans on MDETR's weights."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden_dim, hidden_dim, hidden_dim, 4)

    def prepare(
        self, memory: Tensor, positions: Tensor, mask: Tensor, centers: Tensor
    ) -> CellProposals:
        """Nothing is taken from the cells: keys and boxes are empty."""
        return CellProposals(mask, memory.new_zeros(0), memory.new_zeros(0))

    def forward(self, queries: Tensor, cells: CellProposals) -> tuple[Tensor, Tensor]:
        """Queries `[n, d]` → boxes `[n, 4]` cxcywh, and uniform weights `[n, HW]`."""
        return self.mlp(queries).sigmoid(), cells.mask / cells.mask.sum(-1, keepdim=True)


class AttentionBoxHead(nn.Module):
    """Boxes carried by attention over cells (ours): every cell of the memory proposes the box of what lies there,
    and the query says with one more attention which cells it means. It learns from scratch.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.mlp = MLP(hidden_dim, hidden_dim, 4)

    def prepare(
        self, memory: Tensor, positions: Tensor, mask: Tensor, centers: Tensor
    ) -> CellProposals:
        """Visual memory `[n, HW, d]`, mask `[n, HW]`; its sine positions `[m, HW, d]` and cell centres `[m, HW, 2]` in [0, 1], of
        the n frames or of their m queries.
        """
        positions, centers = (
            part.repeat_interleave(len(memory) // len(part), 0) for part in (positions, centers)
        )
        offset, size = self.mlp(memory).split(2, -1)
        return CellProposals(
            mask,
            self.key(memory + positions),
            torch.cat([centers + 0.5 * offset.tanh(), size.sigmoid()], -1),
        )

    def forward(self, queries: Tensor, cells: CellProposals) -> tuple[Tensor, Tensor]:
        """Queries `[n, d]` → boxes `[n, 4]` cxcywh, the mean of the cells' boxes under the attention `[n, HW]`, which comes too."""
        logits = (
            torch.einsum("nd,nsd->ns", self.query(queries), cells.keys) / queries.shape[-1] ** 0.5
        )
        weight = logits.masked_fill(~cells.mask, float("-inf")).softmax(-1)
        return torch.einsum("ns,nsc->nc", weight, cells.boxes), weight
