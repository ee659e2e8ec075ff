"""The published systems by name: what training and loading need to know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grounding.data.sources import TokenizeFunction
from grounding.losses.cgstvg import cgstvg_loss
from grounding.losses.costa import costa_loss
from grounding.losses.csdvl import csdvl_loss
from grounding.models.cgstvg import Cgstvg
from grounding.models.costa import Costa, CostaConfig
from grounding.models.csdvl import Csdvl, CsdvlConfig
from grounding.models.end_to_end import EndToEnd
from grounding.structures.targets import LossNormalizers, Targets
from grounding.systems.config import (
    CgstvgTrainConfig,
    CostaTrainConfig,
    CsdvlTrainConfig,
    EncodersConfig,
    TrainConfig,
)
from grounding.systems.mdetr_weights import initialize_from_mdetr
from grounding.systems.presets import (
    CGSTVG_PRESETS,
    COSTA_PRESETS,
    CSDVL_PRESETS,
    STVGFORMER_PRESETS,
)
from pipeline.config import merge
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.features.reduction import Projection
from pipeline.store import Store
from pipeline.weights.load import Backbone, load_backbone


@dataclass(frozen=True)
class System:
    """One row of the table. `config` is its section `train`, with the network's and the losses' configs in it."""

    config_class: type[TrainConfig]
    build: Callable[..., nn.Module]
    """From the stored features' channels (appearance, motion, text) and `config.model`; of a network that is given pictures also
    from its image encoder, and from its text encoder, or None where token states are stored."""
    loss: Callable[[Any, Targets, Any, LossNormalizers], dict[str, Tensor]]
    """Of the network's outputs, with `config.loss`; the key `loss` is what training minimises."""
    load_pretrained: Callable[[Any, Path, Projection | None], object]
    """Loads published weights into what it has of them; the basis is that of a reduced store's appearance maps. Gives a report."""
    presets: dict[str, dict[str, Any]]
    selection_metric: Callable[[Any], str]
    """From `config.model` to the mean that chooses the best checkpoint."""
    needs_targets: Callable[[Any], bool]
    """Whether, by `config.model`, the network looks at the truth in training."""


def build_model(config: TrainConfig, provenance: Mapping[str, Any]) -> nn.Module:
    """A run's network, with the encoders that train before it, or without; `about` is the run's provenance.

    An InputError where the encoders' first weights, or the tokenizer that came with them, are not those the run began with.
    """
    system, dims = get_system(config.system), tuple(provenance["dims"])
    if config.encoders is None:
        return system.build(dims, config.model)
    from pipeline.encoders.appearance import (
        AppearanceEncoder,
    )  # takes torchvision, which networks on features need not wait for

    first = load_initial_encoders(config.encoders)
    for backbone, digest in zip(first, provenance["encoders"].values(), strict=True):
        if backbone is not None and backbone.digest != digest:
            raise InputError(
                f"the run's encoder began with weights {backbone.source!r} of digest {digest[:12]}…, but these are {backbone.digest[:12]}…"
                " here: put the same weights, and tokenizer, back"
            )
    image, text = (None if backbone is None else backbone.encoder for backbone in first)
    assert isinstance(image, AppearanceEncoder)
    assert isinstance(text, TextEncoder | None)
    if config.model.uses_images:
        return system.build(dims, config.model, image, text)
    assert text is not None
    return EndToEnd(
        system.build((image.channels, dims[1], text.channels), config.model), image, text
    )


def load_initial_encoders(config: EncodersConfig) -> tuple[Backbone, Backbone | None]:
    """The image and the text encoder that training begins with; None where token states are stored."""
    text = None if config.text is None else load_backbone("text", config.backbones, config.text)
    return load_backbone("appearance", config.backbones, config.image), text


def get_tokenizer(model: nn.Module) -> TokenizeFunction | None:
    """How a model that reads tokens wants sentences; None for one that reads token states."""
    text_encoder = getattr(model, "text_encoder", None)
    return text_encoder.tokenize if isinstance(text_encoder, TextEncoder) else None


def unwrap_encoders(model: nn.Module) -> nn.Module:
    """The network of a system without encoders before it."""
    return model.network if isinstance(model, EndToEnd) else model


def _csdvl_selection_metric(model: CsdvlConfig) -> str:
    """The dynamic stream alone finds no boxes."""
    return "m_tIoU" if model.streams == "dynamic" else "m_vIoU"


def _reject_mdetr(
    system_name: str, instruction: str
) -> Callable[[Any, Path, Projection | None], object]:
    """For systems that have nothing of MDETR's transformer."""

    def refuse(model: Any, path: Path, basis: Projection | None) -> object:
        raise InputError(
            f"initialise {path}: of MDETR {system_name} takes the image and the text encoder alone: {instruction}, initialise=null"
        )

    return refuse


def _costa_needs_targets(model: CostaConfig) -> bool:
    return model.entangled_queries and model.teacher_forcing_rate > 0


SYSTEMS = {
    name: System(
        CsdvlTrainConfig,
        Csdvl,
        csdvl_loss,
        initialize_from_mdetr,
        presets,
        _csdvl_selection_metric,
        lambda model: False,
    )
    for name, presets in (("csdvl", CSDVL_PRESETS), ("stvgformer", STVGFORMER_PRESETS))
} | {
    "cgstvg": System(
        CgstvgTrainConfig,
        Cgstvg,
        cgstvg_loss,
        _reject_mdetr("CG-STVG", "extract with weights mdetr:FILE"),
        CGSTVG_PRESETS,
        lambda model: "m_vIoU",
        lambda model: model.teacher_iou is not None,
    ),
    "costa": System(
        CostaTrainConfig,
        Costa,
        costa_loss,
        _reject_mdetr("CoSTA", "encoders.image=mdetr:FILE"),
        COSTA_PRESETS,
        lambda model: "m_vIoU",
        _costa_needs_targets,
    ),
}


def get_system(name: str) -> System:
    """A system by name; an InputError lists the names there are."""
    try:
        return SYSTEMS[name]
    except KeyError:
        raise InputError(
            f"there is no system {name!r}; the systems are {', '.join(SYSTEMS)}: name one with --model"
        ) from None


def apply_preset(
    section: Mapping[str, Any], preset_name: str | None, system: str, store: Path
) -> dict[str, Any]:
    """Section `train` with a preset under it: the one `named`, else the section's own `preset`, else that of the store's data set."""
    values = dict(section)
    written = values.pop("preset", None)
    return merge(
        get_preset(preset_name or written or Store(store).manifest.dataset, system),
        values | {"system": system},
    )


def get_preset(name: str, system: str = "csdvl") -> dict[str, Any]:
    """A system's values of section `train` for a data set; an InputError lists the presets there are."""
    presets = get_system(system).presets
    if name not in presets:
        raise InputError(
            f"there is no preset {name!r} of {system}; its presets are {', '.join(presets)}: name one with --preset"
        )
    return {"system": system, **presets[name]}
