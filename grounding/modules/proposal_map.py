"""The 2-D proposal map and its convolutions (CSDVL eq. (3); 2D-TAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def build_proposal_map(clips: Tensor) -> Tensor:
    """Clip features `[B, T, d]` → `[B, T, T, d]`: cell (i, j) is the mean of clips i..j, 0 where i > j."""
    count = clips.shape[1]
    sums = functional.pad(clips.float().cumsum(1), (0, 0, 1, 0))
    index = torch.arange(count, device=clips.device)
    length = (index[None, :] - index[:, None] + 1).clamp(min=1)
    means = (sums[:, None, 1:] - sums[:, :-1, None]) / length[..., None]
    return (means * valid_proposal_mask(count, clips.device)[..., None]).to(clips.dtype)


def valid_proposal_mask(count: int, device: torch.device | None = None) -> Tensor:
    """`[T, T]`, True where i ≤ j."""
    return torch.ones(count, count, dtype=torch.bool, device=device).triu()


def proposal_iou_map(span_positions: Tensor, count: int) -> Tensor:
    """Temporal IoU of every proposal `[i/T, (j+1)/T)` with spans `[B, 2]` in τ → `[B, T, T]`; 0 where i > j."""
    edges = torch.arange(count + 1, device=span_positions.device) / count
    begin, end = edges[:-1, None], edges[None, 1:]
    first, last = span_positions[:, 0, None, None], span_positions[:, 1, None, None]
    overlap = (torch.minimum(end, last) - torch.maximum(begin, first)).clamp(min=0)
    union = (end - begin).clamp(min=0) + (last - first) - overlap
    return overlap / union.clamp(min=1e-9) * valid_proposal_mask(count, span_positions.device)


class ProposalHead(nn.Module):
    """Clip features → matching logits of all proposals: FC, proposal map, convolutions, one logit per cell.

    After each convolution values are divided by the share of valid cells under the kernel, so that cells at the
    border of the triangle are not dimmed. (2D-TAN divides by their number: the same functions, with weights kernel²
    times larger.)
    """

    def __init__(self, hidden_dim: int, channels: int, kernel: int, layers: int) -> None:
        super().__init__()
        self.kernel, self.residual_projection = kernel, nn.Linear(hidden_dim, channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2) for _ in range(layers)
        )
        self.score = nn.Conv2d(channels, 1, 1)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, clips: Tensor) -> Tensor:
        """`[B, T, d]` → logits `[B, T, T]`; cells with i > j hold no meaning."""
        x = (
            build_proposal_map(self.residual_projection(clips)).permute(0, 3, 1, 2).contiguous()
        )  # as the weights are: or each step turns all of them around
        valid = valid_proposal_mask(clips.shape[1], clips.device).to(x.dtype)[None, None]
        window = torch.ones(1, 1, self.kernel, self.kernel, dtype=x.dtype, device=x.device)
        beneath = functional.conv2d(valid, window, padding=self.kernel // 2)
        for conv in self.convs:
            x = functional.relu(conv(x) * (valid * self.kernel**2 / beneath.clamp(min=1)))
        return self.score(x)[:, 0]
