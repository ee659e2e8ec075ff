"""A 3-D residual network that keeps every frame, and where it meets the stages of a 2-D one (CoSTA, eq. (1))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LateralFusion = Literal["sum", "concat", "hadamard"]
STANDALONE_FUSIONS = (None, None, None, None)
"""What a trunk without a 2-D network beside it meets after its stages."""
NORM_GROUPS = 8
"""Of channels, that a norm is over. Batch norms would make a query's features depend on the others of its batch."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps `[n, C, …]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class BasicBlock(nn.Module):
    """R3D's block: two 3×3×3 convolutions and a shortcut. The stride is of space alone; `[n, C, T, h, w]` → `[n, C', T, h', w']`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, (1, stride, stride), 1, bias=False)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = (
            nn.GroupNorm(NORM_GROUPS, out_channels),
            nn.GroupNorm(NORM_GROUPS, out_channels),
        )
        fits = (in_channels, stride) == (out_channels, 1)
        self.shortcut = (
            nn.Identity() if fits else _build_shortcut(in_channels, out_channels, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def _build_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False),
        nn.GroupNorm(NORM_GROUPS, out_channels),
    )


class LateralConnection(nn.Module):
    """`φ_l(y_{l−1}) ⊙ x_l`: both normed and summed; or concatenated and brought back to φ's width; or multiplied.

    `width` are φ_l's channels, `channels` x_l's. With None for those, φ is alone, and normed.
    """

    def __init__(self, width: int, channels: int | None, connection: LateralFusion) -> None:
        super().__init__()
        self.connection = connection
        self.project_image = None if channels is None else nn.Conv2d(channels, width, 1)
        self.norm_video = ChannelNorm(width) if channels is None or connection == "sum" else None
        self.norm_image = (
            ChannelNorm(width) if channels is not None and connection == "sum" else None
        )
        self.reduce = (
            nn.Conv3d(2 * width, width, 1)
            if channels is not None and connection == "concat"
            else None
        )

    def forward(self, video_features: Tensor, image_features: Tensor | None) -> Tensor:
        """φ_l `[n, C, T, h, w]` and x_l `[n·T, C_l, h, w]` → y_l `[n, C, T, h, w]`."""
        if self.norm_video is not None:
            video_features = self.norm_video(video_features)
        if image_features is None or self.project_image is None:
            return video_features
        brought = self.project_image(image_features)
        if self.norm_image is not None:
            brought = self.norm_image(brought)
        brought = brought.unflatten(0, (len(video_features), -1)).transpose(1, 2)
        if self.reduce is not None:
            return self.reduce(torch.cat([video_features, brought], 1))
        return video_features + brought if self.connection == "sum" else video_features * brought


class R3dTrunk(nn.Module):
    """R3D-18 with temporal stride 1, `width` channels after its stem, at the map sizes of a 2-D network.

    That network has `channels` after its four stages (None: the trunk is alone), and a pooled stem, or not: then so has the trunk.
    """

    def __init__(
        self, width: int, channels: Sequence[int] | None, pooled: bool, connection: LateralFusion
    ) -> None:
        super().__init__()
        self.widths = [width, 2 * width, 4 * width, 8 * width]
        stem = nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if pooled else nn.Identity()
        self.stem = nn.Sequential(stem, nn.GroupNorm(NORM_GROUPS, width), nn.ReLU(), pool)
        sizes = zip([width, *self.widths], self.widths, (1, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after, 1))
            for before, after, stride in sizes
        )
        for part in (self.stem, self.stages):
            part.to(memory_format=torch.channels_last_3d)
        self.lateral_connections = nn.ModuleList(
            LateralConnection(own, theirs, connection)
            for own, theirs in zip(self.widths, channels or STANDALONE_FUSIONS, strict=True)
        )

    def forward(self, videos: Tensor, image_features: Sequence[Tensor] | None) -> Tensor:
        """Normalised RGB `[n, 3, T, h, w]` and x_1 … x_4, each `[n·T, C_l, h_l, w_l]` → y_4 `[n, T, H, W, C]`."""
        y = self.stem(videos.to(memory_format=torch.channels_last_3d))
        for stage, joint, x in zip(
            self.stages, self.lateral_connections, image_features or STANDALONE_FUSIONS, strict=True
        ):
            y = joint(stage(y), x)
        return y.permute(0, 2, 3, 4, 1)
