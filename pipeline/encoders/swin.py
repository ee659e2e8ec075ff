"""Motion encoder of CG-STVG: Video Swin-T maps of every frame (torchvision's swin3d_t).

Images are normalized by ImageNet's channel statistics. Maps are taken after the network's last
norm, before pooling and head. Two choices deviate from the library or from the paper:

- **Temporal patch stride 1.** A patch covers 2 frames. The library's patches start 2 frames apart,
  which halves the number of frames. Here they start 1 frame apart, so that each frame has its own
  map, as CG-STVG requires. The weights are the same. The patch of frame t covers frames t and
  t + 1. At the end of a window the last frame is repeated.
- **Windows.** CG-STVG runs the network over all frames of a sample at once. A cache does not know
  the frames of future samples, and an hour of video does not fit in memory. Here the frames of a
  video are encoded in consecutive windows of `WINDOW_FRAMES`; the last one may be shorter. A window
  has as many temporal positions as in training (32 frames at stride 2). Frames of different windows
  do not attend to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.video import swin3d_t

from pipeline.encoders.appearance import IMAGENET_MEAN, IMAGENET_STD

WINDOW_FRAMES = 16
PATCH_FRAMES = 2
"""Frames that a patch covers, for any temporal stride."""


class SwinEncoder(nn.Module):
    """Encoder of windows of RGB frames to one map per frame.

    Args:
        time_stride: Temporal stride of the patches. 2 is the library's network, which halves the
            number of frames and serves as the reference in tests.

    Attributes:
        body: The Swin transformer, without pooling and head.
        channels: C, the channels of the maps.
        stride: Pixels per cell of the maps.
        num_frames: Frames of a window.
        time_stride: As passed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, time_stride: int = 1) -> None:
        super().__init__()
        self.body = swin3d_t(weights=None)
        self.body.avgpool = nn.Identity()
        self.body.head = nn.Identity()
        self.time_stride = time_stride
        self.channels = 768
        self.stride = 32
        self.num_frames = WINDOW_FRAMES
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode windows of frames.

        Args:
            frames: `[n, 3, T, h, w]`, RGB in [0, 255], any T ≥ 1.

        Returns:
            Maps `[n, T, ⌈h/32⌉, ⌈w/32⌉, C]`.
        """
        images = ((frames / 255 - self.mean) / self.std).to(self.dtype)
        patches = self._embed_patches(images)
        return self.body.norm(self.body.features(patches))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return self.body.patch_embed.proj.weight.dtype

    def _embed_patches(self, images: Tensor) -> Tensor:
        """Embed `[n, 3, T, h, w]` as patches `[n, ⌈T/time_stride⌉, ⌈h/4⌉, ⌈w/4⌉, 96]`."""
        embedding = self.body.patch_embed
        num_frames, height, width = images.shape[2:]

        # Repeat the last frame until the last patch is complete.
        num_patches = -(-num_frames // self.time_stride)
        num_missing = (num_patches - 1) * self.time_stride + PATCH_FRAMES - num_frames
        last_frame = images[:, :, -1:].expand(-1, -1, num_missing, -1, -1)
        images = torch.cat([images, last_frame], 2)

        # Pad with zeros to whole patches of 4x4 pixels.
        images = functional.pad(images, (0, -width % 4, 0, -height % 4))

        # The library's projection, at this encoder's temporal stride.
        strides = (self.time_stride, 4, 4)
        patches = functional.conv3d(
            images, embedding.proj.weight, embedding.proj.bias, strides
        )  # [n, 96, T', h/4, w/4]
        return embedding.norm(patches.permute(0, 2, 3, 4, 1))


def split_frame_windows(count: int) -> list[range]:
    """Split the frames of a video into consecutive windows.

    Args:
        count: Number of frames.

    Returns:
        Ranges of frame positions, `WINDOW_FRAMES` long; the last one may be shorter.
    """
    windows = []
    for start in range(0, count, WINDOW_FRAMES):
        windows.append(range(start, min(start + WINDOW_FRAMES, count)))
    return windows
