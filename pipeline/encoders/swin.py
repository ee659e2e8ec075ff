"""Motion for CG-STVG: Video Swin-T maps of every frame (torchvision's swin3d_t, ImageNet's channel statistics).

Decisions and deviations:
- **Temporal patch stride 1.** The library's patches are 2 frames long and stand 2 frames apart, which halves the
  frames; here they stand 1 apart, so each frame has its own map, as CG-STVG needs. The weights are the same. The patch
  of frame t covers frames t and t + 1; the last one of a window sees its frame twice.
- **Windows.** CG-STVG runs the network over all frames of a sample at once. A cache does not know which frames a sample
  will pick, and an hour of video does not fit in memory: here a video's frames are encoded in consecutive windows of
  `FRAMES`, each by itself (the last may be shorter). That is as many temporal positions as the network saw when it was
  trained (32 frames at stride 2). Frames of different windows do not see each other.
- Maps are taken after the network's last norm, before its pooling and head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.video import swin3d_t

from pipeline.encoders.appearance import IMAGENET_MEAN, IMAGENET_STD

WINDOW_FRAMES = 16
PATCH_FRAMES = 2
"""Frames a patch covers, whatever the stride."""


class SwinEncoder(nn.Module):
    """Windows of RGB frames to a map per frame. `channels` is C, `stride` the pixels per cell, `frames` a window's length.

    `time_stride` 2 is the library's own network, which halves the frames: the reference in tests.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, time_stride: int = 1) -> None:
        super().__init__()
        self.body = swin3d_t(weights=None)
        self.body.avgpool, self.body.head = nn.Identity(), nn.Identity()
        self.time_stride = time_stride
        self.channels, self.stride, self.num_frames = 768, 32, WINDOW_FRAMES
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """RGB in 0..255 `[n, 3, T, h, w]` → maps `[n, T, ⌈h/32⌉, ⌈w/32⌉, C]`; T may be any length from 1."""
        pictures = ((frames / 255 - self.mean) / self.std).to(self.dtype)
        return self.body.norm(self.body.features(self._embed_patches(pictures)))

    @property
    def dtype(self) -> torch.dtype:
        return self.body.patch_embed.proj.weight.dtype

    def _embed_patches(self, pictures: Tensor) -> Tensor:
        """Normalised `[n, 3, T, h, w]` → patches `[n, ⌈T/time_stride⌉, ⌈h/4⌉, ⌈w/4⌉, 96]`; zeros fill pictures up to whole patches."""
        embed, stride = self.body.patch_embed, self.time_stride
        count, height, width = pictures.shape[2:]
        lacking = (-(-count // stride) - 1) * stride + PATCH_FRAMES - count
        pictures = torch.cat([pictures, pictures[:, :, -1:].expand(-1, -1, lacking, -1, -1)], 2)
        pictures = functional.pad(pictures, (0, -width % 4, 0, -height % 4))
        patches = functional.conv3d(pictures, embed.proj.weight, embed.proj.bias, (stride, 4, 4))
        return embed.norm(patches.permute(0, 2, 3, 4, 1))


def split_frame_windows(count: int) -> list[range]:
    """The windows `count` frames are encoded in: consecutive, `FRAMES` long, the last one as short as it must be."""
    return [
        range(start, min(start + WINDOW_FRAMES, count)) for start in range(0, count, WINDOW_FRAMES)
    ]
