"""What a product's values depend on, as the store records it: settings, weights, libraries, and how this code makes them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pipeline.devices import resolve_device
from pipeline.errors import StoreError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.shard_task import get_backbone
from pipeline.features.products import PRODUCTS
from pipeline.features.reduction import Reduction, load_mdetr_projection, parse_reduction


def build_provenance(
    product: str, config: ExtractConfig, stored_provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What a product is made of: encoder and weights, sampling, precision, library versions; all but its reduction.

    `held` is what the store says of it: weights that lie elsewhere now, or under another name, are still the same.
    """
    spec = PRODUCTS[product]
    about: dict[str, Any] = {
        "recipe": spec.recipe_version,
        "versions": {name: version(name) for name in spec.libraries},
    }
    if spec.encoder is not None:
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
        if spec.encoder.has_slowfast_builds:
            about["slowfast"] = backbone.encoder.variant
    if spec.is_visual:
        about["sampling"] = {key: getattr(config.sampling, key) for key in spec.sampling_keys}
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
            f"{key} {own[key]}": (own[key], asked.get(key))
            for key in ("recipe", "weights_digest")
            if key in own
        }
        for has, (there, here) in facts.items():
            if there != here:
                raise StoreError(
                    f"the worker on {socket.gethostname()} has {has}, but {product} of this store is made with {here}: "
                    "install the same versions, with the same weights, on every machine of the cluster"
                )
