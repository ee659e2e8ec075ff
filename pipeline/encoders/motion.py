"""Motion: SlowFast maps of clips before the head, slow and fast concatenated and averaged over time (pytorchvideo).

`full` is SlowFast R50 8x8: 2304 channels from 32 frames; built as for AVA (dilated last stage, stride 16) or as for
Kinetics (stride 32). `tiny` is the same class with one block per stage and an eighth of the width, 384 channels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

KINETICS_MEAN, KINETICS_STD = 0.45, 0.225
ALPHA = 4
"""Fast frames per slow frame."""


class MotionEncoder(nn.Module):
    """Clips of RGB frames to space maps. `channels` is C, `frames` the frames of a clip, `side` the square's pixels, `kind` the build."""

    def __init__(self, size: str = "full", variant: str = "ava") -> None:
        super().__init__()
        self.variant = variant
        self.blocks = nn.ModuleList(_build_slowfast(size, variant))
        self.channels = 2304 if size == "full" else 384
        self.num_frames, self.square_side = (32, 256) if size == "full" else (8, 128)

    def forward(self, clips: Tensor) -> Tensor:
        """RGB in 0..255 `[n, 3, frames, side, side]` → `[n, h, w, C]`, slow channels first."""
        fast = ((clips / 255 - KINETICS_MEAN) / KINETICS_STD).to(self.dtype)
        slow = fast[:, :, select_slow_frames(clips.shape[2])]
        paths = [slow, fast]
        for block in self.blocks:
            paths = block(list(paths))
        return torch.cat([path.mean(2) for path in paths], 1).permute(0, 2, 3, 1)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def select_slow_frames(count: int) -> Tensor:
    """The slow pathway's frames: count/α of them, evenly from the first to the last."""
    return torch.linspace(0, count - 1, count // ALPHA).long()


def _build_slowfast(size: str, kind: str) -> list[nn.Module]:
    """The stem and the four stages of a SlowFast network, without its pooling and head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.slowfast import create_slowfast
    if size == "full":
        options: dict[str, object] = {"model_depth": 50}
    else:
        options = {
            "model_depth": 18,
            "stem_dim_outs": (8, 4),
            "slowfast_channel_reduction_ratio": (2,),
        }
    if kind == "ava":
        dilated = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2))
        options |= {
            "stage_conv_b_dilations": (dilated, dilated),
            "stage_spatial_strides": ((1, 2, 2, 1), (1, 2, 2, 1)),
        }
    return list(create_slowfast(**options).blocks)[:5]
