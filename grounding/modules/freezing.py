"""What of an image encoder trains with a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from pipeline.encoders.appearance import AppearanceEncoder

TRAINABLE_PREFIXES = ("layer2", "layer3", "layer4")
"""The stages of a ResNet that train, as in DETR and MDETR: its stem, its first stage and all batch norms stay as they are."""


def set_trainable(image_encoder: AppearanceEncoder, trainable: bool) -> None:
    """Let the convolutions of `LEARNING` train, or nothing."""
    image_encoder.requires_grad_(False)
    for stage in TRAINABLE_PREFIXES if trainable else ():
        for module in image_encoder.body.get_submodule(stage).modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(True)
