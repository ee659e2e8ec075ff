"""A 3-D residual network at full frame rate, connected to a 2-D network (CoSTA, eq. (1))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

LateralFusion = Literal["sum", "concat", "hadamard"]

NO_IMAGE_STAGES = (None, None, None, None)
"""Channels, or features, of the four stages of a 2-D network that does not exist."""

NORM_GROUPS = 8
"""Number of channel groups of a group norm. With batch norms, the features of a query would depend
on the other queries of its batch."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps `[n, C, …]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x` [n, C, …] over C."""
        channels_last = x.movedim(1, -1)
        return super().forward(channels_last).movedim(-1, 1)


class BasicBlock(nn.Module):
    """R3D's residual block: two 3×3×3 convolutions and a shortcut.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels C' of the output.
        stride: Stride in space; the stride in time is 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, (1, stride, stride), 1, bias=False)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels)

        # The input is added as it is if its shape is that of the output.
        if in_channels == out_channels and stride == 1:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = _build_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to `x` [n, C, T, h, w]; returns [n, C', T, h', w']."""
        hidden = functional.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(hidden))
        return functional.relu(residual + self.shortcut(x))


def _build_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return a projection of a block's input to the shape of the block's output."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, (1, stride, stride), bias=False),
        nn.GroupNorm(NORM_GROUPS, out_channels),
    )


class LateralConnection(nn.Module):
    """The connection `φ_l(y_{l−1}) ⊙ x_l` of the 3-D and the 2-D network after stage l.

    The fusion `sum` normalizes and adds both; `concat` concatenates both and reduces the result to
    the channels of φ_l; `hadamard` multiplies both. Without a 2-D network, φ_l is normalized alone.

    Args:
        width: Channels C of φ_l.
        channels: Channels C_l of x_l; None without a 2-D network.
        connection: The fusion.
    """

    def __init__(self, width: int, channels: int | None, connection: LateralFusion) -> None:
        super().__init__()
        self.connection = connection
        self.project_image: nn.Conv2d | None = None
        self.norm_video: ChannelNorm | None = None
        self.norm_image: ChannelNorm | None = None
        self.reduce: nn.Conv3d | None = None

        if channels is None:
            self.norm_video = ChannelNorm(width)
            return

        self.project_image = nn.Conv2d(channels, width, 1)

        if connection == "sum":
            self.norm_video = ChannelNorm(width)
            self.norm_image = ChannelNorm(width)
        elif connection == "concat":
            self.reduce = nn.Conv3d(2 * width, width, 1)

    def forward(self, video_features: Tensor, image_features: Tensor | None) -> Tensor:
        """Fuse the features of both networks.

        Args:
            video_features: [n, C, T, h, w], φ_l.
            image_features: [n·T, C_l, h, w], x_l; None without a 2-D network.

        Returns:
            [n, C, T, h, w], y_l.
        """
        if self.norm_video is not None:
            video_features = self.norm_video(video_features)

        if image_features is None or self.project_image is None:
            return video_features

        projected = self.project_image(image_features)  # [n·T, C, h, w]
        if self.norm_image is not None:
            projected = self.norm_image(projected)

        # Frames become the time axis of the 3-D network.
        per_video = projected.unflatten(0, (len(video_features), -1))  # [n, T, C, h, w]
        image_volume = per_video.transpose(1, 2)  # [n, C, T, h, w]

        if self.reduce is not None:
            return self.reduce(torch.cat([video_features, image_volume], 1))

        if self.connection == "sum":
            return video_features + image_volume

        return video_features * image_volume


class R3dTrunk(nn.Module):
    """R3D-18 with temporal stride 1, at the map sizes of a 2-D network.

    Args:
        width: Channels after the stem; each stage after the first doubles them.
        channels: Channels of the 2-D network after its four stages; None without a 2-D network.
        pooled: True if the 2-D network's stem ends with pooling, which the trunk then copies.
        connection: Fusion of both networks after each stage.
    """

    def __init__(
        self, width: int, channels: Sequence[int] | None, pooled: bool, connection: LateralFusion
    ) -> None:
        super().__init__()
        self.widths = [width, 2 * width, 4 * width, 8 * width]

        # Stem: as ResNet's in space, three frames in time.
        convolution = nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if pooled else nn.Identity()
        self.stem = nn.Sequential(convolution, nn.GroupNorm(NORM_GROUPS, width), nn.ReLU(), pool)

        # Four stages of two blocks; each stage after the first halves the map.
        self.stages = nn.ModuleList()
        in_channels = width
        for out_channels, stride in zip(self.widths, (1, 2, 2, 2), strict=True):
            first = BasicBlock(in_channels, out_channels, stride)
            second = BasicBlock(out_channels, out_channels, 1)
            self.stages.append(nn.Sequential(first, second))
            in_channels = out_channels

        # 3-D convolutions are faster with channels in the last dimension.
        self.stem.to(memory_format=torch.channels_last_3d)
        self.stages.to(memory_format=torch.channels_last_3d)

        self.lateral_connections = nn.ModuleList()
        image_channels = channels or NO_IMAGE_STAGES
        for video_width, image_width in zip(self.widths, image_channels, strict=True):
            self.lateral_connections.append(LateralConnection(video_width, image_width, connection))

    def forward(self, videos: Tensor, image_features: Sequence[Tensor] | None) -> Tensor:
        """Compute the features of every frame.

        Args:
            videos: [n, 3, T, h, w], normalized RGB.
            image_features: x_1 … x_4, [n·T, C_l, h_l, w_l] each; None without a 2-D network.

        Returns:
            [n, T, H, W, C], y_4.
        """
        y = self.stem(videos.to(memory_format=torch.channels_last_3d))

        stage_images = image_features or NO_IMAGE_STAGES
        stages = zip(self.stages, self.lateral_connections, stage_images, strict=True)

        for stage, fuse, image in stages:
            y = fuse(stage(y), image)

        return y.permute(0, 2, 3, 4, 1)
