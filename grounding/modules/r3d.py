"""A 3-D residual network that keeps every frame, and where it meets the stages of a 2-D one (CoSTA, eq. (1))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Connection = Literal["sum", "concat", "hadamard"]
ALONE = (None, None, None, None)
"""What a trunk without a 2-D network beside it meets after its stages."""
GROUPS = 8
"""Of channels, that a norm is over. Batch norms would make a query's features depend on the others of its batch."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps `[n, C, …]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class BasicBlock(nn.Module):
    """R3D's block: two 3×3×3 convolutions and a shortcut. The stride is of space alone; `[n, C, T, h, w]` → `[n, C', T, h', w']`."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, after, 3, (1, stride, stride), 1, bias=False)
        self.conv2 = nn.Conv3d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, after), nn.GroupNorm(GROUPS, after)
        fits = (before, stride) == (after, 1)
        self.shortcut = nn.Identity() if fits else _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(before, after, 1, (1, stride, stride), bias=False), nn.GroupNorm(GROUPS, after)
    )


class Joint(nn.Module):
    """`φ_l(y_{l−1}) ⊙ x_l`: both normed and summed; or concatenated and brought back to φ's width; or multiplied.

    `width` are φ_l's channels, `channels` x_l's. With None for those, φ is alone, and normed.
    """

    def __init__(self, width: int, channels: int | None, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.bring = None if channels is None else nn.Conv2d(channels, width, 1)
        self.norm_time = ChannelNorm(width) if channels is None or connection == "sum" else None
        self.norm_space = (
            ChannelNorm(width) if channels is not None and connection == "sum" else None
        )
        self.reduce = (
            nn.Conv3d(2 * width, width, 1)
            if channels is not None and connection == "concat"
            else None
        )

    def forward(self, moving: Tensor, still: Tensor | None) -> Tensor:
        """φ_l `[n, C, T, h, w]` and x_l `[n·T, C_l, h, w]` → y_l `[n, C, T, h, w]`."""
        if self.norm_time is not None:
            moving = self.norm_time(moving)
        if still is None or self.bring is None:
            return moving
        brought = self.bring(still)
        if self.norm_space is not None:
            brought = self.norm_space(brought)
        brought = brought.unflatten(0, (len(moving), -1)).transpose(1, 2)
        if self.reduce is not None:
            return self.reduce(torch.cat([moving, brought], 1))
        return moving + brought if self.connection == "sum" else moving * brought


class SpaceTimeTrunk(nn.Module):
    """R3D-18 with temporal stride 1, `width` channels after its stem, at the map sizes of a 2-D network.

    That network has `channels` after its four stages (None: the trunk is alone), and a pooled stem, or not: then so has the trunk.
    """

    def __init__(
        self, width: int, channels: Sequence[int] | None, pooled: bool, connection: Connection
    ) -> None:
        super().__init__()
        self.widths = [width, 2 * width, 4 * width, 8 * width]
        stem = nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if pooled else nn.Identity()
        self.stem = nn.Sequential(stem, nn.GroupNorm(GROUPS, width), nn.ReLU(), pool)
        sizes = zip([width, *self.widths], self.widths, (1, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after, 1))
            for before, after, stride in sizes
        )
        for part in (self.stem, self.stages):
            part.to(memory_format=torch.channels_last_3d)
        self.joints = nn.ModuleList(
            Joint(own, theirs, connection)
            for own, theirs in zip(self.widths, channels or ALONE, strict=True)
        )

    def forward(self, videos: Tensor, still: Sequence[Tensor] | None) -> Tensor:
        """Normalised RGB `[n, 3, T, h, w]` and x_1 … x_4, each `[n·T, C_l, h_l, w_l]` → y_4 `[n, T, H, W, C]`."""
        y = self.stem(videos.to(memory_format=torch.channels_last_3d))
        for stage, joint, x in zip(self.stages, self.joints, still or ALONE, strict=True):
            y = joint(stage(y), x)
        return y.permute(0, 2, 3, 4, 1)
