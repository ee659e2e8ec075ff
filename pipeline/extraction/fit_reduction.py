"""The projection a product's maps go through: the one its store has, MDETR's, or one fitted on a few of the videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, VideoError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import VideoIndex
from pipeline.extraction.shard_task import child, encoder_of
from pipeline.features.config import SamplingConfig
from pipeline.features.reduction import (
    Asked,
    Basis,
    Reduction,
    fit_pca,
    mdetr_basis,
    parse_reduction,
    sample_cells,
    sample_videos,
    stored_basis,
)
from pipeline.features.stream import FeatureStream
from pipeline.records import Query
from pipeline.store.manifest import load_manifest

VIDEOS, CELLS = 32, 4096
"""How many videos a basis is fitted on, and at most how many cells of each."""
SECONDS, MAPS = 2.0, 64
"""From one frame, or clip, that is looked at to the next, at least; at most how many are in a video, however long it is."""
REDUCIBLE = ("appearance", "motion", "swin")
Say = Callable[[str], None]


def reduction_to_open(
    product: str, config: ExtractConfig, index: VideoIndex, store: Path, say: Say, anew: bool = False
) -> Reduction | None:
    """What the settings ask for the product, with its basis: the store's own, so that new videos fit, else (or `anew`) a new one."""
    if product not in config.reduce:
        return None
    asked = parse_reduction(config.reduce[product])
    if asked.source is None:
        return Reduction(None, asked.int8)
    if asked.file is not None:
        return Reduction(mdetr_basis(asked.file), asked.int8)
    there = None if anew else stored_basis(store, product)
    if there is not None and (there.origin, there.digest) == (asked.origin, _recorded_digest(store, product)):
        return Reduction(there, asked.int8)
    say(f"fitting {asked.origin} for {product} on up to {VIDEOS} videos")
    return Reduction(_fitted(product, asked, config, index), asked.int8)


def refuse_unknown_reductions(config: ExtractConfig) -> None:
    """InputError for a reduction that does not exist, or that its product cannot have."""
    for product, text in config.reduce.items():
        if product not in REDUCIBLE:
            raise InputError(f"reduce is given for {product!r}; products that can be reduced are {', '.join(REDUCIBLE)}")
        if parse_reduction(text).source == "mdetr" and product != "appearance":
            raise InputError(f"reduce {text!r} is for appearance: it projects ResNet-101's C5 maps; {product} may have pca:256 or int8")


def _recorded_digest(store: Path, product: str) -> str | None:
    """The digest of the basis that a product's shards went through; a file that is not it may be for other weights."""
    held = load_manifest(store).products.get(product)
    digest: str | None = (held.provenance.get("reduction") or {}).get("basis_digest") if held else None
    return digest


def _fitted(product: str, asked: Asked, config: ExtractConfig, index: VideoIndex) -> Basis:
    """The basis of cells of a few videos, chosen by their ids; videos that cannot be read are passed over."""
    cells: list[np.ndarray] = []
    for video in sample_videos(index.paths, len(index.paths)):
        sampling = _coarse(config.sampling, index.queries[video])
        try:
            stream = FeatureStream(index.paths[video], sampling, {product: encoder_of(product, config)}, config.batch, child())
            cells.append(sample_cells(np.concatenate([rows for _, rows in stream]), video, CELLS))
        except VideoError:
            continue
        if len(cells) == VIDEOS:
            break
    if not cells:
        raise InputError(f"{asked.origin} for {product} cannot be fitted: none of the videos can be read; run stvg-prepare")
    return fit_pca(np.concatenate(cells), asked.channels or 0)


def _coarse(sampling: SamplingConfig, query: Query) -> SamplingConfig:
    """The same, at fewer moments."""
    every = max(SECONDS, query.frame_count / max(query.fps, 1e-6) / MAPS)
    return sampling.model_copy(update={"fps": min(sampling.fps, 1 / every), "clip_every": max(sampling.clip_every, every)})
