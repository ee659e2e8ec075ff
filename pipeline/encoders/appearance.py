"""Appearance encoder: ResNet C5 maps of single frames (torchvision).

`full` is ResNet-101 with frozen batch norm: 2048 channels at stride 32. `tiny` is the same class at
one sixteenth of the width, with one or two basic blocks per stage and without stem pooling: 128
channels at stride 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

INITIAL_RESIDUAL_SCALE = 0.2
"""Initial scale at the end of each residual block, before weights are loaded.

Frozen norms do not limit the activations of random weights, which would overflow float16.
"""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's channel means for RGB in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""ImageNet's channel standard deviations for RGB in [0, 1]."""


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm with fixed statistics whose output has the dtype of its input.

    torchvision's class turns bfloat16 activations into float32. That doubles the memory of all
    activations that the backward pass needs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize activations.

        Args:
            x: `[n, C, h, w]`.

        Returns:
            `[n, C, h, w]` in the dtype of `x`.
        """
        # Fold statistics and affine parameters into one scale and one shift, in float32.
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # [C]
        shift = self.bias - self.running_mean * scale  # [C]
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


class TinyResNet(ResNet):
    """ResNet with a quarter of the planes and no stem pooling.

    The stem has 64 channels and the stages have 16, 32, 64 and 128.
    """

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 2])
        self.maxpool = nn.Identity()

    def _make_layer(
        self, block: type, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


class AppearanceEncoder(nn.Module):
    """Encoder of RGB frames to C5 maps.

    Args:
        size: `full` or `tiny`.

    Attributes:
        body: The ResNet, without pooling and classifier.
        channels: C, the channels of the maps.
        stride: Pixels per cell of the maps.
        stage_channels: Channels after each of the four stages. The last three stages halve the
            map.
        has_stem_pooling: True if the stem ends in a pooling that halves the map.
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
            self.stage_channels = (256, 512, 1024, 2048)
            self.stride = 32
            self.has_stem_pooling = True
        else:
            self.body = TinyResNet()
            self.stage_channels = (16, 32, 64, 128)
            self.stride = 16
            self.has_stem_pooling = False
        self.channels = self.stage_channels[-1]

        # Only the maps are used. Channels last is the faster memory format.
        self.body.avgpool = nn.Identity()
        self.body.fc = nn.Identity()
        self.body.to(memory_format=torch.channels_last)

        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: `[n, 3, h, w]`, RGB in [0, 255].

        Returns:
            C5 maps `[n, ⌈h/stride⌉, ⌈w/stride⌉, C]`.
        """
        x = self.stem(self.normalize(images))  # [n, C, h, w] from here on
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 2, 3, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images by ImageNet's statistics.

        Args:
            images: `[n, 3, h, w]`, RGB in [0, 255].

        Returns:
            `[n, 3, h, w]` in the dtype of the network.
        """
        return ((images / 255 - self.mean) / self.std).to(self.dtype)

    def stem(self, images: Tensor) -> Tensor:
        """Apply the layers before the first stage.

        Args:
            images: `[n, 3, h, w]`, normalized.

        Returns:
            Input of the first stage, `[n, 64, h/2, w/2]`, halved again by a stem pooling.
        """
        x = self.body.conv1(images.to(memory_format=torch.channels_last))
        x = self.body.relu(self.body.bn1(x))
        return self.body.maxpool(x)

    @property
    def stages(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """The four stages in order, each from `[n, C, h, w]` to `[n, C, h, w]`."""
        return self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return self.body.conv1.weight.dtype
