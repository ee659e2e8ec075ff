"""Where the backbones' weights come from, and the strict report of what was loaded.

`tiny` are the small weights shipped with the project (see `stvg-pretrain-tiny`); `random:SEED` draws them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.motion import MotionEncoder
from pipeline.encoders.text import TOKENIZER, TextEncoder
from pipeline.errors import InputError

TINY = Path(__file__).parent / "encoders" / "tiny"
PRODUCTS = ("appearance", "motion", "text")


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder with the digest of its weights, which is part of the store's provenance."""

    encoder: nn.Module
    source: str
    digest: str


def load_backbone(product: str, size: str, weights: str, slowfast: str = "ava") -> Backbone:
    """Build the encoder of a product (`full` or `tiny`) with weights `tiny` or `random:SEED`, ready to run.

    `slowfast` is the motion network's build: `ava` (stride 16) or `kinetics` (stride 32); `tiny` weights are for `ava`.

    Raises InputError for a source that is unknown or does not fit the size.
    """
    if weights == "tiny":
        if size != "tiny":
            raise InputError("the shipped weights fit --backbones tiny only: name weights for the full backbones, for example random:0")
        encoder = build_encoder(product, size, slowfast)
        load_strictly(encoder, load_file(TINY / f"{product}.safetensors"), f"shipped {product} weights")
    elif weights.startswith("random:") and weights[7:].isdecimal() and int(weights[7:]) < 1 << 63:
        with torch.random.fork_rng():
            torch.manual_seed(int(weights[7:]))
            encoder = build_encoder(product, size, slowfast)
    else:
        raise InputError(
            f"weights {weights!r} for {product}: allowed are 'tiny' (with --backbones tiny) and 'random:SEED' (for example random:0)"
        )
    encoder.requires_grad_(False).eval()
    return Backbone(encoder, weights, weights_digest(encoder, product))


def device_of(name: str) -> torch.device:
    """The device `auto` (the GPU where there is one), or the one named; an InputError where it is not there."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"device {name!r} is not here: allowed are auto, cpu, and cuda where there is a GPU") from None
    return device


def build_encoder(product: str, size: str, slowfast: str = "ava") -> nn.Module:
    """The encoder of a product with PyTorch's own initial weights."""
    if product == "appearance":
        return AppearanceEncoder(size)
    if product == "motion":
        return MotionEncoder(size, slowfast)
    return TextEncoder(size)


def load_strictly(module: nn.Module, state: dict[str, torch.Tensor], what: str) -> None:
    """Load every parameter; missing, unexpected and misshapen ones are an error that lists them."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or misshapen:
        raise InputError(f"{what} do not fit: missing {missing[:5]}, unexpected {unexpected[:5]}, other shape {misshapen[:5]}")
    module.load_state_dict(state)


def weights_digest(encoder: nn.Module, product: str) -> str:
    """SHA-256 over names, shapes and values of the state (and the tokenizer, for text)."""
    digest = hashlib.sha256()
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    if product == "text":
        digest.update(TOKENIZER.read_bytes())
    return digest.hexdigest()
