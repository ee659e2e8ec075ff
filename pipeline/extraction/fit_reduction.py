"""A product's reduction, with the store's projection, MDETR's, or one fitted on some videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.callbacks import MessageCallback
from pipeline.errors import InputError, VideoError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import VideoIndex
from pipeline.extraction.shard_task import get_encoder, shared_decoder
from pipeline.features.config import SamplingConfig
from pipeline.features.products import PRODUCTS
from pipeline.features.reduction import (
    Projection,
    Reduction,
    ReductionSpec,
    fit_pca,
    load_mdetr_projection,
    load_stored_projection,
    parse_reduction,
    sample_cells,
    sample_videos,
)
from pipeline.features.stream import FeatureStream
from pipeline.records import Query
from pipeline.store.manifest import load_manifest

MAX_FIT_VIDEOS = 32
"""Number of videos that a projection is fitted on."""
MAX_CELLS_PER_VIDEO = 4096
"""Largest number of cells of one video that a projection is fitted on."""
MIN_STRIDE_SECONDS = 2.0
"""Shortest time between two frames or clips that a projection is fitted on."""
MAX_MAPS_PER_VIDEO = 64
"""Largest number of maps of one video to compute, so that memory does not depend on its length."""
REDUCIBLE_PRODUCTS = tuple(spec.name for spec in PRODUCTS.values() if spec.is_reducible)
"""Products of feature maps."""


def load_or_fit_reduction(
    product: str,
    config: ExtractConfig,
    index: VideoIndex,
    store: Path,
    on_message: MessageCallback,
    refit: bool = False,
) -> Reduction | None:
    """Return the reduction of a product, with its projection.

    The store's projection is used if there is one, so that new videos fit to the stored ones.

    Args:
        product: name of the product.
        config: section `extract`.
        index: the index; its videos are candidates for a fit.
        store: directory of the store.
        on_message: called before a projection is fitted.
        refit: fit a new projection although the store has one.

    Returns:
        The reduction, or None if the settings name none for the product.

    Raises:
        InputError: no video can be read, or the checkpoint has no projection.
        StoreError: the stored projection is damaged.
    """
    if product not in config.reduce:
        return None
    spec = parse_reduction(config.reduce[product])
    if spec.method is None:
        return Reduction(None, spec.int8)
    if spec.checkpoint is not None:
        return Reduction(load_mdetr_projection(spec.checkpoint), spec.int8)

    # A stored file that the manifest does not know may have been fitted to other weights.
    stored = None if refit else load_stored_projection(store, product)
    if (
        stored is not None
        and stored.name == spec.projection_name
        and stored.digest == _read_projection_digest(store, product)
    ):
        return Reduction(stored, spec.int8)

    on_message(f"fitting {spec.projection_name} for {product} on up to {MAX_FIT_VIDEOS} videos")
    return Reduction(_fit_projection(product, spec, config, index), spec.int8)


def check_reductions(config: ExtractConfig) -> None:
    """Check the reductions in the settings.

    Args:
        config: section `extract`.

    Raises:
        InputError: a reduction is unknown, or its product cannot have it.
    """
    for product, text in config.reduce.items():
        if product not in REDUCIBLE_PRODUCTS:
            raise InputError(
                f"reduce is given for {product!r}; products that can be reduced are "
                f"{', '.join(REDUCIBLE_PRODUCTS)}"
            )
        is_mdetr = parse_reduction(text).method == "mdetr"
        if is_mdetr and not PRODUCTS[product].accepts_mdetr_projection:
            accepting = [spec.name for spec in PRODUCTS.values() if spec.accepts_mdetr_projection]
            raise InputError(
                f"reduce {text!r} is for {' and '.join(accepting)}: it projects ResNet-101's C5 "
                f"maps; {product} may have pca:256 or int8"
            )


def _read_projection_digest(store: Path, product: str) -> str | None:
    """Return the digest of the projection that the manifest names for a product."""
    entry = load_manifest(store).products.get(product)
    if entry is None:
        return None
    reduction = entry.provenance.get("reduction") or {}
    digest: str | None = reduction.get("basis_digest")
    return digest


def _fit_projection(
    product: str, spec: ReductionSpec, config: ExtractConfig, index: VideoIndex
) -> Projection:
    """Return a projection fitted on cells of some videos; skip videos that cannot be read."""
    cells: list[np.ndarray] = []  # [m, C] each
    for video in sample_videos(index.paths, len(index.paths)):
        sampling = _coarsen_sampling(config.sampling, index.queries[video])
        encoders = {product: get_encoder(product, config)}
        try:
            stream = FeatureStream(
                index.paths[video], sampling, encoders, config.batch_size, shared_decoder()
            )
            maps = np.concatenate([rows for _, rows in stream])  # [n, h, w, C]
        except VideoError:
            continue
        cells.append(sample_cells(maps, video, MAX_CELLS_PER_VIDEO))
        if len(cells) == MAX_FIT_VIDEOS:
            break

    if not cells:
        raise InputError(
            f"{spec.projection_name} for {product} cannot be fitted: none of the videos can be "
            "read; run stvg-prepare"
        )
    return fit_pca(np.concatenate(cells), spec.channels or 0)


def _coarsen_sampling(sampling: SamplingConfig, query: Query) -> SamplingConfig:
    """Return the sampling with fewer frames and clips per video."""
    duration = query.frame_count / max(query.fps, 1e-6)
    stride_seconds = max(MIN_STRIDE_SECONDS, duration / MAX_MAPS_PER_VIDEO)
    return sampling.model_copy(
        update={
            "fps": min(sampling.fps, 1 / stride_seconds),
            "clip_stride_seconds": max(sampling.clip_stride_seconds, stride_seconds),
        }
    )
