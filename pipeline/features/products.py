"""The table of products: everything that the code must know about each kind of stored features.

A new product is one entry of `PRODUCTS`, with an encoder and a feature builder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from pipeline.encoders.image_geometry import MAX_LONG_SIDE_RATIO, compute_appearance_size
from pipeline.features.builders import (
    JPEG_ROW_BYTES,
    AppearanceBuilder,
    FeatureBuilder,
    JpegBuilder,
    MotionBuilder,
    SwinBuilder,
)
from pipeline.features.config import BackboneSize, SamplingConfig
from pipeline.records import Query
from pipeline.sampling import compute_clip_centers, sample_grid
from pipeline.store import ShardKind
from pipeline.video import VideoMetadata
from pipeline.weights.encoder_specs import APPEARANCE, MOTION, SWIN, TEXT, EncoderSpec

VISUAL_LIBRARIES = ("torch", "torchvision", "decord", "av")
"""Libraries that decode, resize and encode frames."""
FLOAT16_BYTES = 2
TOKENS_PER_SENTENCE = 16
TEXT_CHANNELS = 768


@dataclass(frozen=True)
class SizeRequest:
    """Everything that the stored size of one video depends on.

    Attributes:
        query: a query about the video; it holds the frame count, frame rate and size.
        num_sentences: number of sentences about the video.
        sampling: the sampling of the visual products.
        backbones: size of the encoders.
        channels: channels of the encoder's maps; 0 for products without maps.
    """

    query: Query
    num_sentences: int
    sampling: SamplingConfig
    backbones: BackboneSize
    channels: int

    @property
    def seconds(self) -> float:
        """Duration of the video; a frame rate of zero, as of a broken container, is tolerated."""
        return self.query.frame_count / max(self.query.fps, 1e-6)

    @property
    def resized_pixels(self) -> float:
        """Pixels of a frame after resizing to `sampling.short_side`."""
        size = self.query.size
        short_side = self.sampling.short_side
        scale = min(short_side / min(size), MAX_LONG_SIDE_RATIO * short_side / max(size))
        return size[0] * size[1] * scale**2


@dataclass(frozen=True)
class ProductSpec:
    """One kind of features in a store.

    Attributes:
        name: name of the product in settings, stores and commands.
        recipe_version: version of the code that computes the product, part of its provenance.
            Raise the number with every change of the computed values; a test compares some of them.
        libraries: libraries whose versions are part of the provenance, in stored order.
        estimate_bytes: estimate of the bytes of one video, before pooling and reduction.
        encoder: the network; None for a product that needs none.
        create_builder: constructor of the feature builder, from the encoder, the video, the
            sampling and the batch size; None for a product made of sentences.
        sampling_keys: keys of `SamplingConfig` that determine the product.
        channels: channels of the encoder's maps, by size of the encoder.
        shard_kind: shard format; None for the format of the settings.
        padded_to_square: maps show the frame padded to a square, not the frame alone.
        accepts_mdetr_projection: maps are ResNet-101's C5 maps, which MDETR's `input_proj` reduces.
        determines_shard_plan: the estimated size of the product counts in the plan of shards. The
            plan must be equal for all products, so it depends on some of them only.
    """

    name: str
    recipe_version: int
    libraries: tuple[str, ...]
    estimate_bytes: Callable[[SizeRequest], int]
    encoder: EncoderSpec | None = None
    create_builder: (
        Callable[[nn.Module, VideoMetadata, SamplingConfig, int], FeatureBuilder] | None
    ) = None
    sampling_keys: tuple[str, ...] = ()
    channels: Mapping[str, int] = field(default_factory=dict)
    shard_kind: ShardKind | None = None
    padded_to_square: bool = False
    accepts_mdetr_projection: bool = False
    determines_shard_plan: bool = False

    @property
    def is_visual(self) -> bool:
        """True for a product made of a video's frames, False for one made of sentences."""
        return self.create_builder is not None

    @property
    def is_reducible(self) -> bool:
        """True for a product of feature maps, which may be projected or quantized."""
        return self.is_visual and self.encoder is not None


def _create_appearance_builder(
    encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch_size: int
) -> FeatureBuilder:
    """Return the builder of one map per frame of the grid."""
    image_size = compute_appearance_size(video.size, sampling.short_side)
    frame_indices = sample_grid(video.pts_seconds, sampling.fps)
    return AppearanceBuilder(encoder, image_size, frame_indices, batch_size)


def _create_swin_builder(
    encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch_size: int
) -> FeatureBuilder:
    """Return the builder of one map per frame of the grid, from windows of frames."""
    image_size = compute_appearance_size(video.size, sampling.short_side)
    frame_indices = sample_grid(video.pts_seconds, sampling.fps)
    return SwinBuilder(encoder, image_size, frame_indices)


