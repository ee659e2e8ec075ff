"""Section `extract` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import StrictModel
from pipeline.errors import InputError
from pipeline.features.config import BackboneSize, SamplingConfig
from pipeline.store import ShardKind


class ExtractConfig(StrictModel):
    """Section `extract`. `weights` is one source for all backbones or one per product."""

    backbones: BackboneSize = "full"
    weights: str | dict[str, str] = "tiny"
    products: tuple[str, ...] = Field(default=("appearance", "motion", "text"), min_length=1)
    slowfast: Literal["ava", "kinetics"] | None = None
    """The motion network's build: for AVA (dilated last stage, stride 16) or for Kinetics (stride 32); by default its weights'."""
    reduce: dict[str, str] = Field(default_factory=dict)
    """Smaller maps, by product: `pca:256`, `mdetr:FILE` (appearance), `int8`, or one of the first two with `+int8`."""
    sampling: SamplingConfig = SamplingConfig()
    format: ShardKind = "zarr"
    """Of visual products; text is always HDF5."""
    shard_mb: int = Field(default=256, ge=1)
    workers: int | None = Field(default=None, ge=0)
    """Processes, of one thread each; by default one per core. 0 works in this process, without Dask."""
    scheduler: str | None = None
    batch: int = Field(default=16, ge=1)
    device: str = "auto"
    allow_failed: float = Field(default=0, ge=0)
    replace: bool = False
    """Delete and remake products that were made with other settings, instead of refusing."""


def get_shard_kind(product: str, config: ExtractConfig) -> ShardKind:
    """Text lies in HDF5, visual products in what `format` says."""
    from pipeline.features.products import (
        PRODUCTS,  # imports torch, which reading settings need not
    )

    return PRODUCTS[product].shard_kind or config.format


def get_weight_source(product: str, config: ExtractConfig) -> str:
    """The weights asked for a product; tiny backbones have shipped ones, for full ones they must be named."""
    if isinstance(config.weights, str):
        return config.weights
    if product not in config.weights and config.backbones != "tiny":
        raise InputError(
            f"no weights are named for {product}: add --weights {product}=…, for example {product}=random:0"
        )
    return config.weights.get(product, "tiny")
