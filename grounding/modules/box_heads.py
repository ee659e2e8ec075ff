"""Box heads: two modules that turn one object query per frame into a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.modules.layers import MLP


@dataclass(frozen=True)
class CellProposals:
    """Inputs of a box head from the cells of n frames.

    All decoder layers share the proposals, so `prepare` builds them once.

    Attributes:
        mask: [n, H·W], True at valid cells.
        keys: [n, H·W, d] with the attention head, else empty.
        boxes: [n, H·W, 4], the cxcywh box of each cell with the attention head, else empty.
    """

    mask: Tensor
    keys: Tensor
    boxes: Tensor


class MLPBoxHead(nn.Module):
    """The paper's box head (sec. 3.4): a 3-layer MLP on the query, sigmoid, cxcywh.

    The head depends on MDETR's pretrained weights.

    Args:
        hidden_dim: Width d of the queries.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(hidden_dim, hidden_dim, hidden_dim, 4)

    def prepare(
        self, memory: Tensor, positions: Tensor, mask: Tensor, centers: Tensor
    ) -> CellProposals:
        """Return proposals with empty keys and boxes: the head ignores the cells.

        Args:
            memory: [n, H·W, d], visual memory.
            positions: [m, H·W, d], sine positions; ignored.
            mask: [n, H·W], True at valid cells.
            centers: [m, H·W, 2], cell centers; ignored.

        Returns:
            The mask alone.
        """
        return CellProposals(mask, memory.new_zeros(0), memory.new_zeros(0))

    def forward(self, queries: Tensor, cells: CellProposals) -> tuple[Tensor, Tensor]:
        """Predict one box per query.

        Args:
            queries: [n, d].
            cells: The result of `prepare`.

        Returns:
            boxes: [n, 4], cxcywh in [0, 1].
            weights: [n, H·W], uniform over valid cells.
        """
        boxes = self.mlp(queries).sigmoid()
        uniform = cells.mask / cells.mask.sum(-1, keepdim=True)
        return boxes, uniform


class AttentionBoxHead(nn.Module):
    """A box head that averages the boxes of all cells under attention (not in the paper).

    Each cell of the memory proposes a box. One more attention of the query weights the cells. The
    head learns without pretrained weights.

    Args:
        hidden_dim: Width d of queries and memory.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim)
        self.mlp = MLP(hidden_dim, hidden_dim, 4)

    def prepare(
        self, memory: Tensor, positions: Tensor, mask: Tensor, centers: Tensor
    ) -> CellProposals:
        """Compute the keys and the box proposals of all cells.

        Args:
            memory: [n, H·W, d], visual memory of n frames.
            positions: [m, H·W, d], sine positions of the n frames (m = n) or of their m queries.
            mask: [n, H·W], True at valid cells.
            centers: [m, H·W, 2], cell centers (x, y) in [0, 1], for the same m.

        Returns:
            Mask, keys and boxes of the n frames.
        """
        # Frames of one query share positions and centers.
        frame_positions = positions.repeat_interleave(len(memory) // len(positions), 0)
        frame_centers = centers.repeat_interleave(len(memory) // len(centers), 0)

        offset, size = self.mlp(memory).split(2, -1)  # [n, H·W, 2] each
        keys = self.key(memory + frame_positions)  # [n, H·W, d]

        # A box center lies at most half the picture away from its cell.
        box_centers = frame_centers + 0.5 * offset.tanh()
        boxes = torch.cat([box_centers, size.sigmoid()], -1)  # [n, H·W, 4]

        return CellProposals(mask, keys, boxes)

    def forward(self, queries: Tensor, cells: CellProposals) -> tuple[Tensor, Tensor]:
        """Predict one box per query: the mean of the cells' boxes under the attention.

        Args:
            queries: [n, d].
            cells: The result of `prepare`.

        Returns:
            boxes: [n, 4], cxcywh in [0, 1].
            weights: [n, H·W], attention over cells; sums to 1.
        """
        products = torch.einsum("nd,nsd->ns", self.query(queries), cells.keys)  # [n, H·W]
        logits = products / queries.shape[-1] ** 0.5

        weights = logits.masked_fill(~cells.mask, float("-inf")).softmax(-1)
        boxes = torch.einsum("ns,nsc->nc", weights, cells.boxes)
        return boxes, weights