def _create_jpeg_builder(
    encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch_size: int
) -> FeatureBuilder:
    """Return the builder of one JPEG per frame of the grid."""
    image_size = compute_appearance_size(video.size, sampling.short_side)
    frame_indices = sample_grid(video.pts_seconds, sampling.fps)
    return JpegBuilder(image_size, frame_indices, sampling.jpeg_quality)


def _create_motion_builder(
    encoder: nn.Module, video: VideoMetadata, sampling: SamplingConfig, batch_size: int
) -> FeatureBuilder:
    """Return the builder of one map per clip."""
    centers = compute_clip_centers(video.pts_seconds, sampling.clip_stride_seconds)
    # A clip takes several times the memory of a frame, so a batch holds fewer clips.
    clip_batch_size = max(1, batch_size // 4)
    return MotionBuilder(
        encoder,
        video.pts_seconds,
        centers,
        sampling.clip_seconds,
        sampling.pool_motion_2x2,
        clip_batch_size,
    )


def _estimate_frame_map_bytes(request: SizeRequest) -> int:
    """Estimate the bytes of float16 maps, one per frame of the grid."""
    pixels_per_cell = 32 if request.backbones == "full" else 16
    num_values = (
        request.seconds
        * request.sampling.fps
        * request.resized_pixels
        / pixels_per_cell**2
        * request.channels
    )
    return int(FLOAT16_BYTES * num_values)


def _estimate_clip_map_bytes(request: SizeRequest) -> int:
    """Estimate the bytes of float16 maps, one per clip."""
    cells_per_map = 16 * 16 if request.backbones == "full" else 8 * 8
    num_maps = request.seconds / request.sampling.clip_stride_seconds
    return int(FLOAT16_BYTES * (num_maps * cells_per_map * request.channels))


def _estimate_jpeg_bytes(request: SizeRequest) -> int:
    """Estimate the bytes of JPEGs: a fifth of a byte per pixel, and half an unused row."""
    bytes_per_jpeg = request.resized_pixels / 5 + JPEG_ROW_BYTES / 2
    return int(request.seconds * request.sampling.fps * bytes_per_jpeg)


def _estimate_text_bytes(request: SizeRequest) -> int:
    """Estimate the bytes of float16 token states."""
    return request.num_sentences * TOKENS_PER_SENTENCE * TEXT_CHANNELS * FLOAT16_BYTES


PRODUCTS = {
    spec.name: spec
    for spec in (
        ProductSpec(
            name="appearance",
            recipe_version=2,
            libraries=VISUAL_LIBRARIES,
            estimate_bytes=_estimate_frame_map_bytes,
            encoder=APPEARANCE,
            create_builder=_create_appearance_builder,
            sampling_keys=("fps", "short_side"),
            channels={"full": 2048, "tiny": 128},
            accepts_mdetr_projection=True,
            determines_shard_plan=True,
        ),
        ProductSpec(
            name="motion",
            recipe_version=2,
            libraries=VISUAL_LIBRARIES,
            estimate_bytes=_estimate_clip_map_bytes,
            encoder=MOTION,
            create_builder=_create_motion_builder,
            sampling_keys=("clip_stride_seconds", "clip_seconds", "pool_motion_2x2"),
            channels={"full": 2304, "tiny": 384},
            padded_to_square=True,
            determines_shard_plan=True,
        ),
        ProductSpec(
            name="text",
            recipe_version=1,
            libraries=("torch", "torchvision", "tokenizers", "transformers"),
            estimate_bytes=_estimate_text_bytes,
            encoder=TEXT,
            shard_kind="hdf5",
            determines_shard_plan=True,
        ),
        ProductSpec(
            name="swin",
            recipe_version=1,
            libraries=VISUAL_LIBRARIES,
            estimate_bytes=_estimate_frame_map_bytes,
            encoder=SWIN,
            create_builder=_create_swin_builder,
            sampling_keys=("fps", "short_side"),
            channels={"full": 768, "tiny": 768},
        ),
        ProductSpec(
            name="frames",
            recipe_version=1,
            libraries=(*VISUAL_LIBRARIES, "pillow"),
            estimate_bytes=_estimate_jpeg_bytes,
            create_builder=_create_jpeg_builder,
            sampling_keys=("fps", "short_side", "jpeg_quality"),
        ),
    )
}
"""Every product, by name."""
VISUAL_PRODUCTS = tuple(spec.name for spec in PRODUCTS.values() if spec.is_visual)
"""Names of the products made of a video's frames."""
