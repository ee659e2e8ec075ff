"""The projection a product's maps go through: the one its store has, MDETR's, or one fitted on a few of the videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, VideoError
from pipeline.extract import FeatureStream
from pipeline.jobs import ExtractConfig, VideoIndex
from pipeline.reduce import Asked, Basis, Reduction, fit_pca, mdetr_basis, parse_reduction, sample_cells, sample_videos, stored_basis
from pipeline.shards import child, encoder_of

VIDEOS, CELLS = 32, 4096
"""How many videos a basis is fitted on, and at most how many cells of each."""
SECONDS = 2.0
"""From one frame, or clip, that is looked at to the next."""
REDUCIBLE = ("appearance", "motion", "swin")
Say = Callable[[str], None]


def reduction_to_open(product: str, config: ExtractConfig, index: VideoIndex, store: Path, say: Say) -> Reduction | None:
    """What the settings ask for the product, with its basis: the store's own, so that new videos fit, else a new one."""
    text = config.reduce.get(product)
    if text is None:
        return None
    if product not in REDUCIBLE:
        raise InputError(f"reduce is given for {product!r}; products that can be reduced are {', '.join(REDUCIBLE)}")
    asked = parse_reduction(text)
    if asked.source is None:
        return Reduction(None, asked.int8)
    if asked.source == "mdetr":
        if product != "appearance" or asked.file is None:
            raise InputError(f"reduce {text!r} is for appearance: it projects ResNet-101's C5 maps; {product} may have pca:256 or int8")
        return Reduction(mdetr_basis(asked.file), asked.int8)
    there = stored_basis(store, product)
    if there is not None and there.origin == asked.origin:
        return Reduction(there, asked.int8)
    say(f"fitting {asked.origin} for {product} on up to {VIDEOS} videos")
    return Reduction(_fitted(product, asked, config, index), asked.int8)


def _fitted(product: str, asked: Asked, config: ExtractConfig, index: VideoIndex) -> Basis:
    """The basis of cells of a few videos, chosen by their ids; videos that cannot be read are passed over."""
    coarse = {"fps": min(config.sampling.fps, 1 / SECONDS), "clip_every": max(config.sampling.clip_every, SECONDS)}
    sampling = config.sampling.model_copy(update=coarse)
    cells: list[np.ndarray] = []
    for video in sample_videos(index.paths, VIDEOS):
        try:
            stream = FeatureStream(index.paths[video], sampling, {product: encoder_of(product, config)}, config.batch, child())
            cells.append(sample_cells(np.concatenate([rows for _, rows in stream]), video, CELLS))
        except VideoError:
            continue
    if not cells:
        raise InputError(f"{asked.origin} for {product} cannot be fitted: none of the videos tried can be read; run stvg-prepare")
    return fit_pca(np.concatenate(cells), asked.channels or 0)
