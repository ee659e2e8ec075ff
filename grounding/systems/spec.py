"""The description of a system that training and loading need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, Generic, TypeVar

from torch import Tensor, nn

from grounding.models.config import ModelConfig
from grounding.models.output import GroundingOutput
from grounding.structures.targets import LossNormalizers, Targets
from grounding.systems.config import TrainConfig
from grounding.systems.presets import Presets
from pipeline.features.reduction import Projection
from pipeline.weights.checkpoint_files import LoadReport

ModelT = TypeVar("ModelT", bound=nn.Module)
ModelConfigT = TypeVar("ModelConfigT", bound=ModelConfig)
OutputT = TypeVar("OutputT", bound=GroundingOutput)
LossConfigT = TypeVar("LossConfigT")

FeatureDims = tuple[int, int, int]
"""Channels of the stored (appearance, motion, text) features; 0 where a system reads none."""


def select_by_viou(model: ModelConfig) -> str:
    """Return m_vIoU.

    Args:
        model: Config of the model.

    Returns:
        The name of the metric.
    """
    return "m_vIoU"


def need_no_targets(model: ModelConfig) -> bool:
    """Return False: the forward pass takes no ground truth.

    Args:
        model: Config of the model.

    Returns:
        False.
    """
    return False


@dataclass(frozen=True, kw_only=True)
class SystemSpec(Generic[ModelT, ModelConfigT, OutputT, LossConfigT]):
    """One published system: its configs, model, loss and presets.

    Attributes:
        name: Name in section `train` and of `--model`.
        config_class: Class of section `train`, with the configs of the model and the loss.
        presets: Preset name → values of section `train`.
        build: Builds the model from feature channels and the model's config. Models that read
            images also take an image encoder, and a text encoder or None.
        loss: Computes losses from outputs, targets, the loss config and the normalizers of the
            global batch. Training minimizes the entry `loss`.
        load_pretrained: Loads the weights of a published checkpoint into the model. `Projection` is
            the PCA of a store with reduced appearance maps, or None.
        selection_metric: Returns the validation metric that selects the best checkpoint.
        needs_targets: Returns True if the forward pass takes the ground truth in training.
    """

    name: str
    config_class: type[TrainConfig]
    presets: Presets
    build: Callable[Concatenate[FeatureDims, ModelConfigT, ...], ModelT]
    loss: Callable[[OutputT, Targets, LossConfigT, LossNormalizers], dict[str, Tensor]]
    load_pretrained: Callable[[ModelT, Path, Projection | None], LoadReport]
    selection_metric: Callable[[ModelConfigT], str] = select_by_viou
    needs_targets: Callable[[ModelConfigT], bool] = need_no_targets
