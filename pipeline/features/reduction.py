"""Reduction of feature maps: projection to fewer channels, quantization to eight bits, or both.

Settings name a reduction as `pca:256`, `mdetr:FILE`, `int8` or `pca:256+int8`. The projection is
fixed before the first row is stored, and its file lies beside the shards; training reads the K
projected channels. The store's reader undoes the quantization: training reads float16.
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
"""K of `pca` without a number, and of MDETR's projection."""
MAX_CHANNELS = 1 << 20
REDUCTION_FORMS = (
    "pca:K (for example pca:256), mdetr:FILE, int8, or one of the first two with +int8"
)
INT8_SUFFIX = "+int8"
FIT_BLOCK_ROWS = 4096
"""Rows that `fit_pca` converts to float64 at a time."""


@dataclass(frozen=True)
class ReductionSpec:
    """A reduction as the settings name it.

    Attributes:
        method: the projection's method; None for none.
        channels: K of `pca:K`.
        checkpoint: MDETR's checkpoint.
        int8: quantize the maps to eight bits.
    """

    method: Literal["pca", "mdetr"] | None
    channels: int | None = None
    checkpoint: Path | None = None
    int8: bool = False

    @property
    def projection_name(self) -> str | None:
        """Name of the projection in a store: `pca:256` or `mdetr`."""
        return f"pca:{self.channels}" if self.method == "pca" else self.method


def parse_reduction(text: str) -> ReductionSpec:
    """Parse a reduction such as `pca:256+int8`.

    Args:
        text: `pca:K`, `pca`, `mdetr:FILE`, either with `+int8`, or `int8`.

    Returns:
        The reduction.

    Raises:
        InputError: the text has another form.
    """
    if text == "int8":
        return ReductionSpec(None, int8=True)

    int8 = text.endswith(INT8_SUFFIX)
    projection = text.removesuffix(INT8_SUFFIX)
    if projection == "pca":
        return ReductionSpec("pca", DEFAULT_CHANNELS, int8=int8)

    method, _, argument = projection.partition(":")
    if method == "pca" and argument.isdecimal() and 0 < int(argument) < MAX_CHANNELS:
        return ReductionSpec("pca", int(argument), int8=int8)
    if method == "mdetr" and argument:
        return ReductionSpec("mdetr", checkpoint=Path(argument), int8=int8)
    raise InputError(f"reduction {text!r} is unknown; allowed are {REDUCTION_FORMS}")


@dataclass(frozen=True)
class Projection:
    """An affine projection of channels: y = matrix · (x − mean) + bias.

    Attributes:
        mean: `[C]` float32.
        matrix: `[K, C]` float32.
        bias: `[K]` float32.
        name: name of the projection in a store, `pca:K` or `mdetr`.
    """

    mean: np.ndarray
    matrix: np.ndarray
    bias: np.ndarray
    name: str

    def project(self, rows: np.ndarray) -> np.ndarray:
        """Project the channels of maps.

        Rows are projected one by one: a larger matrix product would round differently, so that the
        result would depend on the grouping of rows into blocks.

        Args:
            rows: `[n, ..., C]`.

        Returns:
            `[n, ..., K]` float32.

        Raises:
            InputError: the maps have another number of channels.
        """
        num_outputs, num_channels = self.matrix.shape
        if rows.shape[-1] != num_channels:
            raise InputError(
                f"reduction {self.name} takes maps of {num_channels} channels, "
                f"not {rows.shape[-1]}: it was made for another backbone"
            )
        result = np.empty((*rows.shape[:-1], num_outputs), np.float32)
        for row, projected_row in zip(rows, result, strict=True):
            centered = row.astype(np.float32) - self.mean
            projected_row[...] = centered @ self.matrix.T + self.bias
        return result

    @cached_property
    def file_bytes(self) -> bytes:
        """The projection as a safetensors file; equal projections have equal bytes."""
        tensors = {"mean": self.mean, "matrix": self.matrix, "bias": self.bias}
        return save(tensors, {"origin": self.name})

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the file."""
        return hashlib.sha256(self.file_bytes).hexdigest()


@dataclass(frozen=True)
class Reduction:
    """Transformation of a product's maps before they are stored.

    Attributes:
        projection: the projection; None for none.
        int8: quantize to eight bits.
    """

    projection: Projection | None
    int8: bool

    def apply(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reduce maps.

        Args:
            rows: maps `[n, h, w, C]`.

        Returns:
            Rows to store, `[n, h, w, K]` float16 or int8, and the columns to store with them.

        Raises:
            VideoError: a map is not finite, before or after the projection.
        """
        projected = rows if self.projection is None else self.projection.project(rows)
        maps = projected.astype(np.float16, copy=False)
        if not np.isfinite(maps).all():
            raise VideoError(
                "encode",
                "not-finite",
                "its reduced features are not finite in float16: "
                "the weights or the projection do not fit",
            )
        if not self.int8:
            return maps, {}
        quantized, scales = quantize(maps)
        return quantized, {SCALE_COLUMN: scales}

    @property
    def provenance(self) -> dict[str, Any]:
        """Value of the key `reduction` in the product's provenance.

        The store's verification compares the projection's file with `basis_digest`.
        """
        if self.projection is None:
            return {"int8": self.int8}
        return {
            "basis": self.projection.name,
            "basis_digest": self.projection.digest,
            "int8": self.int8,
        }


