"""End-to-end training: a model on features together with trainable image and text encoders.

This is the setting of the papers. Motion features stay cached.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grounding.modules.activation_checkpointing import checkpoint_layers
from grounding.modules.freezing import set_trainable
from grounding.modules.variable_resolution import encode_by_resolution
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets

if TYPE_CHECKING:
    from grounding.models.output import GroundingOutput
    from pipeline.encoders.appearance import AppearanceEncoder
    from pipeline.encoders.text import TextEncoder

ENCODER_BATCH_SIZE = 32
"""Images per encoder call. Without gradients the peak memory is independent of the batch size."""


class EndToEnd(nn.Module):
    """Image and text encoders followed by a model on their features.

    Each image is encoded at its own size, whatever the largest size of the batch.

    Args:
        network: Model on appearance maps, motion maps and token states.
        image_encoder: ResNet whose later stages train (see `set_trainable`).
        text_encoder: Text encoder; all its parameters train.
    """

    def __init__(
        self, network: nn.Module, image_encoder: AppearanceEncoder, text_encoder: TextEncoder
    ) -> None:
        super().__init__()
        self.network = network
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder

        text_encoder.requires_grad_(True)
        set_trainable(image_encoder, True)

    def train(self, mode: bool = True) -> EndToEnd:
        """Set the training mode. The image encoder's batch norms keep their statistics.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            The module itself.
        """
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs, *targets: Targets) -> GroundingOutput:
        """Encode images and sentences, then run the model on their features.

        Args:
            inputs: Batch with images in place of maps, RGB uint8 [V, T_s, h, w, 3], their sizes
                in pixels as `map_size`, and token ids [B, L, 1] in place of token states.
            *targets: Ground truth, for models that read it during training.

        Returns:
            The model's outputs.
        """
        maps, map_sizes = self.encode_images(inputs.appearance, inputs.map_size)

        token_ids = inputs.text[..., 0]  # [B, L]
        token_states = self.text_encoder(token_ids, inputs.text_mask)  # [B, L, C]

        features = replace(inputs, appearance=maps, map_size=map_sizes, text=token_states)
        return self.network(features, *targets)

    def encode_images(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images of several sizes.

        Args:
            images: [V, T_s, h, w, 3] uint8 RGB, padded to the batch's largest size.
            sizes: [V, 2], height and width of each video without padding, in pixels.

        Returns:
            C5 maps [V, T_s, H, W, C], zero-padded to the largest map, and their rows and
            columns [V, 2].
        """
        return encode_by_resolution(images, sizes, self._encode_resolution)

    def _encode_resolution(self, images: Tensor) -> Tensor:
        """Encode images of one size: [n, T_s, h, w, 3] → [n, T_s, H, W, C]."""
        channels_first = images.flatten(0, 1).permute(0, 3, 1, 2)  # [n·T_s, 3, h, w]

        # Encode in chunks to bound the memory of passes without gradients.
        maps = []
        for chunk in channels_first.split(ENCODER_BATCH_SIZE):
            maps.append(self.image_encoder(chunk))

        return torch.cat(maps).unflatten(0, images.shape[:2])

    def enable_activation_checkpointing(self) -> None:
        """Checkpoint the layers of the model and of both encoders (`checkpoint_layers`)."""
        checkpoint_layers(self.network)
        checkpoint_layers(self.text_encoder.roberta.encoder)
        checkpoint_layers(self.image_encoder.body, nn.Sequential)
