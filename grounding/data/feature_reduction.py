"""Reduction of stored features: the projections that a run keeps for new videos.

A run keeps a copy of the projections of its store, so that features of new videos are reduced
exactly as the store's own were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from pipeline.errors import InputError, StoreError
from pipeline.features.reduction import Projection, Reduction
from pipeline.io.atomic import atomic_write
from pipeline.store.layout import PROJECTION_FILE
from pipeline.store.quantization import SCALE_COLUMN, dequantize

PROJECTIONS_FOLDER = "basis"
"""Folder of a run: `basis/<product>.safetensors`."""


def read_projections(store: Path, products: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Read the projection files of a store.

    Args:
        store: The store.
        products: Provenance of each product.

    Returns:
        Content of the projection file of each projected product.

    Raises:
        StoreError: If a file is missing or differs from the one that the shards were made with.
    """
    contents = {}
    for product, digest in _get_projection_digests(products).items():
        path = Path(store) / product / PROJECTION_FILE
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            problem = "is not the one its shards were made with" if content else "does not exist"
            raise StoreError(f"{path} {problem}: restore it, or extract into another --store")
        contents[product] = content
    return contents


def save_projections(run: Path, projections: Mapping[str, bytes]) -> None:
    """Write projection files into a run.

    Args:
        run: The run directory.
        projections: Content of the file of each product, from `read_projections`.
    """
    for product, content in projections.items():
        folder = run / PROJECTIONS_FOLDER
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / f"{product}.safetensors") as part:
            part.write_bytes(content)


def load_reduction(run: Path, product: str, provenance: Mapping[str, Any]) -> Reduction | None:
    """Load the reduction of a run's features.

    Args:
        run: The run directory.
        product: Name of the product.
        provenance: Provenance of the product.

    Returns:
        The reduction; None if the features were stored as extracted.

    Raises:
        InputError: If the projection file is missing or differs from that of the training.
    """
    settings = provenance.get("reduction") or {}
    digest = _get_projection_digests({product: provenance}).get(product)
    if digest is None:
        return Reduction(None, settings["int8"]) if settings else None

    # Check the file that the run keeps.
    path = run / PROJECTIONS_FOLDER / f"{product}.safetensors"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        problem = "is not the one the run was trained with" if content else "does not exist"
        raise InputError(
            f"{path} {problem}: put {product}/{PROJECTION_FILE} of its store there, or train again"
        )

    tensors = load(content)
    projection = Projection(tensors["mean"], tensors["matrix"], tensors["bias"], settings["basis"])
    return Reduction(projection, settings["int8"])


def apply_reduction(rows: np.ndarray, reduction: Reduction | None) -> np.ndarray:
    """Reduce maps as a store would, to the last bit.

    Args:
        rows: [n, h, w, C], maps as extracted.
        reduction: The reduction; None to return the maps unchanged.

    Returns:
        [n, h, w, K], float16, as read from a store with this reduction.
    """
    if reduction is None:
        return rows

    reduced, columns = reduction.apply(rows)
    if SCALE_COLUMN not in columns:
        return reduced
    return dequantize(reduced, columns[SCALE_COLUMN], np.empty(reduced.shape, np.float16))


def _get_projection_digests(products: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the recorded digest of each projected product's projection file."""
    digests = {}
    for product, provenance in products.items():
        settings = provenance.get("reduction") or {}
        if "basis_digest" in settings:
            digests[product] = settings["basis_digest"]
    return digests
