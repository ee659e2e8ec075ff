"""The 2-D proposal map and its convolutions (CSDVL eq. (3); 2D-TAN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def build_proposal_map(clips: Tensor) -> Tensor:
    """Return the mean feature of every proposal.

    Args:
        clips: [B, T, d], clip features.

    Returns:
        [B, T, T, d]; cell (i, j) is the mean of clips i to j (inclusive), 0 where i > j.
    """
    count = clips.shape[1]

    # Prefix sums in float32: the sum of clips i..j is sums[j + 1] − sums[i].
    sums = functional.pad(clips.float().cumsum(1), (0, 0, 1, 0))  # [B, T + 1, d]
    span_sums = sums[:, None, 1:] - sums[:, :-1, None]  # [B, T, T, d]

    # Lengths j − i + 1; the clamp avoids a division by zero where i > j.
    index = torch.arange(count, device=clips.device)
    length = (index[None, :] - index[:, None] + 1).clamp(min=1)  # [T, T]
    means = span_sums / length[..., None]

    valid = valid_proposal_mask(count, clips.device)
    return (means * valid[..., None]).to(clips.dtype)


def valid_proposal_mask(count: int, device: torch.device | None = None) -> Tensor:
    """Return the mask of valid proposals.

    Args:
        count: Number of clips T.
        device: Device of the result; None for the default device.

    Returns:
        [T, T], True where i ≤ j.
    """
    return torch.ones(count, count, dtype=torch.bool, device=device).triu()


def proposal_iou_map(span_positions: Tensor, count: int) -> Tensor:
    """Return the temporal IoU of every proposal `[i/T, (j+1)/T)` with given spans.

    Args:
        span_positions: [B, 2], begin and end of the spans in τ.
        count: Number of clips T.

    Returns:
        [B, T, T], 0 where i > j.
    """
    edges = torch.arange(count + 1, device=span_positions.device) / count  # [T + 1]
    begin = edges[:-1, None]  # [T, 1]
    end = edges[None, 1:]  # [1, T]

    span_begin = span_positions[:, 0, None, None]  # [B, 1, 1]
    span_end = span_positions[:, 1, None, None]  # [B, 1, 1]

    overlap = (torch.minimum(end, span_end) - torch.maximum(begin, span_begin)).clamp(min=0)
    union = (end - begin).clamp(min=0) + (span_end - span_begin) - overlap

    iou = overlap / union.clamp(min=1e-9)  # [B, T, T]
    return iou * valid_proposal_mask(count, span_positions.device)


class ProposalHead(nn.Module):
    """Matching logits of all proposals: a linear layer, the proposal map, and convolutions.

    After each convolution, values are divided by the share of valid cells under the kernel. Without
    the division, cells at the border of the triangle would be smaller. 2D-TAN divides by the number
    of valid cells: both compute the same functions, with weights that differ by kernel².

    Args:
        hidden_dim: Width d of the clip features.
        channels: Channels of the proposal map.
        kernel: Side of the convolutions' kernels, in clips.
        layers: Number of convolutions.
    """

    def __init__(self, hidden_dim: int, channels: int, kernel: int, layers: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.residual_projection = nn.Linear(hidden_dim, channels)

        self.convs = nn.ModuleList()
        for _ in range(layers):
            self.convs.append(nn.Conv2d(channels, channels, kernel, padding=kernel // 2))

        self.score = nn.Conv2d(channels, 1, 1)

        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, clips: Tensor) -> Tensor:
        """Score all proposals.

        Args:
            clips: [B, T, d], clip features.

        Returns:
            [B, T, T], logits; meaningless where i > j.
        """
        proposals = build_proposal_map(self.residual_projection(clips))  # [B, T, T, C]

        # Contiguous like the weights. Otherwise each step converts the layout of all weights.
        x = proposals.permute(0, 3, 1, 2).contiguous()  # [B, C, T, T]

        # Number of valid cells under the kernel at every position.
        valid = valid_proposal_mask(clips.shape[1], clips.device).to(x.dtype)[None, None]
        window = torch.ones(1, 1, self.kernel, self.kernel, dtype=x.dtype, device=x.device)
        num_valid = functional.conv2d(valid, window, padding=self.kernel // 2)  # [1, 1, T, T]

        # Zero at invalid cells, inverse share of valid cells elsewhere.
        gain = valid * self.kernel**2 / num_valid.clamp(min=1)

        for conv in self.convs:
            x = functional.relu(conv(x) * gain)

        return self.score(x)[:, 0]
