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
    frames: int
    clips: int | None
    motion: str | None
    pictures: bool
    precision: str
    about: dict[str, Any]

    @classmethod
    def of_runs(
        cls, runs: Sequence[Path], device: torch.device, frames: int | None = None
    ) -> Ensemble:
        """The best checkpoints of these runs; `frames` by default as in training. InputError where they do not fit together."""
        models, recipes, known = zip(*(load_model(run) for run in runs), strict=True)
        configs = [recipe.model for recipe in recipes]
        for run, config, about in zip(runs, configs, known, strict=True):
            _refuse_misfit(runs[0], known[0], run, about)
            if config.clips != configs[0].clips:
                seen = f"{runs[0]} scores {_scored(configs[0].clips)} and {run} {_scored(config.clips)}"
                raise InputError(
                    f"{seen}: scores are averaged one by one, so the runs of an ensemble must score the same"
                )
            if frames is None and config.frames != configs[0].frames:
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
            frames or c.frames,
            c.clips,
            c.motion,
            c.pictures,
            precision,
            known[0],
        )

    @property
    def device(self) -> torch.device:
        return next(self.models[0].parameters()).device

    def computing(self) -> AbstractContextManager[Any]:
        """In which the models answer: on a GPU as precisely as they were validated in training, elsewhere in float32."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.device.type == "cuda" and self.precision == "bfloat16",
        )

    @property
    def roles(self) -> dict[str, str]:
        """What the networks are given of a video, and the product that it comes from."""
        return {"appearance": "frames" if self.pictures else "appearance"} | (
            {"motion": self.motion} if self.motion else {}
        )

    def features_of(self, store: Store, split: str) -> GroundingDataset:
        """The features of one split of a store, as the models take them; StoreError where they were made otherwise."""
        self.refuse_products(store)
        tokenize = get_tokenizer(self.models[0])
        features = GroundingDataset.from_store(
            store.path,
            split,
            self.frames,
            self.clips,
            tokenize,
            self.motion,
            self.pictures,
            self.device,
        )
        self.refuse_dims(store, features.dims)
        return features

    def refuse_products(self, store: Store) -> None:
        """StoreError where a store's features were made otherwise than those the runs were trained on; it names all that differs."""
        found = {name: product.provenance for name, product in store.products.items()}
        if differs := differences(self.about["products"], found):
            raise StoreError(
                f"store {store.path} does not fit run {self.runs[0]}: {'; '.join(differs)}: "
                "name the store it was trained on, or train again"
            )

    def refuse_dims(self, store: Store, dims: Sequence[int]) -> None:
        """StoreError where a store's features have other channels than those the runs were trained on."""
        own = self.about["dims"]
        if list(dims) != own:
            raise StoreError(
                f"store {store.path} has features of {tuple(dims)} channels, run {self.runs[0]} was trained on {tuple(own)}"
            )


def _scored(clips: int | None) -> str:
    return "frames" if clips is None else f"the proposals of {clips} clips"


def _refuse_misfit(
    first: Path, expected: Mapping[str, Any], run: Path, about: Mapping[str, Any]
) -> None:
    """InputError where two runs were trained on features made otherwise."""
    differs = differences(expected["products"], about["products"])
    own, theirs = ((known.get("encoders") or {}).get("text") for known in (about, expected))
    if own != theirs:
        differs.append("their text encoders, and so their tokenizers, are of other weights")
    if about["dims"] != expected["dims"]:
        differs.append(
            f"features have {tuple(about['dims'])} channels, not {tuple(expected['dims'])}"
        )
    if differs:
        raise InputError(
            f"run {run} does not fit run {first}: {'; '.join(differs)}: the runs of an ensemble must fit one store"
        )


def differences(
    expected: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """How the features of `found` were made otherwise than those expected: one line for each key of a product's provenance.

    Products that are not expected may be there. Library versions may differ: they move features by rounding only.
    """
    differs = []
    for name, made_from in expected.items():
        if name not in found:
            differs.append(f"{name} is absent")
            continue
        for key in sorted((made_from.keys() | found[name].keys()) - {"versions"}):
            if made_from.get(key) != found[name].get(key):
                differs.append(
                    f"{name} {key} is {found[name].get(key)!r}, not {made_from.get(key)!r}"
                )
    return differs
