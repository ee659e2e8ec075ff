"""Selection of the trainable parameters of an image encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from pipeline.encoders.appearance import AppearanceEncoder

TRAINABLE_PREFIXES = ("layer2", "layer3", "layer4")
"""Trainable stages of a ResNet, as in DETR and MDETR. Stem, first stage and all batch norms stay
frozen."""


def set_trainable(image_encoder: AppearanceEncoder, trainable: bool) -> None:
    """Make the convolutions of the stages `TRAINABLE_PREFIXES` trainable, or freeze everything.

    Args:
        image_encoder: The encoder to change in place.
        trainable: False freezes all parameters.
    """
    image_encoder.requires_grad_(False)

    if not trainable:
        return

    for stage in TRAINABLE_PREFIXES:
        for module in image_encoder.body.get_submodule(stage).modules():
            if isinstance(module, nn.Conv2d):
                module.requires_grad_(True)
