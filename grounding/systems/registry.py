"""The published systems by name, and the construction of their models and training configs.

A new system is a model (`grounding.models`), a loss (`grounding.losses`), a file with its training
config, presets and `SystemSpec` (such as `grounding.systems.costa`), and a line in `_SPECS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from grounding.data.sources import TokenizeFunction
from grounding.models.end_to_end import EndToEnd
from grounding.systems.cgstvg import CGSTVG
from grounding.systems.config import EncodersConfig, TrainConfig
from grounding.systems.costa import COSTA
from grounding.systems.csdvl import CSDVL, STVGFORMER
from grounding.systems.spec import SystemSpec
from pipeline.config import merge
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.weights.load import Backbone, load_backbone

AnySystemSpec = SystemSpec[Any, Any, Any, Any]

_SPECS: tuple[AnySystemSpec, ...] = (
    CSDVL,
    STVGFORMER,
    CGSTVG,
    COSTA,
)
SYSTEMS: dict[str, AnySystemSpec] = {spec.name: spec for spec in _SPECS}


def get_system(name: str) -> AnySystemSpec:
    """Return a system by name.

    Args:
        name: Name of the system, as in section `train`.

    Returns:
        The system.

    Raises:
        InputError: There is no system of this name. The message lists the names.
    """
    try:
        return SYSTEMS[name]
    except KeyError:
        raise InputError(
            f"there is no system {name!r}; the systems are {', '.join(SYSTEMS)}:"
            " give one with --model"
        ) from None


def get_preset(name: str, system: str = "csdvl") -> dict[str, Any]:
    """Return a preset of a system.

    Args:
        name: Name of the preset, such as a data set's.
        system: Name of the system.

    Returns:
        Values of section `train`, with the system's name.

    Raises:
        InputError: There is no such system or preset. The message lists the names.
    """
    presets = get_system(system).presets
    if name not in presets:
        raise InputError(
            f"there is no preset {name!r} of {system}; its presets are {', '.join(presets)}:"
            " give one with --preset"
        )
    return {"system": system, **presets[name]}


def apply_preset(
    section: Mapping[str, Any], preset_name: str | None, system: str, store: Path
) -> dict[str, Any]:
    """Merge the `train` section over a preset.

    The preset is chosen by (1) `preset_name`, (2) the section's `preset` key, (3) the store's data
    set name.

    Args:
        section: Values of section `train`; its key `preset` is dropped.
        preset_name: Name given with `--preset`, or None.
        system: Name of the system.
        store: Feature store, opened only for its data set's name.

    Returns:
        Values of section `train`.

    Raises:
        InputError: There is no such system or preset.
    """
    values = dict(section)
    section_preset = values.pop("preset", None)
    name = preset_name or section_preset or Store(store).manifest.dataset
    return merge(get_preset(name, system), values | {"system": system})


def build_model(config: TrainConfig, provenance: Mapping[str, Any]) -> nn.Module:
    """Build a run's model, with the image and text encoders if the run trains them.

    Args:
        config: The run's training config.
        provenance: The run's provenance: channels of the stored features, digests of the encoders'
            initial weights.

    Returns:
        The model with initial weights.

    Raises:
        InputError: The encoders' initial weights, or their tokenizer, differ from the provenance.
    """
    system = get_system(config.system)
    appearance_dim, motion_dim, text_dim = provenance["dims"]
    dims = (appearance_dim, motion_dim, text_dim)
    if config.encoders is None:
        return system.build(dims, config.model)

    # torchvision is slow to import, and models on cached features do without.
    from pipeline.encoders.appearance import AppearanceEncoder

    image_backbone, text_backbone = load_initial_encoders(config.encoders)
    image_digest, text_digest = provenance["encoders"].values()
    _check_digest(image_backbone, image_digest)
    image_encoder = image_backbone.encoder
    assert isinstance(image_encoder, AppearanceEncoder)

    text_encoder: TextEncoder | None = None
    if text_backbone is not None:
        _check_digest(text_backbone, text_digest)
        encoder = text_backbone.encoder
        assert isinstance(encoder, TextEncoder)
        text_encoder = encoder

    if config.model.uses_images:
        return system.build(dims, config.model, image_encoder, text_encoder)

    # The model reads the features of the encoders in front of it.
    assert text_encoder is not None
    encoded_dims = (image_encoder.channels, motion_dim, text_encoder.channels)
    network = system.build(encoded_dims, config.model)
    return EndToEnd(network, image_encoder, text_encoder)


def _check_digest(backbone: Backbone, expected_digest: str) -> None:
    """Raise an InputError if an encoder's initial weights are not those the run started from."""
    if backbone.digest != expected_digest:
        raise InputError(
            f"the run's encoder began with weights {backbone.source!r} of digest"
            f" {expected_digest[:12]}…, but the digest of these weights is now"
            f" {backbone.digest[:12]}…: restore the original weights and tokenizer"
        )


def load_initial_encoders(config: EncodersConfig) -> tuple[Backbone, Backbone | None]:
    """Load the encoders that training starts from.

    Args:
        config: Sizes and weights of the encoders.

    Returns:
        The image encoder, and the text encoder or None where token states are read from the store.

    Raises:
        InputError: The weights are missing or do not fit.
    """
    text_backbone = None
    if config.text is not None:
        text_backbone = load_backbone("text", config.backbones, config.text)
    image_backbone = load_backbone("appearance", config.backbones, config.image)
    return image_backbone, text_backbone


def get_tokenizer(model: nn.Module) -> TokenizeFunction | None:
    """Return the model's tokenizer, or None if it reads cached token states.

    Args:
        model: A model, with or without encoders.

    Returns:
        The tokenizer of the text encoder, or None.
    """
    text_encoder = getattr(model, "text_encoder", None)
    return text_encoder.tokenize if isinstance(text_encoder, TextEncoder) else None


def unwrap_encoders(model: nn.Module) -> nn.Module:
    """Return the network without the encoders in front of it.

    Args:
        model: A model, with or without encoders.

    Returns:
        The network that reads features or, for models that read images, the model itself.
    """
    return model.network if isinstance(model, EndToEnd) else model
