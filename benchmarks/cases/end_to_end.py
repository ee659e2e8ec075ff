"""Headline case: a training step of CSDVL on stored features, against a step with its backbones.

In each step without a store, ResNet-101 encodes the frames and SlowFast the clips of every query.
The backbones are frozen, as in a run without a store, or the image encoder trains, as in the paper
and its peers. Text features are stored in all variants.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.synthetic_data import fill_store, make_queries
from benchmarks.timing import profile_torch, run_in_forked_process, time_interleaved
from benchmarks.training_step import CHANNELS, TrainingStep, build_network, measure_bound_and_peak
from grounding.data.dataset import GroundingDataset
from grounding.data.loader import Batch, Loader
from grounding.modules.freezing import set_trainable
from grounding.structures.inputs import ModelInputs
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.registry import get_preset
from pipeline.config import merge
from pipeline.encoders.image_geometry import compute_appearance_size
from pipeline.encoders.optimize import optimize_for_inference
from pipeline.store import Entry
from pipeline.weights.load import load_backbone

MAP_STRIDE_FRAMES = 5
"""Frames of the video between two stored maps."""
ENCODER_BATCH_SIZES = {"image": 16, "motion": 4}
"""Images and clips per forward pass of a backbone, as in extraction."""


@dataclass(frozen=True)
class EndToEndSize:
    """Sizes of the inputs.

    Attributes:
        overrides: Settings merged into the preset `hcstvg-v1`.
        short_side: N_short in pixels.
        video_size: (width, height) in pixels.
        clip_shape: Frames of a clip, and side of a frame in pixels.
        num_tokens: Tokens of a sentence.
        backbones: Size of the backbones.
    """

    overrides: dict[str, Any]
    short_side: int
    video_size: tuple[int, int] = (1280, 720)
    clip_shape: tuple[int, int] = (32, 256)
    num_tokens: int = 20
    backbones: str = "full"

    @classmethod
    def for_device(cls, device: str) -> EndToEndSize:
        """Return the size for a device.

        Args:
            device: `cpu` or `cuda`.

        Returns:
            The paper's size for a GPU (8 queries, bfloat16). For a CPU one query with a quarter of
            the frames and clips.
        """
        if device == "cuda":
            return cls({"batch": 8, "precision": "bfloat16"}, 320)
        return cls({"batch": 1, "model": {"num_frames": 12, "num_clips": 4}}, 320)


@dataclass
class BackboneInputs:
    """Inputs of the backbones for one video.

    Attributes:
        pictures: `[T_s, h, w, 3]` uint8.
        clips: `[T_d, 3, frames, side, side]` uint8.
        text_states: `[L, C]` float16.
    """

    pictures: Tensor
    clips: Tensor
    text_states: np.ndarray

    @classmethod
    def from_size(cls, size: EndToEndSize, config: CsdvlTrainConfig) -> BackboneInputs:
        """Build random inputs from a fixed seed.

        Args:
            size: Sizes of the inputs.
            config: Config with the numbers of frames and clips.

        Returns:
            The inputs.
        """
        torch.manual_seed(0)
        width, height = compute_appearance_size(size.video_size, size.short_side)
        frames, side = size.clip_shape
        pictures = torch.randint(
            0, 256, (config.model.num_frames, height, width, 3), dtype=torch.uint8
        )
        clips = torch.randint(
            0, 256, (config.model.num_clips, 3, frames, side, side), dtype=torch.uint8
        )
        return cls(pictures, clips, torch.randn(size.num_tokens, CHANNELS["text"]).half().numpy())

    def roll(self, shift: int) -> BackboneInputs:
        """Return the inputs of another video, with frames and clips in another order.

        Args:
            shift: Positions to roll.

        Returns:
            The inputs.
        """
        return BackboneInputs(
            self.pictures.roll(shift, 0), self.clips.roll(shift, 0), self.text_states
        )


class NetworkWithBackbones(nn.Module):
    """CSDVL behind its backbones.

    Inputs have images in place of appearance maps, and clips `[B, T_d, 3, frames, side, side]` in
    place of motion maps.

    Args:
        network: CSDVL.
        image_encoder: Backbone of the appearance maps.
        motion_encoder: Backbone of the motion maps, frozen.
        train_image_encoder: Train the image encoder.
    """

    def __init__(
        self,
        network: nn.Module,
        image_encoder: nn.Module,
        motion_encoder: nn.Module,
        train_image_encoder: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.image_encoder = image_encoder
        self.motion_encoder = motion_encoder
        self.train_image_encoder = train_image_encoder
        set_trainable(image_encoder, train_image_encoder)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> NetworkWithBackbones:
        """Set the mode of the network; the backbones' norms keep their statistics.

        Args:
            mode: True for training.

        Returns:
            This module.
        """
        super().train(mode)
        self.image_encoder.eval()
        self.motion_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs) -> Any:
        """Encode images and clips, and run the network.

        Args:
            inputs: Inputs with images and clips.

        Returns:
            The network's outputs.
        """
        pictures = inputs.appearance.permute(0, 1, 4, 2, 3)
        maps = _encode_batches(
            self.image_encoder, pictures, ENCODER_BATCH_SIZES["image"], self.train_image_encoder
        )
        clips = _encode_batches(
            self.motion_encoder, inputs.motion, ENCODER_BATCH_SIZES["motion"], False
        )
        size = torch.tensor([maps.shape[2:4]] * len(maps), device=maps.device)
        return self.network(replace(inputs, appearance=maps, motion=clips, map_size=size))


def _encode_batches(encoder: nn.Module, inputs: Tensor, batch_size: int, trainable: bool) -> Tensor:
    """Encode `[B, T, …]` in batches, in float16 for a frozen backbone, as in the store."""
    with torch.set_grad_enabled(trainable and torch.is_grad_enabled()):
        batches = inputs.flatten(0, 1).split(batch_size)
        features = torch.cat([encoder(batch) for batch in batches])
        features = features.unflatten(0, inputs.shape[:2])

    return features if trainable else features.half()


VARIANTS = {
    "from the store": None,
    "ResNet-101 and SlowFast frozen": (False, False),
    "both frozen, as extraction runs them": (False, True),
    "ResNet-101 trains, SlowFast frozen": (True, False),
}
"""Pairs (image encoder trains, backbones optimized by `pipeline.encoders.optimize`).

