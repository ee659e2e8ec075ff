"""The published systems by name: what training and loading need to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from grounding.losses import Targets, Totals, csdvl_loss
from grounding.mdetr import initialise_from_mdetr
from grounding.models.csdvl import Csdvl
from grounding.presets import CSDVL, STVGFORMER
from grounding.recipe import Recipe, TrainConfig
from pipeline.errors import InputError
from pipeline.reduce import Basis


@dataclass(frozen=True)
class System:
    """One row of the table. `config` is its section `train`, with the network's and the losses' configs in it."""

    config: type[Recipe]
    build: Callable[[tuple[int, int, int], Any], nn.Module]
    """From the stored features' channels (appearance, motion, text) and `config.model`."""
    loss: Callable[[Any, Targets, Any, Totals], dict[str, Tensor]]
    """Of the network's outputs, with `config.loss`; the key `loss` is what training minimises."""
    initialise: Callable[[Any, Path, Basis | None], object]
    """Loads published weights into what it has of them; the basis is that of a reduced store's appearance maps. Gives a report."""
    presets: dict[str, dict[str, Any]]


SYSTEMS = {
    "csdvl": System(TrainConfig, Csdvl, csdvl_loss, initialise_from_mdetr, CSDVL),
    "stvgformer": System(TrainConfig, Csdvl, csdvl_loss, initialise_from_mdetr, STVGFORMER),
}


def system_of(name: str) -> System:
    """A system by name; an InputError lists the names there are."""
    try:
        return SYSTEMS[name]
    except KeyError:
        raise InputError(f"there is no system {name!r}; the systems are {', '.join(SYSTEMS)}: name one with --model") from None


def preset(name: str, system: str = "csdvl") -> dict[str, Any]:
    """A system's values of section `train` for a data set; an InputError lists the presets there are."""
    presets = system_of(system).presets
    if name not in presets:
        raise InputError(f"there is no preset {name!r} of {system}; its presets are {', '.join(presets)}: name one with --preset")
    return {"system": system, **presets[name]}
