"""Frozen encoders with weights from a source.

Sources, and the products that accept them:

- `tiny` (tiny backbones): the weights shipped with the project, see `stvg-pretrain-tiny`.
- `random:SEED` (all): initial weights drawn from the seed.
- `torchvision` (appearance, swin): torchvision's weights from torch hub's cache, ResNet101
  IMAGENET1K_V1 and Swin3D_T KINETICS400_V1.
- `torchvision:FILE` (appearance, swin): a state dict of torchvision's resnet101 or swin3d_t.
- `ava:FILE`, `kinetics:FILE` (motion): SlowFast R50 8x8 of pytorchvideo's model zoo. The source
  determines the network's build.
- `mdetr:FILE` (appearance): the ResNet-101 of MDETR's checkpoint.
- `mdetr:FILE+hf:DIR` (text): the RoBERTa of MDETR's checkpoint, with the tokenizer of a Hugging
  Face directory.
- `hf:DIR` (text): a Hugging Face RoBERTa directory, which also determines the architecture.

torchvision takes longer to import than torch. It is imported only where a network of it is built.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.encoders.huggingface_roberta import find_weights_file
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.weights.checkpoint_files import LoadReport, load_strict, read_state_dict
from pipeline.weights.encoder_specs import ENCODERS, EncoderOptions, EncoderSpec
from pipeline.weights.sources import TINY_WEIGHTS_DIR, WeightSource, parse_source, slowfast_variant


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder and the origin of its weights.

    Attributes:
        encoder: the network, in evaluation mode, without gradients.
        source: the source of the weights, as the settings give it.
        digest: SHA-256 of the weights, part of the store's provenance.
        report: names of the loaded and ignored parameters.
    """

    encoder: nn.Module
    source: str
    digest: str
    report: LoadReport


def load_backbone(product: str, size: str, weights: str, slowfast: str | None = None) -> Backbone:
    """Build the encoder of a product and load its weights.

    Args:
        product: name of a product with an encoder.
        size: `full` or `tiny`. The source `hf:DIR` determines the network's size itself.
        weights: the source of the weights.
        slowfast: build of the motion network, `ava` (stride 16) or `kinetics` (stride 32); None for
            the source's build, or `ava` if the source has none.

    Returns:
        The frozen encoder.

    Raises:
        InputError: the source is unknown, does not fit the size or the build, cannot be read, or
            its parameters are not exactly the network's and the known ignored ones.
    """
    spec = ENCODERS[product]
    source = parse_source(product, weights)
    variant = slowfast_variant(source, slowfast) if spec.has_slowfast_builds else "ava"
    _check_size(spec, size, source)

    is_huggingface = source.kind == "hf"
    options = EncoderOptions(
        size,
        variant,
        architecture_dir=source.path if is_huggingface else None,
        tokenizer_dir=source.path if is_huggingface else source.tokenizer_dir,
    )
    # The initial weights depend on the seed alone, and the caller's generator is not advanced.
    with torch.random.fork_rng():
        torch.manual_seed(source.seed)
        encoder = spec.build(options)

    description = f"{product} weights {weights} (--backbones {size})"
    report = _load_weights(encoder, spec, source, description)
    encoder.requires_grad_(False).eval()
    return Backbone(encoder, weights, compute_weights_digest(encoder, product), report)


def _check_size(spec: EncoderSpec, size: str, source: WeightSource) -> None:
    """Raise InputError if there is no such encoder, or the weights are for the other size."""
    if size == "tiny" and not spec.has_tiny_size:
        raise InputError(
            f"there is no tiny {spec.name}: leave the product out, or use --backbones full with "
            f"weights for it, such as {spec.name}=random:0"
        )
    if size != "tiny" and source.kind == "tiny":
        raise InputError(
            "the shipped weights fit --backbones tiny only: give weights for the full backbones, "
            "for example random:0"
        )
    if size == "tiny" and source.kind == "torchvision" and source.path is None:
        raise InputError(
            "torchvision's own weights are for --backbones full; the tiny backbones have weights "
            "'tiny' and 'random:SEED'"
        )


def build_encoder(product: str, size: str, slowfast: str = "ava") -> nn.Module:
    """Build the encoder of a product with PyTorch's initial weights.

    Args:
        product: name of a product with an encoder.
        size: `full` or `tiny`.
        slowfast: build of the motion network, `ava` or `kinetics`.

    Returns:
        The network, in training mode.
    """
    return ENCODERS[product].build(EncoderOptions(size, slowfast))


def _load_weights(
    encoder: nn.Module, spec: EncoderSpec, source: WeightSource, description: str
) -> LoadReport:
    """Load the parameters of the source into the encoder."""
    if source.kind == "random":  # the encoder was built with them
        num_parameters = len(encoder.state_dict())
        return LoadReport(f"{description}, drawn from the seed", num_parameters, ())

    if source.kind == "tiny":
        state = load_file(TINY_WEIGHTS_DIR / f"{spec.name}.safetensors")
        return load_strict(encoder, state, f"shipped {spec.name} weights")

    path = source.path or _get_torchvision_file(spec.name)
    if source.kind == "hf":
        path = find_weights_file(path)
    state = read_state_dict(source.kind, path)
    return load_strict(encoder, state, description, spec.state_dict_layouts[source.kind])


def _get_torchvision_file(product: str) -> Path:
    """Return the file of torchvision's weights; torchvision is imported here only."""
    from pipeline.weights.torch_hub import get_torchvision_file

    return get_torchvision_file(product)


def compute_weights_digest(encoder: nn.Module, product: str) -> str:
    """Compute the SHA-256 of an encoder's weights.

    Args:
        encoder: the network.
        product: name of the product that the network computes.

    Returns:
        The hexadecimal digest of names, types, shapes and values of the state. For text the
        tokenizer and the settings of its directory are included.
    """
    digest = hashlib.sha256()
    for key, value in sorted(encoder.state_dict().items()):
        header = json.dumps([key, str(value.dtype), list(value.shape)])
        digest.update(header.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())

    if isinstance(encoder, TextEncoder):
        digest.update(encoder.fingerprint())
    return digest.hexdigest()
