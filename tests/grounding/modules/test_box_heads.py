"""The two ways from a query to a box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grounding.modules.box_heads import AttentionBoxHead, MLPBoxHead

D, CELLS = 8, 6
Cells = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def cells() -> Cells:
    """Memory `[3, 6, 8]`, positions, mask (the last two cells of row 1 do not count), centres."""
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(3, CELLS, dtype=torch.bool)
    mask[1, 4:] = False
    memory, positions = (torch.randn(3, CELLS, D, generator=random) for _ in range(2))
    return memory, positions, mask, torch.rand(3, CELLS, 2, generator=random)


@pytest.mark.parametrize("head", [MLPBoxHead, AttentionBoxHead])
def test_boxes_and_weights_have_their_shapes(
    head: type[MLPBoxHead] | type[AttentionBoxHead], cells: Cells
) -> None:
    torch.manual_seed(0)
    box_head = head(D)
    proposals = box_head.prepare(*cells)
    boxes, weights = box_head(torch.randn(3, D), proposals)
    assert boxes.shape == (3, 4)
    assert proposals.boxes.shape == ((3, CELLS, 4) if head is AttentionBoxHead else (0,))
    if head is AttentionBoxHead:
        torch.testing.assert_close(torch.einsum("ns,nsc->nc", weights, proposals.boxes), boxes)
    assert weights.shape == (3, CELLS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert (weights[~cells[2]] == 0).all()
    assert ((boxes[:, 2:] > 0) & (boxes[:, 2:] < 1)).all()


def test_the_paper_s_head_looks_at_the_query_only(cells: Cells) -> None:
    head, queries = MLPBoxHead(D), torch.randn(3, D)
    boxes, weights = head(queries, head.prepare(*cells))
    torch.testing.assert_close(boxes, head.mlp(queries).sigmoid())
    torch.testing.assert_close(weights[1], torch.tensor([0.25] * 4 + [0.0] * 2))


def one_hot(head: AttentionBoxHead, cell: int) -> tuple[Tensor, Tensor]:
    """A query and positions that put all attention on one cell, whatever the memory: the key's
    first channel is 1000 there.
    """
    for layer in (head.query, head.key):
        torch.nn.init.zeros_(layer.bias)
        torch.nn.init.eye_(layer.weight)
    positions = torch.zeros(1, CELLS, D)
    positions[0, cell, 0] = 1000
    return torch.eye(D)[:1], positions


@pytest.mark.parametrize("cell", [0, 3, 5])
def test_attention_on_one_cell_gives_that_cell_s_box(cells: Cells, cell: int) -> None:
    torch.manual_seed(1)
    head = AttentionBoxHead(D)
    query, positions = one_hot(head, cell)
    memory, _, mask, centres = (part[:1] for part in cells)
    proposals = head.prepare(memory, positions, mask, centres)
    boxes, weights = head(query, proposals)
    torch.testing.assert_close(proposals.boxes[0, cell], boxes[0])
    offset, size = head.mlp(memory[0, cell]).split(2)
    torch.testing.assert_close(weights[0], torch.eye(CELLS)[cell])
    torch.testing.assert_close(
        boxes[0], torch.cat([centres[0, cell] + 0.5 * offset.tanh(), size.sigmoid()])
    )


def test_attention_on_two_cells_gives_the_mean_of_their_boxes(cells: Cells) -> None:
    torch.manual_seed(1)
    head = AttentionBoxHead(D)
    query, positions = one_hot(head, 0)
    positions[0, 4] = positions[0, 0]
    memory, _, mask, centres = (part[:1] for part in cells)
    memory = memory.clone()
    memory[0, 4, 0] = memory[0, 0, 0]
    box = head(query, head.prepare(memory, positions, mask, centres))[0]
    alone = [
        head(query, head.prepare(memory, one_hot(head, cell)[1], mask, centres))[0]
        for cell in (0, 4)
    ]
    torch.testing.assert_close(box, (alone[0] + alone[1]) / 2)


def test_masked_cells_change_no_box(cells: Cells) -> None:
    torch.manual_seed(1)
    head, queries = AttentionBoxHead(D), torch.randn(3, D)
    memory, positions, mask, centres = cells
    changed = torch.where(mask[..., None], memory, 50.0)
    torch.testing.assert_close(
        head(queries, head.prepare(changed, positions, mask, centres))[0],
        head(queries, head.prepare(*cells))[0],
    )
