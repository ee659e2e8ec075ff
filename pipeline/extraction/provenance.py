"""Provenance of a product: settings, weights, libraries and code that determine its values."""

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
from pipeline.features.products import PRODUCTS
from pipeline.features.reduction import Reduction, load_mdetr_projection, parse_reduction
from pipeline.video.frames import is_decord_installed


def build_provenance(
    product: str, config: ExtractConfig, stored_provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the provenance of a product, without its reduction.

    Args:
        product: name of the product.
        config: section `extract`.
        stored_provenance: provenance of the product in the store, empty if the store lacks it. Its
            name of the weights is kept if the weights are the same, although the file has moved.

    Returns:
        Recipe version, library versions, encoder, weights, precision and sampling.

    Raises:
        InputError: the weights cannot be loaded.
    """
    spec = PRODUCTS[product]
    provenance: dict[str, Any] = {
        "recipe": spec.recipe_version,
        "versions": _get_versions(spec.libraries),
    }

    if spec.encoder is not None:
        backbone = get_backbone(product, config)
        source = backbone.source
        if stored_provenance.get("weights_digest") == backbone.digest:
            source = stored_provenance.get("weights", source)
        provenance["backbone"] = config.backbones
        provenance["weights"] = source
        provenance["weights_digest"] = backbone.digest
        provenance["precision"] = "float16" if runs_on_gpu(config) else "float32"
        if spec.encoder.has_slowfast_builds:
            provenance["slowfast"] = backbone.encoder.variant

    if spec.is_visual:
        provenance["sampling"] = {key: getattr(config.sampling, key) for key in spec.sampling_keys}
    return provenance


def expected_provenance(
    product: str, config: ExtractConfig, stored_provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the whole provenance that the settings ask for, as far as known before a fit.

    A projection is fitted once per store. A stored projection of the same name therefore counts as
    the requested one.

    Args:
        product: name of the product.
        config: section `extract`.
        stored_provenance: provenance of the product in the store, empty if the store lacks it.

    Returns:
        The provenance. It lacks the digest of a projection that is yet to be fitted.

    Raises:
        InputError: the weights or MDETR's projection cannot be loaded.
    """
    provenance = build_provenance(product, config, stored_provenance)
    if product not in config.reduce:
        return provenance

    spec = parse_reduction(config.reduce[product])
    if spec.checkpoint is not None:
        reduction = Reduction(load_mdetr_projection(spec.checkpoint), spec.int8)
        return provenance | {"reduction": reduction.provenance}

    stored_reduction = stored_provenance.get("reduction") or {}
    expected_reduction: dict[str, Any] = {"int8": spec.int8}
    if spec.method is not None:
        expected_reduction["basis"] = spec.projection_name
        if stored_reduction.get("basis") == spec.projection_name:
            expected_reduction["basis_digest"] = stored_reduction.get("basis_digest")
    return provenance | {"reduction": expected_reduction}


def runs_on_gpu(config: ExtractConfig) -> bool:
    """Return True if the encoders run on a GPU, and thus in float16.

    Args:
        config: section `extract`. With another scheduler the device is named in the settings: this
            machine may have other devices than the workers.
    """
    if config.device.startswith("cuda"):
        return True
    return config.scheduler is None and resolve_device(config.device).type == "cuda"


def check_worker_environment(job: Job) -> None:
    """Check that this worker process computes the same values as the run that planned a job.

    Args:
        job: the job.

    Raises:
        StoreError: a library, the code or the weights of this machine differ.
    """
    for product in job.missing:
        expected = job.provenance[product]
        actual = build_provenance(product, job.config, expected)

        # Pairs of this machine's value and the expected one, by description.
        comparisons = {}
        for name, library_version in actual["versions"].items():
            expected_version = expected["versions"].get(name)
            comparisons[f"{name} {library_version}"] = (library_version, expected_version)
        for name, expected_version in expected["versions"].items():
            if name not in actual["versions"]:
                comparisons[f"no {name}"] = (None, expected_version)
        for key in ("recipe", "weights_digest"):
            if key in actual:
                comparisons[f"{key} {actual[key]}"] = (actual[key], expected.get(key))

        for description, (actual_value, expected_value) in comparisons.items():
            if actual_value != expected_value:
                raise StoreError(
                    f"the worker on {socket.gethostname()} has {description}, but {product} of "
                    f"this store is made with {expected_value or 'none'}: install the same "
                    "versions, with the same weights, on every machine of the cluster"
                )


def _get_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the installed versions; decord is left out if PyAV replaces it."""
    versions = {}
    for name in libraries:
        if name != "decord" or is_decord_installed():
            versions[name] = version(name)
    return versions