None stands for stored features.
"""


class Fixture:
    """The network, its backbones, and the batches of all variants.

    Args:
        size: Sizes of the inputs.
        device: `cpu` or `cuda`.
    """

    def __init__(self, size: EndToEndSize, device: str) -> None:
        self.size, self.device = size, torch.device(device)
        settings = merge(get_preset("hcstvg-v1"), size.overrides)
        self.config = CsdvlTrainConfig.model_validate(settings)
        self.backbone_inputs = BackboneInputs.from_size(size, self.config)
        loaded = {
            name: load_backbone(name, size.backbones, "random:0").encoder.to(self.device)
            for name in ("appearance", "motion")
        }
        self.image_encoder, self.motion_encoder = loaded.values()
        self.network = build_network(
            self.config, CHANNELS | {name: encoder.channels for name, encoder in loaded.items()}
        )
        self.queries = make_queries(
            [f"v{index:03}" for index in range(self.config.batch)],
            self.config.model.num_frames * MAP_STRIDE_FRAMES,
            size.video_size,
        )

    @torch.inference_mode()
    def write_store(self, store: Path) -> None:
        """Extract the features of all videos in float16.

        Args:
            store: Path of the store.
        """
        maps = (
            _encode_batches(
                self.image_encoder,
                self.backbone_inputs.pictures.permute(0, 3, 1, 2)[None].to(self.device),
                ENCODER_BATCH_SIZES["image"],
                False,
            )[0]
            .cpu()
            .numpy()
        )
        clips = (
            _encode_batches(
                self.motion_encoder,
                self.backbone_inputs.clips[None].to(self.device),
                ENCODER_BATCH_SIZES["motion"],
                False,
            )[0]
            .cpu()
            .numpy()
        )
        rows = {"appearance": maps, "motion": clips}
        fill_store(
            store,
            self.queries,
            {
                **{name: self._build_entries(name, maps) for name, maps in rows.items()},
                "text": self._build_text_entries(),
            },
        )

    def _build_entries(self, name: str, rows: np.ndarray) -> Iterator[Entry]:
        """Yield rolled copies of rows as the entries of a product, one per video."""
        query = self.queries[0]
        frames = (np.arange(len(rows)) + 0.5) / len(rows) * query.frame_count
        facts = {"size": list(query.size), "fps": query.fps, "frame_count": query.frame_count}
        for shift, current in enumerate(self.queries):
            yield Entry(
                current.video,
                current.video,
                np.roll(rows, shift, 0),
                {"frame": frames.astype(np.int64)},
                facts,
            )

    def _build_text_entries(self) -> Iterator[Entry]:
        """Yield equal text features for all queries."""
        for query in self.queries:
            yield Entry(
                query.id,
                query.video,
                self.backbone_inputs.text_states,
                {"token": np.arange(len(self.backbone_inputs.text_states))},
                {},
            )

    def build_loader(self, store: Path) -> Loader:
        """Build the loader of a store.

        Args:
            store: Path of the store.

        Returns:
            The loader of all queries.
        """
        model = self.config.model
        features = GroundingDataset.from_store(
            store, "train", model.num_frames, model.num_clips, device=self.device
        )
        return Loader(features, features.queries, self.config.batch, 0, 0, device=self.device)

    def build_raw_batch(self, batch: Batch) -> Batch:
        """Replace the features of a batch by the inputs of the backbones.

        Args:
            batch: Batch of stored features.

        Returns:
            Batch with images and clips.
        """
        backbone_inputs = [self.backbone_inputs.roll(int(name[1:])) for name in batch.query_ids]
        pictures, clips = (
            torch.stack([getattr(raw, name) for raw in backbone_inputs]).to(self.device)
            for name in ("pictures", "clips")
        )
        return Batch(
            replace(batch.inputs, appearance=pictures, motion=clips), batch.targets, batch.query_ids
        )

    def build_step(self, variant: str) -> TrainingStep:
        """Build the training step of a variant from copies of the networks.

        Args:
            variant: Name of the variant.

        Returns:
            The step.
        """
        options = VARIANTS[variant]
        network = copy.deepcopy(self.network)
        if options is None:
            return TrainingStep(self.config, network, self.device)

        train_image_encoder, optimize = options
        image_encoder = copy.deepcopy(self.image_encoder)
        motion_encoder = copy.deepcopy(self.motion_encoder)
        if optimize:
            image_encoder = optimize_for_inference(image_encoder)
            motion_encoder = optimize_for_inference(motion_encoder)

        combined = NetworkWithBackbones(network, image_encoder, motion_encoder, train_image_encoder)
        return TrainingStep(self.config, combined, self.device)


@dataclass
class EndToEndStep(Case):
    """Training steps on stored features, against steps that run the backbones.

    A whole training step of CSDVL (preset `hcstvg-v1`) on batches that the loader reads from the
    store, against the same step on the same queries' decoded pictures and clips, with ResNet-101
    and SlowFast R50 before the same network: frozen, as their libraries give them and as quick as
    extraction makes them, and with the image encoder training, as the paper's does. The second of
    two steps in a row is timed. Decoding is in none of them. On a CPU with a quarter of the paper's
    frames and clips and one query, on a GPU at the paper's size. The boxes of the first three are
    checked to agree (features are float16 in all). Wanted: at least 4 against frozen backbones and
    8 against fine-tuned ones. Memory: a step's peak less what there was before it.
    """

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    size: EndToEndSize | None = None
    rounds: int = 2

    def __post_init__(self) -> None:
        self.resolved_size = self.size or EndToEndSize.for_device(self.device)
        self.precision = self.resolved_size.overrides.get("precision", "float32")

    def __enter__(self) -> EndToEndStep:
        super().__enter__()
        self.fixture = Fixture(self.resolved_size, self.device)
        self.fixture.write_store(self.work_dir / "store")
        return self

    @torch.inference_mode()
    def check_agreement(self) -> None:
        """Check that all variants agree."""
        fixture = self.fixture
        with fixture.build_loader(self.work_dir / "store") as loader:
            (part,) = next(iter(loader))
        stored, *fed = (
            fixture.build_step(variant).state.model.eval() for variant in list(VARIANTS)[:3]
        )
        expected, raw = stored(part.inputs).boxes, fixture.build_raw_batch(part).inputs
        for network in fed:
            torch.testing.assert_close(network(raw).boxes, expected, rtol=1e-2, atol=1e-3)

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        fixture = self.fixture
        store = self.work_dir / "store"
        # Before this process allocates its own networks
        bounds_and_peaks = {
            variant: run_in_forked_process(
                _measure_bound_and_peak, variant, self.resolved_size, self.device, store
            )
            for variant in VARIANTS
        }

        with fixture.build_loader(store) as loader:
            batches = iter(loader)
            raw = [fixture.build_raw_batch(part) for part in next(batches)]
            steps = {variant: fixture.build_step(variant) for variant in VARIANTS}
            first, *others = VARIANTS
            functions = {first: lambda: steps[first](next(batches))} | {
                variant: (lambda variant=variant: steps[variant](raw)) for variant in others
            }
            tops = {
                variant: profile_torch(step, self.device) for variant, step in functions.items()
            }  # each has now begun
            seconds = time_interleaved(functions, self.rounds, warmup_rounds=0, untimed_calls=1)

        measurements = {
            variant: Measurement(
                rounds,
                *bounds_and_peaks[variant],
                tops[variant],
                {"parameters": steps[variant].num_parameters},
            )
            for variant, rounds in seconds.items()
        }
        return [Comparison(self.build_title(raw[0]), measurements)]

    def build_title(self, part: Batch) -> str:
        """Describe the sizes of a batch.

        Args:
            part: Batch with images and clips.

        Returns:
            Title of the comparison.
        """
        batch, num_frames, height, width, _ = part.inputs.appearance.shape
        _, num_clips, _, *clip_shape = part.inputs.motion.shape
        frames = f"{batch} × {num_frames} frames of {width}×{height}"
        return f"{frames}, {num_clips} clips of {'×'.join(map(str, clip_shape))}"


def _measure_bound_and_peak(
    variant: str, size: EndToEndSize, device: str, store: Path
) -> tuple[LowerBound, int]:
    """Return the lower bound and the peak bytes of a variant's step."""
    fixture = Fixture(size, device)
    with fixture.build_loader(store) as loader:
        parts = next(iter(loader))

    if VARIANTS[variant] is not None:
        parts = [fixture.build_raw_batch(part) for part in parts]

    return measure_bound_and_peak(fixture.build_step(variant), parts, device)
