"""What a product's values depend on, as the store records it: settings, weights, libraries, and how this code makes them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pipeline.devices import device_of
from pipeline.errors import StoreError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.shard_task import backbone_of
from pipeline.features.reduction import Reduction, mdetr_basis, parse_reduction
from pipeline.features.stream import VISUAL

RECIPES = {"appearance": 2, "motion": 2, "swin": 1, "frames": 1, "text": 1}
"""By product, how this code makes it: to be raised by whoever changes its values. A test compares some of them."""
SAMPLED_BY = {
    "appearance": ("fps", "short"),
    "swin": ("fps", "short"),
    "frames": ("fps", "short", "jpeg_quality"),
    "motion": ("clip_every", "clip_span", "pool_motion"),
}
"""The keys of `SamplingConfig` that determine a product."""


def provenance_of(product: str, config: ExtractConfig, held: Mapping[str, Any]) -> dict[str, Any]:
    """What a product is made of: encoder and weights, sampling, precision, library versions; all but its reduction.

    `held` is what the store says of it: weights that lie elsewhere now, or under another name, are still the same.
    """
    about: dict[str, Any] = {"recipe": RECIPES[product], "versions": {name: version(name) for name in _libraries(product)}}
    if product != "frames":
        backbone = backbone_of(product, config)
        same = held.get("weights_digest") == backbone.digest and "weights" in held
        source = held["weights"] if same else backbone.source
        about |= {"backbone": config.backbones, "weights": source, "weights_digest": backbone.digest}
        about["precision"] = "float16" if runs_on_gpu(config) else "float32"
        if product == "motion":
            about["slowfast"] = backbone.encoder.kind
    if product in VISUAL:
        about["sampling"] = {key: getattr(config.sampling, key) for key in SAMPLED_BY[product]}
    return about


def asked_of(product: str, config: ExtractConfig, held: Mapping[str, Any]) -> dict[str, Any]:
    """The whole provenance that the settings ask for, as far as it is known before a basis is fitted.

    A basis of the same name as that of `held` counts as that one: it is fitted once per store.
    """
    about = provenance_of(product, config, held)
    if product not in config.reduce:
        return about
    asked, before = parse_reduction(config.reduce[product]), held.get("reduction") or {}
    if asked.file is not None:
        return about | {"reduction": Reduction(mdetr_basis(asked.file), asked.int8).provenance}
    outline: dict[str, Any] = {"int8": asked.int8}
    if asked.source is not None:
        outline["basis"] = asked.origin
        if before.get("basis") == asked.origin:
            outline["basis_digest"] = before.get("basis_digest")
    return about | {"reduction": outline}


def runs_on_gpu(config: ExtractConfig) -> bool:
    """Whether networks run on a GPU, and in half precision. Workers of another scheduler are told, they do not choose."""
    return config.device.startswith("cuda") or (config.scheduler is None and device_of(config.device).type == "cuda")


def refuse_unlike_worker(job: Job) -> None:
    """A StoreError where this process, a worker on some machine, would make the job's products unlike the run that asks for them."""
    for product in job.lacking:
        asked = job.provenance[product]
        own = provenance_of(product, job.config, asked)
        facts = {f"{name} {of}": (of, asked["versions"].get(name)) for name, of in own["versions"].items()}
        facts |= {f"{key} {own[key]}": (own[key], asked.get(key)) for key in ("recipe", "weights_digest") if key in own}
        for has, (there, here) in facts.items():
            if there != here:
                raise StoreError(
                    f"the worker on {socket.gethostname()} has {has}, but {product} of this store is made with {here}: "
                    "install the same versions, with the same weights, on every machine of the cluster"
                )


def _libraries(product: str) -> list[str]:
    libraries = ["torch", "torchvision", *(("decord", "av") if product in VISUAL else ("tokenizers", "transformers"))]
    return [*libraries, "pillow"] if product == "frames" else libraries
