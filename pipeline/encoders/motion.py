"""Motion encoder: SlowFast maps of clips (pytorchvideo).

The maps are taken before the network's head. Slow and fast pathways are averaged over time and
concatenated.

`full` is SlowFast R50 8x8: 2304 channels from 32 frames. Its variant is that of AVA (dilated last
stage, stride 16) or that of Kinetics (stride 32). `tiny` is the same class with one block per stage
and one eighth of the width: 384 channels.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

KINETICS_MEAN = 0.45
"""Mean of all channels for RGB in [0, 1]."""
KINETICS_STD = 0.225
"""Standard deviation of all channels for RGB in [0, 1]."""
ALPHA = 4
"""Fast frames per slow frame (α)."""


class MotionEncoder(nn.Module):
    """Encoder of clips of RGB frames to spatial maps.

    Args:
        size: `full` or `tiny`.
        variant: `ava` (stride 16) or `kinetics` (stride 32).

    Attributes:
        blocks: Stem and four stages.
        channels: C, the channels of the maps.
        num_frames: Frames of a clip.
        square_side: Side of the square input frames in pixels.
        variant: As passed.
    """

    def __init__(self, size: str = "full", variant: str = "ava") -> None:
        super().__init__()
        self.variant = variant
        self.blocks = nn.ModuleList(_build_slowfast(size, variant))
        self.channels = 2304 if size == "full" else 384
        self.num_frames = 32 if size == "full" else 8
        self.square_side = 256 if size == "full" else 128

    def forward(self, clips: Tensor) -> Tensor:
        """Encode clips.

        Args:
            clips: `[n, 3, num_frames, square_side, square_side]`, RGB in [0, 255].

        Returns:
            Maps `[n, h, w, C]`, the channels of the slow pathway first.
        """
        # Both pathways see the same clip at different frame rates.
        fast = ((clips / 255 - KINETICS_MEAN) / KINETICS_STD).to(self.dtype)
        slow = fast[:, :, select_slow_frames(clips.shape[2])]

        pathways = [slow, fast]  # each [n, C, T, h, w]
        for block in self.blocks:
            pathways = block(list(pathways))

        maps = [pathway.mean(2) for pathway in pathways]  # each [n, C, h, w]
        return torch.cat(maps, 1).permute(0, 2, 3, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return next(self.parameters()).dtype


def select_slow_frames(count: int) -> Tensor:
    """Select the frames of the slow pathway, evenly from the first to the last.

    Args:
        count: Number of fast frames.

    Returns:
        `[count // ALPHA]` int64, frame indices.
    """
    return torch.linspace(0, count - 1, count // ALPHA).long()


def _build_slowfast(size: str, variant: str) -> list[nn.Module]:
    """Build the stem and the four stages of a SlowFast network, without pooling and head."""
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

    # AVA's network dilates the last stage instead of striding it.
    if variant == "ava":
        dilations = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2))
        strides = (1, 2, 2, 1)
        options["stage_conv_b_dilations"] = (dilations, dilations)
        options["stage_spatial_strides"] = (strides, strides)
    return list(create_slowfast(**options).blocks)[:5]
