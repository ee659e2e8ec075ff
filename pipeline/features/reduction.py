"""Smaller maps: fewer channels, or eight bits a number, or both. Asked for as `pca:256`, `mdetr:FILE`, `int8`, `pca:256+int8`.

A projection is fixed before the first row is stored and kept beside the shards; training sees its K channels. Eight
bits are undone by the store's reader: training sees float16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import InputError, StoreError, VideoError
from pipeline.store.layout import PROJECTION_FILE
from pipeline.store.quantization import SCALE_COLUMN, quantize

DEFAULT_CHANNELS = 256
REDUCTION_FORMS = (
    "pca:K (for example pca:256), mdetr:FILE, int8, or one of the first two with +int8"
)


@dataclass(frozen=True)
class ReductionSpec:
    """A reduction as the settings name it. `channels` is K of `pca:K`, `file` MDETR's checkpoint."""

    method: Literal["pca", "mdetr"] | None
    channels: int | None = None
    checkpoint: Path | None = None
    int8: bool = False

    @property
    def projection_name(self) -> str | None:
        """What the basis is called in a store: `pca:256` or `mdetr`."""
        return f"pca:{self.channels}" if self.method == "pca" else self.method


def parse_reduction(text: str) -> ReductionSpec:
    """Read `pca:256`, `pca`, `mdetr:FILE`, `int8`, `pca:256+int8`, `mdetr:FILE+int8`; InputError for anything else."""
    name, int8 = (
        (text.removesuffix("+int8"), text.endswith("+int8")) if text != "int8" else ("", True)
    )
    source, _, value = name.partition(":")
    if source == "pca" and (name == "pca" or (value.isdecimal() and 0 < int(value) < 1 << 20)):
        return ReductionSpec("pca", int(value or DEFAULT_CHANNELS), int8=int8)
    if source == "mdetr" and value:
        return ReductionSpec("mdetr", checkpoint=Path(value), int8=int8)
    if text == "int8":
        return ReductionSpec(None, int8=True)
    raise InputError(f"reduction {text!r} is unknown; allowed are {REDUCTION_FORMS}")


@dataclass(frozen=True)
class Projection:
    """A projection of channels: y = matrix · (x − mean) + bias; `mean` `[C]`, `matrix` `[K, C]`, `bias` `[K]`, float32."""

    mean: np.ndarray
    matrix: np.ndarray
    bias: np.ndarray
    name: str

    def project(self, rows: np.ndarray) -> np.ndarray:
        """`[n, …, C]` → float32 `[n, …, K]`, row by row, so that it is the same however rows are grouped."""
        if rows.shape[-1] != self.matrix.shape[1]:
            raise InputError(
                f"reduction {self.name} takes maps of {self.matrix.shape[1]} channels, not {rows.shape[-1]}: "
                "it was made for another backbone"
            )
        result = np.empty((*rows.shape[:-1], len(self.matrix)), np.float32)
        for row, place in zip(rows, result, strict=True):
            place[...] = (row.astype(np.float32) - self.mean) @ self.matrix.T + self.bias
        return result

    @cached_property
    def file_bytes(self) -> bytes:
        """The basis as a safetensors file; the same basis gives the same bytes."""
        return save(
            {"mean": self.mean, "matrix": self.matrix, "bias": self.bias}, {"origin": self.name}
        )

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.file_bytes).hexdigest()


