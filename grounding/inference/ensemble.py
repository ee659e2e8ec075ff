"""The models of one or more runs that predict together.

The runs of an ensemble are trained on equal features and score the same clips or frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grounding.data.dataset import GroundingDataset
from grounding.models.config import ModelConfig
from grounding.systems.checkpoint import load_model
from grounding.systems.registry import get_tokenizer
from pipeline.errors import InputError, StoreError
from pipeline.store import Store


@dataclass(frozen=True)
class Ensemble:
    """Models in eval mode on one device, with their common input format.

    Attributes:
        runs: Run directories.
        models: One model per run.
        num_frames: T_s, frames per forward pass.
        num_clips: T_d, clips per forward pass. None if the models score frames.
        motion_product: Product of the motion maps, None if the models read no motion.
        reads_images: True if the models read images instead of appearance maps.
        precision: Training precision of the models, `float32` if they differ.
        provenance: Provenance of the first run.
    """

    runs: tuple[Path, ...]
    models: tuple[nn.Module, ...]
    num_frames: int
    num_clips: int | None
    motion_product: str | None
    reads_images: bool
    precision: str
    provenance: dict[str, Any]

    @classmethod
    def from_runs(
        cls, runs: Sequence[Path], device: torch.device, num_frames: int | None = None
    ) -> Ensemble:
        """Load the best checkpoints of runs.

        Args:
            runs: Run directories.
            device: Device of the models.
            num_frames: Frames per forward pass; by default as in training.

        Returns:
            The ensemble.

        Raises:
            InputError: A run has no checkpoint, or the runs do not fit together.
        """
        models = []
        configs: list[ModelConfig] = []
        precisions = []
        provenances = []
        for run in runs:
            model, train_config, provenance = load_model(run)
            models.append(model)
            configs.append(train_config.model)
            precisions.append(train_config.precision)
            provenances.append(provenance)

        # All runs must fit the first one.
        for run, config, provenance in zip(runs, configs, provenances, strict=True):
            _check_products(runs[0], provenances[0], run, provenance)
            _check_config(runs[0], configs[0], run, config, check_frames=num_frames is None)

        return cls(
            runs=tuple(runs),
            models=tuple(model.to(device) for model in models),
            num_frames=num_frames or configs[0].num_frames,
            num_clips=configs[0].num_clips,
            motion_product=configs[0].motion_product,
            reads_images=configs[0].uses_images,
            precision="float32" if "float32" in precisions else "bfloat16",
            provenance=provenances[0],
        )

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return next(self.models[0].parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of prediction.

        Returns:
            On a GPU the precision of validation in training, elsewhere float32.
        """
        uses_bfloat16 = self.device.type == "cuda" and self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bfloat16)

    @property
    def product_by_input(self) -> dict[str, str]:
        """Visual inputs of the models → store product of each."""
        products = {"appearance": "frames" if self.reads_images else "appearance"}
        if self.motion_product:
            products["motion"] = self.motion_product
        return products

    def load_dataset(self, store: Store, split: str) -> GroundingDataset:
        """Load the features of a split in the models' input format.

        Args:
            store: Feature store.
            split: Name of the split.

        Returns:
            The queries of the split with their features.

        Raises:
            StoreError: The features differ from those the runs were trained on, or are missing.
        """
        self.check_products(store)
        dataset = GroundingDataset.from_store(
            store.path,
            split,
            self.num_frames,
            self.num_clips,
            get_tokenizer(self.models[0]),
            self.motion_product,
            self.reads_images,
            self.device,
        )
        self.check_dims(store, dataset.dims)
        return dataset

    def check_products(self, store: Store) -> None:
        """Check that a store's features were extracted like those of the training.

        Args:
            store: Feature store.

        Raises:
            StoreError: Products are missing or differ. The message names all differences.
        """
        products = {name: product.provenance for name, product in store.products.items()}
        differences = describe_product_differences(self.provenance["products"], products)
        if differences:
            raise StoreError(
                f"store {store.path} does not fit run {self.runs[0]}: {'; '.join(differences)}:"
                " give the store it was trained on, or train again"
            )

    def check_dims(self, store: Store, dims: Sequence[int]) -> None:
        """Check the channels of a store's features.

        Args:
            store: Feature store, for the message.
            dims: Channels of the store's (appearance, motion, text) features.

        Raises:
            StoreError: The runs were trained on features of other channels.
        """
        expected_dims = self.provenance["dims"]
        if list(dims) != expected_dims:
            raise StoreError(
                f"store {store.path} has features of {tuple(dims)} channels,"
                f" run {self.runs[0]} was trained on {tuple(expected_dims)}"
            )


def _check_config(
    reference_run: Path,
    reference_config: ModelConfig,
    run: Path,
    config: ModelConfig,
    check_frames: bool,
) -> None:
    """Raise an InputError if two models score different units or, on request, other frames."""
    if config.num_clips != reference_config.num_clips:
        reference_units = _describe_scored_units(reference_config.num_clips)
        units = _describe_scored_units(config.num_clips)
        raise InputError(
            f"{reference_run} scores {reference_units} and {run} {units}: scores are averaged"
            " one by one, so the runs of an ensemble must score the same"
        )
    if check_frames and config.num_frames != reference_config.num_frames:
        raise InputError(
            f"{reference_run} was trained with {reference_config.num_frames} frames per pass and"
            f" {run} with {config.num_frames}: choose one number with --set frames=N"
        )


def _describe_scored_units(num_clips: int | None) -> str:
    """Return the units that a model scores, in words."""
    return "frames" if num_clips is None else f"the proposals of {num_clips} clips"


def _check_products(
    reference_run: Path,
    reference_provenance: Mapping[str, Any],
    run: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Raise an InputError if two runs were trained on different features."""
    differences = describe_product_differences(
        reference_provenance["products"], provenance["products"]
    )
    if _get_text_digest(provenance) != _get_text_digest(reference_provenance):
        differences.append("their text encoders, and so their tokenizers, have different weights")
    if provenance["dims"] != reference_provenance["dims"]:
        dims = tuple(provenance["dims"])
        reference_dims = tuple(reference_provenance["dims"])
        differences.append(f"features have {dims} channels, not {reference_dims}")
    if differences:
        raise InputError(
            f"run {run} does not fit run {reference_run}: {'; '.join(differences)}:"
            " the runs of an ensemble must fit one store"
        )


def _get_text_digest(provenance: Mapping[str, Any]) -> str | None:
    """Return the digest of a trained text encoder's initial weights, None without one."""
    # Provenance holds null where no encoders train.
    encoders = provenance.get("encoders") or {}
    return encoders.get("text")


def describe_product_differences(
    expected: Mapping[str, Mapping[str, Any]], actual: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Describe how products differ from the expected ones.

    Products that are not expected are ignored. Library versions may differ, because they change
    features by rounding only.

    Args:
        expected: Product name → expected provenance.
        actual: Product name → provenance.

    Returns:
        One line for each missing product and each different key of a product's provenance.
    """
    differences = []
    for name, expected_provenance in expected.items():
        if name not in actual:
            differences.append(f"{name} is absent")
            continue

        actual_provenance = actual[name]
        keys = (expected_provenance.keys() | actual_provenance.keys()) - {"versions"}
        for key in sorted(keys):
            actual_value = actual_provenance.get(key)
            expected_value = expected_provenance.get(key)
            if actual_value != expected_value:
                differences.append(f"{name} {key} is {actual_value!r}, not {expected_value!r}")
    return differences
