"""A network with the image and text encoders before it, all of which train: the papers' own setting. Motion stays cached."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grounding.modules.activation_checkpointing import recompute_layers
from grounding.modules.freezing import tune
from grounding.modules.variable_resolution import at_own_size
from grounding.structures.inputs import Inputs
from grounding.structures.targets import Targets

if TYPE_CHECKING:
    from pipeline.encoders.appearance import AppearanceEncoder
    from pipeline.encoders.text import TextEncoder

TOGETHER = 32
"""Pictures that are encoded at once: what a pass without gradients holds does not grow with the batch."""


class EndToEnd(nn.Module):
    """Pictures, clips and sentences to what `network` answers. Pictures are seen at their own size, whatever the batch's largest."""

    def __init__(
        self, network: nn.Module, image: AppearanceEncoder, text_encoder: TextEncoder
    ) -> None:
        super().__init__()
        self.network, self.image, self.text_encoder = network, image, text_encoder
        text_encoder.requires_grad_(True)
        tune(image, True)

    def train(self, mode: bool = True) -> EndToEnd:
        """Train or evaluate; the image encoder's norms keep their statistics either way."""
        super().train(mode)
        self.image.eval()
        return self

    def forward(self, inputs: Inputs, *truth: Targets) -> Any:
        """`inputs` with pictures for maps, RGB uint8 `[V, T_s, h, w, 3]` (`map_size` in pixels), and ids `[B, L, 1]` for states;
        a network that is taught gets the `truth`.
        """
        maps, sizes = self.maps(inputs.appearance, inputs.map_size)
        states = self.text_encoder(inputs.text[..., 0], inputs.text_mask)
        return self.network(replace(inputs, appearance=maps, map_size=sizes, text=states), *truth)

    def maps(self, pictures: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """C5 maps `[V, T_s, H, W, C]`, zero-padded to the largest, and their rows and columns `[V, 2]`."""
        return at_own_size(pictures, sizes, self._encoded)

    def _encoded(self, alike: Tensor) -> Tensor:
        """Pictures of one size `[n, T_s, h, w, 3]` → `[n, T_s, H, W, C]`."""
        parts = alike.flatten(0, 1).permute(0, 3, 1, 2).split(TOGETHER)
        return torch.cat([self.image(part) for part in parts]).unflatten(0, alike.shape[:2])

    def recompute(self) -> None:
        """Gradient checkpointing of all three (`recompute_layers`)."""
        recompute_layers(self.network)
        recompute_layers(self.text_encoder.roberta.encoder)
        recompute_layers(self.image.body, nn.Sequential)
