"""A network with the image and text encoders before it, all of which train: the papers' own setting. Motion stays cached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grounding.modules.activation_checkpointing import checkpoint_layers
from grounding.modules.freezing import set_trainable
from grounding.modules.variable_resolution import encode_by_resolution
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets

if TYPE_CHECKING:
    from pipeline.encoders.appearance import AppearanceEncoder
    from pipeline.encoders.text import TextEncoder

ENCODER_BATCH_SIZE = 32
"""Pictures that are encoded at once: what a pass without gradients holds does not grow with the batch."""


class EndToEnd(nn.Module):
    """Pictures, clips and sentences to what `network` answers. Pictures are seen at their own size, whatever the batch's largest."""

    def __init__(
        self, network: nn.Module, image_encoder: AppearanceEncoder, text_encoder: TextEncoder
    ) -> None:
        super().__init__()
        self.network, self.image_encoder, self.text_encoder = network, image_encoder, text_encoder
        text_encoder.requires_grad_(True)
        set_trainable(image_encoder, True)

    def train(self, mode: bool = True) -> EndToEnd:
        """Train or evaluate; the image encoder's norms keep their statistics either way."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs, *truth: Targets) -> Any:
        """`inputs` with pictures for maps, RGB uint8 `[V, T_s, h, w, 3]` (`map_size` in pixels), and ids `[B, L, 1]` for states;
        a network that is taught gets the `truth`.
        """
        maps, sizes = self.encode_images(inputs.appearance, inputs.map_size)
        states = self.text_encoder(inputs.text[..., 0], inputs.text_mask)
        return self.network(replace(inputs, appearance=maps, map_size=sizes, text=states), *truth)

    def encode_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """C5 maps `[V, T_s, H, W, C]`, zero-padded to the largest, and their rows and columns `[V, 2]`."""
        return encode_by_resolution(images, sizes, self._encode_resolution)

    def _encode_resolution(self, images: Tensor) -> Tensor:
        """Pictures of one size `[n, T_s, h, w, 3]` → `[n, T_s, H, W, C]`."""
        parts = images.flatten(0, 1).permute(0, 3, 1, 2).split(ENCODER_BATCH_SIZE)
        return torch.cat([self.image_encoder(part) for part in parts]).unflatten(
            0, images.shape[:2]
        )

    def enable_activation_checkpointing(self) -> None:
        """Gradient checkpointing of all three (`checkpoint_layers`)."""
        checkpoint_layers(self.network)
        checkpoint_layers(self.text_encoder.roberta.encoder)
        checkpoint_layers(self.image_encoder.body, nn.Sequential)
