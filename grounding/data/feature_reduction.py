"""The projections that a run's features went through: a run keeps them, so that new videos come out as the store's own did."""

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
"""In a run: `basis/<product>.safetensors`."""


def read_projections(store: Path, products: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of those `products` (name → provenance) that were projected; a StoreError where one is not what it was."""
    found = {}
    for product, digest in _get_projection_digests(products).items():
        path = Path(store) / product / PROJECTION_FILE
        found[product] = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(found[product]).hexdigest() != digest:
            problem = (
                "is not the one its shards were made with" if found[product] else "does not exist"
            )
            raise StoreError(f"{path} {problem}: restore it, or extract into another --store")
    return found


def save_projections(run: Path, projections: Mapping[str, bytes]) -> None:
    """Put the files of `read_projections` into a run."""
    for product, content in projections.items():
        (run / PROJECTIONS_FOLDER).mkdir(exist_ok=True)
        with atomic_write(run / PROJECTIONS_FOLDER / f"{product}.safetensors") as aside:
            aside.write_bytes(content)


def load_reduction(run: Path, product: str, provenance: Mapping[str, Any]) -> Reduction | None:
    """What a run's features of a product went through; an InputError where its projection is not what it was."""
    about = provenance.get("reduction") or {}
    digest = _get_projection_digests({product: provenance}).get(product)
    if digest is None:
        return Reduction(None, about["int8"]) if about else None
    path = run / PROJECTIONS_FOLDER / f"{product}.safetensors"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        problem = "is not the one the run was trained with" if content else "does not exist"
        raise InputError(
            f"{path} {problem}: put {product}/{PROJECTION_FILE} of its store there, or train again"
        )
    tensors = load(content)
    return Reduction(
        Projection(tensors["mean"], tensors["matrix"], tensors["bias"], about["basis"]),
        about["int8"],
    )


def apply_reduction(rows: np.ndarray, reduction: Reduction | None) -> np.ndarray:
    """Maps `[n, h, w, C]` as a store with this reduction gives them back, `[n, h, w, K]` float16, to the last bit."""
    if reduction is None:
        return rows
    small, columns = reduction.apply(rows)
    return (
        dequantize(small, columns[SCALE_COLUMN], np.empty(small.shape, np.float16))
        if SCALE_COLUMN in columns
        else small
    )


def _get_projection_digests(products: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of each projected product, the digest its provenance records."""
    reductions = {name: made_from.get("reduction") or {} for name, made_from in products.items()}
    return {
        name: about["basis_digest"] for name, about in reductions.items() if "basis_digest" in about
    }
