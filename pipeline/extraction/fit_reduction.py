"""The projection a product's maps go through: the one its store has, MDETR's, or one fitted on a few of the videos."""

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

MAX_FIT_VIDEOS, MAX_CELLS_PER_VIDEO = 32, 4096
"""How many videos a basis is fitted on, and at most how many cells of each."""
MIN_STRIDE_SECONDS, MAX_MAPS_PER_VIDEO = 2.0, 64
"""From one frame, or clip, that is looked at to the next, at least; at most how many are in a video, however long it is."""
REDUCIBLE_PRODUCTS = tuple(spec.name for spec in PRODUCTS.values() if spec.is_reducible)


def load_or_fit_reduction(
    product: str,
    config: ExtractConfig,
    index: VideoIndex,
    store: Path,
    on_message: MessageCallback,
    refit: bool = False,
) -> Reduction | None:
    """What the settings ask for the product, with its basis: the store's own, so that new videos fit, else (or `anew`) a new one."""
    if product not in config.reduce:
        return None
    asked = parse_reduction(config.reduce[product])
    if asked.method is None:
        return Reduction(None, asked.int8)
    if asked.checkpoint is not None:
        return Reduction(load_mdetr_projection(asked.checkpoint), asked.int8)
    there = None if refit else load_stored_projection(store, product)
    if there is not None and (there.name, there.digest) == (
        asked.projection_name,
        _read_projection_digest(store, product),
    ):
        return Reduction(there, asked.int8)
    on_message(f"fitting {asked.projection_name} for {product} on up to {MAX_FIT_VIDEOS} videos")
    return Reduction(_fit_projection(product, asked, config, index), asked.int8)


def check_reductions(config: ExtractConfig) -> None:
    """InputError for a reduction that does not exist, or that its product cannot have."""
    for product, text in config.reduce.items():
        if product not in REDUCIBLE_PRODUCTS:
            raise InputError(
                f"reduce is given for {product!r}; products that can be reduced are {', '.join(REDUCIBLE_PRODUCTS)}"
            )
        if (
            parse_reduction(text).method == "mdetr"
            and not PRODUCTS[product].accepts_mdetr_projection
        ):
            raise InputError(
                f"reduce {text!r} is for appearance: it projects ResNet-101's C5 maps; {product} may have pca:256 or int8"
            )


def _read_projection_digest(store: Path, product: str) -> str | None:
    """The digest of the basis that a product's shards went through; a file that is not it may be for other weights."""
    held = load_manifest(store).products.get(product)
    digest: str | None = (
        (held.provenance.get("reduction") or {}).get("basis_digest") if held else None
    )
    return digest


def _fit_projection(
    product: str, asked: ReductionSpec, config: ExtractConfig, index: VideoIndex
) -> Projection:
    """The basis of cells of a few videos, chosen by their ids; videos that cannot be read are passed over."""
    cells: list[np.ndarray] = []
    for video in sample_videos(index.paths, len(index.paths)):
        sampling = _coarsen_sampling(config.sampling, index.queries[video])
        try:
            stream = FeatureStream(
                index.paths[video],
                sampling,
                {product: get_encoder(product, config)},
                config.batch,
                shared_decoder(),
            )
            cells.append(
                sample_cells(
                    np.concatenate([rows for _, rows in stream]), video, MAX_CELLS_PER_VIDEO
                )
            )
        except VideoError:
            continue
        if len(cells) == MAX_FIT_VIDEOS:
            break
    if not cells:
        raise InputError(
            f"{asked.projection_name} for {product} cannot be fitted: none of the videos can be read; run stvg-prepare"
        )
    return fit_pca(np.concatenate(cells), asked.channels or 0)


def _coarsen_sampling(sampling: SamplingConfig, query: Query) -> SamplingConfig:
    """The same, at fewer moments."""
    every = max(MIN_STRIDE_SECONDS, query.frame_count / max(query.fps, 1e-6) / MAX_MAPS_PER_VIDEO)
    return sampling.model_copy(
        update={
            "fps": min(sampling.fps, 1 / every),
            "clip_stride_seconds": max(sampling.clip_stride_seconds, every),
        }
    )
