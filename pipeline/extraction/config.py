"""Section `extract` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config import StrictModel
from pipeline.errors import InputError
from pipeline.features.config import BackboneSize, SamplingConfig
from pipeline.store import ShardKind


class ExtractConfig(StrictModel):
    """Section `extract`."""

    backbones: BackboneSize = "full"
    """Size of the encoders."""
    weights: str | dict[str, str] = "tiny"
    """Source of the weights: one for all encoders, or one per product."""
    products: tuple[str, ...] = Field(default=("appearance", "motion", "text"), min_length=1)
    """Products to compute."""
    slowfast: Literal["ava", "kinetics"] | None = None
    """Build of the motion network: for AVA (dilated last stage, stride 16) or for Kinetics (stride
    32); by default the build of its weights."""
    reduce: dict[str, str] = Field(default_factory=dict)
    """Reduction of the maps, by product: `pca:256`, `mdetr:FILE` (appearance), `int8`, or one of
    the first two with `+int8`."""
    sampling: SamplingConfig = SamplingConfig()
    """Which frames and clips are encoded, and at which size."""
    format: ShardKind = "zarr"
    """Shard format of visual products; text is always HDF5."""
    shard_mb: int = Field(default=256, ge=1)
    """Approximate size of a shard in MiB, before reduction."""
    workers: int | None = Field(default=None, ge=0)
    """Processes, of one thread each; by default one per core. 0 works in this process, without
    Dask."""
    scheduler: str | None = None
    """Address of a running Dask scheduler; by default a cluster on this machine is started."""
    batch_size: int = Field(default=16, ge=1)
    """Frames per forward pass."""
    device: str = "auto"
    """Device of the encoders: `auto`, `cpu` or `cuda`."""
    allow_failed: float = Field(default=0, ge=0)
    """Failed videos to tolerate: a share of all videos if below 1, otherwise a number."""
    replace: bool = False
    """Delete products that were made with other settings and compute them again, instead of
    refusing."""


def get_shard_kind(product: str, config: ExtractConfig) -> ShardKind:
    """Return the shard format of a product.

    Args:
        product: name of the product.
        config: section `extract`.

    Returns:
        HDF5 for text, the format of the settings for visual products.
    """
    # The table of products imports torch, which commands that only read settings do not need.
    from pipeline.features.products import PRODUCTS

    return PRODUCTS[product].shard_kind or config.format


def get_weight_source(product: str, config: ExtractConfig) -> str:
    """Return the source of a product's weights.

    Args:
        product: name of a product with an encoder.
        config: section `extract`.

    Returns:
        The source in the settings. Tiny encoders have shipped weights as default.

    Raises:
        InputError: the settings name no weights for a full encoder.
    """
    if isinstance(config.weights, str):
        return config.weights
    if product not in config.weights and config.backbones != "tiny":
        raise InputError(
            f"no weights are named for {product}: add --weights {product}=…, "
            f"for example {product}=random:0"
        )
    return config.weights.get(product, "tiny")
