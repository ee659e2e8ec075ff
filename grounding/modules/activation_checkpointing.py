"""Activation checkpointing: layers recompute their activations during the backward pass."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class CheckpointedLayer(nn.Module):
    """Mixin of a layer that stores its inputs only and recomputes the rest during backward.

    The recomputation restores the state of the random number generators, so dropout drops the same
    values. `checkpoint_layers` mixes the class into existing layers.
    """

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer's own forward pass without storing intermediate activations."""
        return checkpoint(super().forward, *inputs, use_reentrant=False, **options)


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Turn on activation checkpointing for a model.

    A model that contains encoders has a method `enable_activation_checkpointing`, which selects
    the stacks of layers. For all other models, the function calls `checkpoint_layers`.

    Args:
        model: The model to change in place.
    """
    enable = getattr(model, "enable_activation_checkpointing", None)

    if enable is None:
        checkpoint_layers(model)
    else:
        enable()


def checkpoint_layers(
    model: nn.Module, stacks: type[nn.ModuleList | nn.Sequential] = nn.ModuleList
) -> None:
    """Let the layers of a model's stacks recompute their activations during backward.

    A stack is a direct child of the model. Layers change their class and keep their modules, so
    parameter names, state dicts and gradients stay the same.

    Args:
        model: The model to change in place.
        stacks: The container class of the stacks.
    """
    for stack in model.children():
        if not isinstance(stack, stacks):
            continue

        for layer in stack:
            _checkpoint_layer(layer)


def _checkpoint_layer(layer: nn.Module) -> None:
    """Mix `CheckpointedLayer` into the class of one layer; do nothing if it is mixed in already."""
    layer_class = type(layer)

    if issubclass(layer_class, CheckpointedLayer):
        return

    # A wrapper module would rename the parameters; a subclass keeps every name.
    name = f"Checkpointed{layer_class.__name__}"
    layer.__class__ = type(name, (CheckpointedLayer, layer_class), {})
