"""Where the backbones' weights come from.

| source | for | is |
| --- | --- | --- |
| `tiny` | tiny backbones | the small weights shipped with the project (see `stvg-pretrain-tiny`) |
| `random:SEED` | all | drawn from the seed |
| `torchvision` | appearance, swin | torchvision's own, from torch hub's cache: ResNet101 IMAGENET1K_V1, Swin3D_T KINETICS400_V1 |
| `torchvision:FILE` | appearance, swin | a state dict of torchvision's resnet101 or swin3d_t |
| `ava:FILE`, `kinetics:FILE` | motion | SlowFast R50 8x8 of pytorchvideo's model zoo; the network is built as the source's |
| `mdetr:FILE` | appearance | the ResNet-101 of MDETR's checkpoint |
| `mdetr:FILE+hf:DIR` | text | its RoBERTa, with the tokenizer of a Hugging Face folder |
| `hf:DIR` | text | a Hugging Face RoBERTa folder, which says what the network is |

Importing it stays light: torchvision, which takes longer than torch, is imported where a network of its is built.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.encoders.huggingface_roberta import (
    find_weights_file,
    read_architecture,
    read_tokenizer,
)
from pipeline.encoders.motion import MotionEncoder
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.weights.checkpoint_files import (
    STATE_DICT_LAYOUTS,
    LoadReport,
    load_strict,
    read_state_dict,
)
from pipeline.weights.sources import TINY_WEIGHTS_DIR, WeightSource, parse_source, slowfast_variant


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder with the digest of its weights, which is part of the store's provenance."""

    encoder: nn.Module
    source: str
    digest: str
    report: LoadReport


def load_backbone(product: str, size: str, weights: str, slowfast: str | None = None) -> Backbone:
    """Build the encoder of a product (`full` or `tiny`) with weights from a source, ready to run, with the report of what was loaded.

    `slowfast` is the motion network's build, `ava` (stride 16) or `kinetics` (stride 32): by default the source's own,
    and `ava` for sources that have none. `hf:DIR` decides its network's size itself.

    Raises InputError for a source that is unknown, does not fit the size or the build, cannot be read, or does not
    hold exactly the network's parameters and the leftovers that its format is known for.
    """
    source = parse_source(product, weights)
    build = slowfast_variant(source, slowfast) if product == "motion" else "ava"
    _check_size(product, size, source)
    with torch.random.fork_rng():
        torch.manual_seed(source.seed)
        encoder = (
            _build_text_encoder(size, source)
            if product == "text"
            else build_encoder(product, size, build)
        )
    report = _load_weights(
        encoder, product, source, f"{product} weights {weights} (--backbones {size})"
    )
    encoder.requires_grad_(False).eval()
    return Backbone(encoder, weights, compute_weights_digest(encoder, product), report)


def _check_size(product: str, size: str, source: WeightSource) -> None:
    if size == "tiny" and product == "swin":
        raise InputError(
            "there is no tiny swin: leave the product out, or use --backbones full with weights for it, such as swin=random:0"
        )
    if size != "tiny" and source.kind == "tiny":
        raise InputError(
            "the shipped weights fit --backbones tiny only: name weights for the full backbones, for example random:0"
        )
    if size == "tiny" and source.kind == "torchvision" and source.path is None:
        raise InputError(
            "torchvision's own weights are for --backbones full; the tiny backbones have weights 'tiny' and 'random:SEED'"
        )


def build_encoder(product: str, size: str, slowfast: str = "ava") -> nn.Module:
    """The encoder of a product with PyTorch's own initial weights."""
    if product == "appearance":
        from pipeline.encoders.appearance import AppearanceEncoder

        return AppearanceEncoder(size)
    if product == "swin":
        from pipeline.encoders.swin import SwinEncoder

        return SwinEncoder()
    return MotionEncoder(size, slowfast) if product == "motion" else TextEncoder(size)


def _build_text_encoder(size: str, source: WeightSource) -> TextEncoder:
    """RoBERTa of the size, or as its folder describes it, with the tokenizer that belongs to the weights."""
    folder = source.path if source.kind == "hf" else source.tokenizer_dir
    if folder is None:
        return TextEncoder(size)
    try:
        encoder = TextEncoder(size, read_architecture(folder) if source.kind == "hf" else None)
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{folder / 'config.json'} describes a network that cannot be built: {error}"
        ) from None
    config = encoder.roberta.config
    exactly = source.kind == "mdetr"
    encoder.tokenizer = read_tokenizer(folder).adapt_to_model(
        config.vocab_size, config.pad_token_id, config.max_position_embeddings, exactly
    )
    return encoder


def _load_weights(encoder: nn.Module, product: str, source: WeightSource, what: str) -> LoadReport:
    """Load the source's parameters into the encoder; `random` ones are there already."""
    if source.kind == "random":
        return LoadReport(f"{what}, drawn from the seed", len(encoder.state_dict()), ())
    if source.kind == "tiny":
        return load_strict(
            encoder,
            load_file(TINY_WEIGHTS_DIR / f"{product}.safetensors"),
            f"shipped {product} weights",
        )
    path = source.path or _get_torchvision_file(product)
    state = read_state_dict(source.kind, find_weights_file(path) if source.kind == "hf" else path)
    return load_strict(encoder, state, what, STATE_DICT_LAYOUTS[product, source.kind])


def _get_torchvision_file(product: str) -> Path:
    from pipeline.weights.torch_hub import get_torchvision_file

    return get_torchvision_file(product)


def compute_weights_digest(encoder: nn.Module, product: str) -> str:
    """SHA-256 over names, shapes and values of the state (and, for text, the tokenizer and a folder's settings)."""
    digest = hashlib.sha256()
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    if isinstance(encoder, TextEncoder):
        digest.update(encoder.fingerprint())
    return digest.hexdigest()
