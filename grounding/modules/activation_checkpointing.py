"""Gradient checkpointing: memory for time."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def enable_activation_checkpointing(model: nn.Module) -> None:
    """`checkpoint_layers`, or what a model with encoders of its own does in its place."""
    getattr(model, "enable_activation_checkpointing", partial(checkpoint_layers, model))()


def checkpoint_layers(
    model: nn.Module, stacks: type[nn.ModuleList | nn.Sequential] = nn.ModuleList
) -> None:
    """From now on the layers of a model (the modules of its own `stacks`) keep only what goes in, and compute the rest
    again in the backward pass, dropout included. Names of parameters and gradients stay the same.
    """
    for layers in model.children():
        if isinstance(layers, stacks):
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
