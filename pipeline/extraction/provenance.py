"""What a product's values depend on, as the store records it: settings, weights, libraries, and how this code makes them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pipeline.devices import resolve_device
from pipeline.errors import StoreError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.shard_task import get_backbone
from pipeline.features.reduction import Reduction, load_mdetr_projection, parse_reduction
from pipeline.features.stream import VISUAL_PRODUCTS
from pipeline.video.frames import is_decord_installed

RECIPE_VERSIONS = {"appearance": 2, "motion": 2, "swin": 1, "frames": 1, "text": 1}
"""By product, how this code makes it: to be raised by whoever changes its values. A test compares some of them."""
SAMPLING_KEYS = {
    "appearance": ("fps", "short_side"),
    "swin": ("fps", "short_side"),
    "frames": ("fps", "short_side", "jpeg_quality"),
    "motion": ("clip_stride_seconds", "clip_seconds", "pool_motion_2x2"),
}
"""The keys of `SamplingConfig` that determine a product."""


def build_provenance(
    product: str, config: ExtractConfig, stored_provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What a product is made of: encoder and weights, sampling, precision, library versions; all but its reduction.

    `held` is what the store says of it: weights that lie elsewhere now, or under another name, are still the same.
    """
    about: dict[str, Any] = {
        "recipe": RECIPE_VERSIONS[product],
        "versions": _get_versions(_list_libraries(product)),
    }
    if product != "frames":
        backbone = get_backbone(product, config)
        same = (
            stored_provenance.get("weights_digest") == backbone.digest
            and "weights" in stored_provenance
        )
        source = stored_provenance["weights"] if same else backbone.source
        about |= {
            "backbone": config.backbones,
            "weights": source,
            "weights_digest": backbone.digest,
        }
        about["precision"] = "float16" if runs_on_gpu(config) else "float32"
        if product == "motion":
            about["slowfast"] = backbone.encoder.variant
    if product in VISUAL_PRODUCTS:
        about["sampling"] = {key: getattr(config.sampling, key) for key in SAMPLING_KEYS[product]}
    return about


def expected_provenance(
    product: str, config: ExtractConfig, stored_provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole provenance that the settings ask for, as far as it is known before a basis is fitted.

    A basis of the same name as that of `held` counts as that one: it is fitted once per store.
    """
    about = build_provenance(product, config, stored_provenance)
    if product not in config.reduce:
        return about
    asked, before = (
        parse_reduction(config.reduce[product]),
        stored_provenance.get("reduction") or {},
    )
    if asked.checkpoint is not None:
        return about | {
            "reduction": Reduction(load_mdetr_projection(asked.checkpoint), asked.int8).provenance
        }
    outline: dict[str, Any] = {"int8": asked.int8}
    if asked.method is not None:
        outline["basis"] = asked.projection_name
        if before.get("basis") == asked.projection_name:
            outline["basis_digest"] = before.get("basis_digest")
    return about | {"reduction": outline}


def runs_on_gpu(config: ExtractConfig) -> bool:
    """Whether networks run on a GPU, and in half precision. Workers of another scheduler are told, they do not choose."""
    return config.device.startswith("cuda") or (
        config.scheduler is None and resolve_device(config.device).type == "cuda"
    )


def check_worker_environment(job: Job) -> None:
    """A StoreError where this process, a worker on some machine, would make the job's products unlike the run that asks for them."""
    for product in job.missing:
        asked = job.provenance[product]
        own = build_provenance(product, job.config, asked)
        facts = {
            f"{name} {of}": (of, asked["versions"].get(name))
            for name, of in own["versions"].items()
        }
        facts |= {
            f"no {name}": (None, of)
            for name, of in asked["versions"].items()
            if name not in own["versions"]
        }
        facts |= {
            f"{key} {own[key]}": (own[key], asked.get(key))
            for key in ("recipe", "weights_digest")
            if key in own
        }
        for has, (there, here) in facts.items():
            if there != here:
                raise StoreError(
                    f"the worker on {socket.gethostname()} has {has}, but {product} of this store is made with {here or 'none'}: "
                    "install the same versions, with the same weights, on every machine of the cluster"
                )


def _list_libraries(product: str) -> list[str]:
    libraries = [
        "torch",
        "torchvision",
        *(("decord", "av") if product in VISUAL_PRODUCTS else ("tokenizers", "transformers")),
    ]
    return [*libraries, "pillow"] if product == "frames" else libraries


def _get_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the installed versions; decord is left out if PyAV replaces it."""
    versions = {}
    for name in libraries:
        if name != "decord" or is_decord_installed():
            versions[name] = version(name)
    return versions
