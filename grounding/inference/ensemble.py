"""The models of one run, or of several that answer together: made for the same features, saying alike when an event happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grounding.data.dataset import GroundingDataset
from grounding.systems.checkpoint import load_model
from grounding.systems.registry import get_tokenizer
from pipeline.errors import InputError, StoreError
from pipeline.store import Store


@dataclass(frozen=True)
class Ensemble:
    """Models in eval mode; `frames` (T_s) and `clips` (T_d; None: they answer by frames) are what they see at once, `motion` the
    product that motion comes from (None: they read none), `pictures` whether they are given these in the place of maps; `precision`
    that of their training, the finest where they differ; `about` is the first run's provenance.
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
        """The best checkpoints of these runs; `frames` by default as in training. InputError where they do not fit together."""
        models, recipes, known = zip(*(load_model(run) for run in runs), strict=True)
        configs = [recipe.model for recipe in recipes]
        for run, config, about in zip(runs, configs, known, strict=True):
            _check_compatible(runs[0], known[0], run, about)
            if config.clips != configs[0].clips:
                seen = f"{runs[0]} scores {_describe_scored_units(configs[0].clips)} and {run} {_describe_scored_units(config.clips)}"
                raise InputError(
                    f"{seen}: scores are averaged one by one, so the runs of an ensemble must score the same"
                )
            if num_frames is None and config.frames != configs[0].frames:
                seen = f"{runs[0]} was trained with {configs[0].frames} frames and {run} with {config.frames}"
                raise InputError(
                    f"{seen}: say how many all are to see at once, with --set frames=N"
                )
        placed = tuple(model.to(device) for model in models)
        c, precision = (
            configs[0],
            "float32" if any(recipe.precision == "float32" for recipe in recipes) else "bfloat16",
        )
        return cls(
            tuple(runs),
            placed,
            num_frames or c.frames,
            c.clips,
            c.motion,
            c.pictures,
            precision,
            known[0],
        )

    @property
    def device(self) -> torch.device:
        return next(self.models[0].parameters()).device

    def autocast(self) -> AbstractContextManager[Any]:
        """In which the models answer: on a GPU as precisely as they were validated in training, elsewhere in float32."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.device.type == "cuda" and self.precision == "bfloat16",
        )

    @property
    def product_by_input(self) -> dict[str, str]:
        """What the networks are given of a video, and the product that it comes from."""
        return {"appearance": "frames" if self.reads_images else "appearance"} | (
            {"motion": self.motion_product} if self.motion_product else {}
        )

    def load_dataset(self, store: Store, split: str) -> GroundingDataset:
        """The features of one split of a store, as the models take them; StoreError where they were made otherwise."""
        self.check_products(store)
        tokenize = get_tokenizer(self.models[0])
        features = GroundingDataset.from_store(
            store.path,
            split,
            self.num_frames,
            self.num_clips,
            tokenize,
            self.motion_product,
            self.reads_images,
            self.device,
        )
        self.check_dims(store, features.dims)
        return features

    def check_products(self, store: Store) -> None:
        """StoreError where a store's features were made otherwise than those the runs were trained on; it names all that differs."""
        found = {name: product.provenance for name, product in store.products.items()}
        if differs := describe_product_differences(self.provenance["products"], found):
            raise StoreError(
                f"store {store.path} does not fit run {self.runs[0]}: {'; '.join(differs)}: "
                "name the store it was trained on, or train again"
            )

    def check_dims(self, store: Store, dims: Sequence[int]) -> None:
        """StoreError where a store's features have other channels than those the runs were trained on."""
        own = self.provenance["dims"]
        if list(dims) != own:
            raise StoreError(
                f"store {store.path} has features of {tuple(dims)} channels, run {self.runs[0]} was trained on {tuple(own)}"
            )


def _describe_scored_units(num_clips: int | None) -> str:
    return "frames" if num_clips is None else f"the proposals of {num_clips} clips"


def _check_compatible(
    reference_run: Path,
    reference_provenance: Mapping[str, Any],
    run: Path,
    provenance: Mapping[str, Any],
) -> None:
    """InputError where two runs were trained on features made otherwise."""
    differs = describe_product_differences(reference_provenance["products"], provenance["products"])
    own, theirs = (
        (known.get("encoders") or {}).get("text") for known in (provenance, reference_provenance)
    )
    if own != theirs:
        differs.append("their text encoders, and so their tokenizers, are of other weights")
    if provenance["dims"] != reference_provenance["dims"]:
        differs.append(
            f"features have {tuple(provenance['dims'])} channels, not {tuple(reference_provenance['dims'])}"
        )
    if differs:
        raise InputError(
            f"run {run} does not fit run {reference_run}: {'; '.join(differs)}: the runs of an ensemble must fit one store"
        )


def describe_product_differences(
    expected: Mapping[str, Mapping[str, Any]], actual: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """How the features of `found` were made otherwise than those expected: one line for each key of a product's provenance.

    Products that are not expected may be there. Library versions may differ: they move features by rounding only.
    """
    differs = []
    for name, made_from in expected.items():
        if name not in actual:
            differs.append(f"{name} is absent")
            continue
        for key in sorted((made_from.keys() | actual[name].keys()) - {"versions"}):
            if made_from.get(key) != actual[name].get(key):
                differs.append(
                    f"{name} {key} is {actual[name].get(key)!r}, not {made_from.get(key)!r}"
                )
    return differs