@dataclass(frozen=True)
class Reduction:
    """What a product's maps go through before they are stored."""

    projection: Projection | None
    int8: bool

    def apply(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Maps `[n, h, w, C]` → rows to store, `[n, h, w, K]` in float16 or int8, and the columns to store with them.

        A VideoError where a map is not finite, before or after.
        """
        small = rows if self.projection is None else self.projection.project(rows)
        half = small.astype(np.float16, copy=False)
        if not np.isfinite(half).all():
            raise VideoError(
                "encode",
                "not-finite",
                "its reduced features are not finite in float16: the weights or the basis do not fit",
            )
        if not self.int8:
            return half, {}
        steps, scales = quantize(half)
        return steps, {SCALE_COLUMN: scales}

    @property
    def provenance(self) -> dict[str, Any]:
        """For the product's provenance, under the key `reduction`: `verify` finds the basis' digest there."""
        basis = (
            {"basis": self.projection.name, "basis_digest": self.projection.digest}
            if self.projection
            else {}
        )
        return {**basis, "int8": self.int8}


def fit_pca(samples: np.ndarray, num_components: int) -> Projection:
    """The `k` directions in which samples `[n, C]` vary most, by falling variance; each one's largest part is positive."""
    n, channels = samples.shape
    if not 0 < num_components <= min(n, channels):
        raise InputError(
            f"pca:{num_components} of {n} samples with {channels} channels: K must lie in [1, {min(n, channels)}]"
        )
    blocks = [slice(begin, begin + 4096) for begin in range(0, n, 4096)]
    mean = sum(samples[block].sum(0, dtype=np.float64) for block in blocks) / n
    if not np.isfinite(mean).all():
        raise InputError(
            f"pca:{num_components}: the samples are not finite: the weights are damaged or do not belong here"
        )
    covariance = np.zeros((channels, channels))
    for block in blocks:
        centred = samples[block].astype(np.float64) - mean
        covariance += centred.T @ centred
    _, vectors = np.linalg.eigh(covariance)
    matrix = vectors[:, ::-1][:, :num_components].T
    largest = np.abs(matrix).argmax(1)
    matrix = matrix * np.where(matrix[np.arange(num_components), largest] < 0, -1, 1)[:, None]
    return Projection(
        mean.astype(np.float32),
        np.ascontiguousarray(matrix, np.float32),
        np.zeros(num_components, np.float32),
        f"pca:{num_components}",
    )


def sample_videos(videos: Iterable[str], count: int) -> list[str]:
    """`count` videos to fit a basis on: which ones depends on the ids alone, not on their order."""
    return sorted(videos, key=lambda video: hashlib.sha256(video.encode()).digest())[:count]


def sample_cells(maps: np.ndarray, video: str, count: int) -> np.ndarray:
    """At most `count` cells `[m, C]` out of a video's maps `[n, h, w, C]`, drawn by its id."""
    cells = maps.reshape(-1, maps.shape[-1])
    seed = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "little")
    return cells[
        np.sort(
            np.random.default_rng(seed).choice(len(cells), min(count, len(cells)), replace=False)
        )
    ]


def load_mdetr_projection(path: Path) -> Projection:
    """`input_proj` of an MDETR checkpoint: a 1×1 convolution from C5's 2048 channels to 256."""
    from pipeline.weights.checkpoint_files import read_state_dict

    state = read_state_dict("mdetr", path)
    try:
        weight, bias = (state[f"input_proj.{name}"].float().numpy() for name in ("weight", "bias"))
        matrix = np.ascontiguousarray(weight.reshape(len(bias), -1))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"mdetr:{path} has no input_proj (weight [256, 2048, 1, 1] and bias [256]): use MDETR's own checkpoint"
        ) from None
    return Projection(np.zeros(matrix.shape[1], np.float32), matrix, bias, "mdetr")


def load_stored_projection(store: Path, product: str) -> Projection | None:
    """The basis that lies beside a product's shards; None where there is none. A damaged one is a StoreError."""
    path = Path(store) / product / PROJECTION_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = load(content)
        basis = Projection(
            tensors["mean"], tensors["matrix"], tensors["bias"], _read_projection_name(content)
        )
        if (
            basis.matrix.shape != (*basis.bias.shape, *basis.mean.shape)
            or basis.file_bytes != content
        ):
            raise ValueError("its tensors do not belong together")
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): restore it, or extract into another --store"
        ) from None
    return basis


def _read_projection_name(content: bytes) -> str:
    """`origin` out of a safetensors header."""
    length = int.from_bytes(content[:8], "little")
    return str(json.loads(content[8 : 8 + length])["__metadata__"]["origin"])
