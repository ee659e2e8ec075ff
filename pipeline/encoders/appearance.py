"""Appearance: ResNet C5 maps of single frames (torchvision).

`full` is ResNet-101 with frozen batch norm, 2048 channels at stride 32. `tiny` is the same class, a sixteenth as
wide: one or two basic blocks per stage, no stem pooling, 128 channels at stride 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

INITIAL_RESIDUAL_SCALE = 0.2
"""Scale at the end of each block before weights are loaded: frozen norms do not tame fresh weights, float16 would overflow."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's channel means and deviations for RGB in [0, 1]."""


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm that is fixed, of its input's type: torchvision's makes float32 of what a convolution made in bfloat16, and all that
    is kept for the backward pass twice as large.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


class TinyResNet(ResNet):
    """ResNet with a quarter of the planes and no stem pooling: 64 stem channels, then 16, 32, 64, 128."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 2])
        self.maxpool = nn.Identity()

    def _make_layer(
        self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


class AppearanceEncoder(nn.Module):
    """RGB frames to C5 maps. `channels` is C, `stride` the pixels per cell; `widths` are the channels after each of the four stages,
    of which the last three halve the map, and `pooled` says whether the stem ends in a pooling that does.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: str = "full") -> None:
        super().__init__()
        if size == "full":
            self.body: ResNet = ResNet(Bottleneck, [3, 4, 23, 3], norm_layer=FrozenBatchNorm)
            for name, norm in self.body.named_modules():
                if name.endswith("bn3"):
                    norm.weight.fill_(INITIAL_RESIDUAL_SCALE)
            self.stage_channels, self.stride, self.has_stem_pooling = (
                (256, 512, 1024, 2048),
                32,
                True,
            )
        else:
            self.body = TinyResNet()
            self.stage_channels, self.stride, self.has_stem_pooling = (16, 32, 64, 128), 16, False
        self.channels = self.stage_channels[-1]
        self.body.avgpool, self.body.fc = nn.Identity(), nn.Identity()
        self.body.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..255 `[n, 3, h, w]` → C5 maps `[n, ⌈h/stride⌉, ⌈w/stride⌉, C]`."""
        x = self.stem(self.normalize(images))
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 2, 3, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """RGB in 0..255 `[n, 3, h, w]` in ImageNet's means and deviations, of the network's type."""
        return ((images / 255 - self.mean) / self.std).to(self.dtype)

    def stem(self, images: Tensor) -> Tensor:
        """Normalised pictures `[n, 3, h, w]` → what the first stage takes."""
        body = self.body
        return body.maxpool(
            body.relu(body.bn1(body.conv1(images.to(memory_format=torch.channels_last))))
        )

    @property
    def stages(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """From `[n, C, h, w]` to `[n, C, h, w]`, in order."""
        return self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4

    @property
    def dtype(self) -> torch.dtype:
        return self.body.conv1.weight.dtype