def fit_pca(samples: np.ndarray, num_components: int) -> Projection:
    """Fit a principal component analysis.

    Args:
        samples: `[n, C]`.
        num_components: K, number of components to keep.

    Returns:
        The projection to the K directions of largest variance, in descending order. The component
        of largest magnitude of each direction is positive, so that signs are determined.

    Raises:
        InputError: K is not in [1, min(n, C)], or a sample is not finite.
    """
    num_samples, num_channels = samples.shape
    max_components = min(num_samples, num_channels)
    if not 0 < num_components <= max_components:
        raise InputError(
            f"pca:{num_components} of {num_samples} samples with {num_channels} channels: "
            f"K must lie in [1, {max_components}]"
        )

    # Mean and covariance in float64, block by block: the samples are float16 and many.
    blocks = [
        samples[start : start + FIT_BLOCK_ROWS] for start in range(0, num_samples, FIT_BLOCK_ROWS)
    ]
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / num_samples  # [C]
    if not np.isfinite(mean).all():
        raise InputError(
            f"pca:{num_components}: the samples are not finite: "
            "the weights are damaged or do not belong here"
        )
    covariance = np.zeros((num_channels, num_channels))
    for block in blocks:
        centered = block.astype(np.float64) - mean
        covariance += centered.T @ centered

    # Eigenvectors come in columns, by ascending eigenvalue.
    _, eigenvectors = np.linalg.eigh(covariance)
    matrix = eigenvectors[:, ::-1][:, :num_components].T  # [K, C]

    # Fix the signs.
    largest_channels = np.abs(matrix).argmax(1)
    largest_values = matrix[np.arange(num_components), largest_channels]
    matrix = matrix * np.where(largest_values < 0, -1, 1)[:, None]

    return Projection(
        mean.astype(np.float32),
        np.ascontiguousarray(matrix, np.float32),
        np.zeros(num_components, np.float32),
        f"pca:{num_components}",
    )


def sample_videos(videos: Iterable[str], count: int) -> list[str]:
    """Choose videos to fit a projection on.

    Args:
        videos: ids of the videos.
        count: number of videos to choose.

    Returns:
        The chosen ids. The choice and its order depend on the ids alone, not on their order.
    """

    def compute_id_digest(video: str) -> bytes:
        return hashlib.sha256(video.encode()).digest()

    return sorted(videos, key=compute_id_digest)[:count]


def sample_cells(maps: np.ndarray, video: str, count: int) -> np.ndarray:
    """Choose cells of a video's maps at random.

    Args:
        maps: `[n, h, w, C]`.
        video: id of the video, the seed of the choice.
        count: largest number of cells.

    Returns:
        `[m, C]`, with m ≤ count, in the order of the maps.
    """
    cells = maps.reshape(-1, maps.shape[-1])  # [n * h * w, C]
    seed = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "little")
    generator = np.random.default_rng(seed)
    indices = generator.choice(len(cells), min(count, len(cells)), replace=False)
    return cells[np.sort(indices)]


def load_mdetr_projection(path: Path) -> Projection:
    """Load `input_proj` of an MDETR checkpoint, a 1×1 convolution from C5's 2048 channels to 256.

    Args:
        path: MDETR's checkpoint.

    Returns:
        The projection.

    Raises:
        InputError: the file cannot be read, or has no such convolution.
    """
    from pipeline.weights.checkpoint_files import read_state_dict

    state = read_state_dict("mdetr", path)
    try:
        weight = state["input_proj.weight"].float().numpy()  # [K, C, 1, 1]
        bias = state["input_proj.bias"].float().numpy()  # [K]
        matrix = np.ascontiguousarray(weight.reshape(len(bias), -1))  # [K, C]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"mdetr:{path} has no input_proj (weight [256, 2048, 1, 1] and bias [256]): "
            "use MDETR's own checkpoint"
        ) from None
    return Projection(np.zeros(matrix.shape[1], np.float32), matrix, bias, "mdetr")


def load_stored_projection(store: Path, product: str) -> Projection | None:
    """Load the projection beside a product's shards.

    Args:
        store: directory of the store.
        product: name of the product.

    Returns:
        The projection, or None if the product has none.

    Raises:
        StoreError: the file is damaged.
    """
    path = Path(store) / product / PROJECTION_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None

    try:
        tensors = load(content)
        name = _read_projection_name(content)
        projection = Projection(tensors["mean"], tensors["matrix"], tensors["bias"], name)
        if projection.matrix.shape != (*projection.bias.shape, *projection.mean.shape):
            raise ValueError("the shapes of its tensors do not match")
        if projection.file_bytes != content:
            raise ValueError("its tensors do not give the same bytes again")
    except (SafetensorError, KeyError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}): restore it, or extract into another --store"
        ) from None
    return projection


def _read_projection_name(content: bytes) -> str:
    """Return `origin` of a safetensors header: its length in eight bytes, then JSON."""
    header_length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_length])
    return str(header["__metadata__"]["origin"])
