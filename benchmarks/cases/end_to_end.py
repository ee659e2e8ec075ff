"""The headline: a training step of CSDVL from the store, against the same network fed by its
backbones in every step.

ResNet-101 sees the frames and SlowFast the clips of every query of every step: frozen, as a run
without a store would have it, and with the image encoder training, as the paper and its peers do.
The words' states are stored in all of them.
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
"""Frames of the video from one stored map to the next."""
ENCODER_BATCH_SIZES = {"image": 16, "motion": 4}
"""Pictures and clips that go through a frozen backbone at once, as in extraction."""


@dataclass(frozen=True)
class EndToEndSize:
    """`given` is laid over the preset `hcstvg-v1`; N_short and the sides of the clips are in
    pixels; the sentence has `words` tokens.
    """

    overrides: dict[str, Any]
    short_side: int
    video_size: tuple[int, int] = (1280, 720)
    clip_shape: tuple[int, int] = (32, 256)
    num_tokens: int = 20
    backbones: str = "full"

    @classmethod
    def for_device(cls, device: str) -> EndToEndSize:
        """The paper's for a GPU (8 queries, bfloat16); for a CPU one query, of a quarter of the
        frames and clips.
        """
        if device == "cuda":
            return cls({"batch": 8, "precision": "bfloat16"}, 320)
        return cls({"batch": 1, "model": {"num_frames": 12, "num_clips": 4}}, 320)


@dataclass
class BackboneInputs:
    """What the backbones see of every video: pictures `[T_s, h, w, 3]`, clips `[T_d, 3, frames,
    side, side]` uint8, and words.
    """

    pictures: Tensor
    clips: Tensor
    text_states: np.ndarray

    @classmethod
    def from_size(cls, size: EndToEndSize, config: CsdvlTrainConfig) -> BackboneInputs:
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
        """Another video: the same moments, in another order."""
        return BackboneInputs(
            self.pictures.roll(shift, 0), self.clips.roll(shift, 0), self.text_states
        )


class NetworkWithBackbones(nn.Module):
    """CSDVL with its backbones before it, of which the image encoder `learns`. Given pictures for maps, and clips
    `[B, T_d, 3, frames, side, side]` for motion maps.
    """

    def __init__(
        self,
        network: nn.Module,
        image_encoder: nn.Module,
        motion_encoder: nn.Module,
        train_image_encoder: bool,
    ) -> None:
        super().__init__()
        self.network, self.image_encoder, self.motion_encoder, self.train_image_encoder = (
            network,
            image_encoder,
            motion_encoder,
            train_image_encoder,
        )
        set_trainable(image_encoder, train_image_encoder)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> NetworkWithBackbones:
        """The backbones' norms keep their statistics."""
        super().train(mode)
        self.image_encoder.eval()
        self.motion_encoder.eval()
        return self

    def forward(self, inputs: ModelInputs) -> Any:
        pictures = inputs.appearance.permute(0, 1, 4, 2, 3)
        maps = _encode_batches(
            self.image_encoder, pictures, ENCODER_BATCH_SIZES["image"], self.train_image_encoder
        )
        clips = _encode_batches(
            self.motion_encoder, inputs.motion, ENCODER_BATCH_SIZES["motion"], False
        )
        size = torch.tensor([maps.shape[2:4]] * len(maps), device=maps.device)
        return self.network(replace(inputs, appearance=maps, motion=clips, map_size=size))


def _encode_batches(encoder: nn.Module, seen: Tensor, together: int, learns: bool) -> Tensor:
    """What a backbone makes of `[B, T, …]`, a few at once, in float16 where it is frozen, as the
    store would hold it.
    """
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
        made = torch.cat([encoder(part) for part in seen.flatten(0, 1).split(together)]).unflatten(
            0, seen.shape[:2]
        )
    return made if learns else made.half()


VARIANTS = {
    "from the store": None,
    "ResNet-101 and SlowFast frozen": (False, False),
    "both frozen, as extraction runs them": (False, True),
    "ResNet-101 trains, SlowFast frozen": (True, False),
}
"""Whether the image encoder learns, and whether the backbones are made quick by
`pipeline.encoders.optimize`.
"""


class Fixture:
    """The network, its backbones and the batches of every way; `store` holds what the backbones
    make of the pictures.
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
            [f"v{number:03}" for number in range(self.config.batch)],
            self.config.model.num_frames * MAP_STRIDE_FRAMES,
            size.video_size,
        )

    @torch.inference_mode()
    def write_store(self, store: Path) -> None:
        """Extraction in short: every video's maps and clips, in float16."""
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
                **{name: self._build_entries(name, own) for name, own in rows.items()},
                "text": self._build_text_entries(),
            },
        )

    def _build_entries(self, name: str, rows: np.ndarray) -> Iterator[Entry]:
        query = self.queries[0]
        frames = (np.arange(len(rows)) + 0.5) / len(rows) * query.frame_count
        facts = {"size": list(query.size), "fps": query.fps, "frame_count": query.frame_count}
        for number, own in enumerate(self.queries):
            yield Entry(
                own.video,
                own.video,
                np.roll(rows, number, 0),
                {"frame": frames.astype(np.int64)},
                facts,
            )

    def _build_text_entries(self) -> Iterator[Entry]:
        for query in self.queries:
            yield Entry(
                query.id,
                query.video,
                self.backbone_inputs.text_states,
                {"token": np.arange(len(self.backbone_inputs.text_states))},
                {},
            )

    def build_loader(self, store: Path) -> Loader:
        model = self.config.model
        features = GroundingDataset.from_store(
            store, "train", model.num_frames, model.num_clips, device=self.device
        )
        return Loader(features, features.queries, self.config.batch, 0, 0, device=self.device)

    def build_raw_batch(self, batch: Batch) -> Batch:
        """The batch with what the backbones see in the place of what they make."""
        own = [self.backbone_inputs.roll(int(name[1:])) for name in batch.query_ids]
        pictures, clips = (
            torch.stack([getattr(raw, name) for raw in own]).to(self.device)
            for name in ("pictures", "clips")
        )
        return Batch(
            replace(batch.inputs, appearance=pictures, motion=clips), batch.targets, batch.query_ids
        )

    def build_step(self, variant: str) -> TrainingStep:
        how, network = VARIANTS[variant], copy.deepcopy(self.network)
        if how is None:
            return TrainingStep(self.config, network, self.device)
        (learns, quick), backbones = (
            how,
            (copy.deepcopy(self.image_encoder), copy.deepcopy(self.motion_encoder)),
        )
        fed = NetworkWithBackbones(
            network, *map(optimize_for_inference, backbones) if quick else backbones, learns
        )
        return TrainingStep(self.config, fed, self.device)


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
        made = self.fixture
        with made.build_loader(self.work_dir / "store") as loader:
            (part,) = next(iter(loader))
        stored, *fed = (made.build_step(way).state.model.eval() for way in list(VARIANTS)[:3])
        expected, raw = stored(part.inputs).boxes, made.build_raw_batch(part).inputs
        for network in fed:
            torch.testing.assert_close(network(raw).boxes, expected, rtol=1e-2, atol=1e-3)

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        made = self.fixture
        store = self.work_dir / "store"
        least = {
            way: run_in_forked_process(
                _measure_bound_and_peak, way, self.resolved_size, self.device, store
            )
            for way in VARIANTS
        }  # while this process holds little
        with made.build_loader(store) as loader:
            batches = iter(loader)
            raw = [made.build_raw_batch(part) for part in next(batches)]
            steps = {way: made.build_step(way) for way in VARIANTS}
            first, *others = VARIANTS
            ways = {first: lambda: steps[first](next(batches))} | {
                way: (lambda way=way: steps[way](raw)) for way in others
            }
            tops = {
                way: profile_torch(step, self.device) for way, step in ways.items()
            }  # each has now begun
            seconds = time_interleaved(ways, self.rounds, warmup_rounds=0, untimed_calls=1)
        found = {
            way: Measurement(own, *least[way], tops[way], {"parameters": steps[way].num_parameters})
            for way, own in seconds.items()
        }
        return [Comparison(self.build_title(raw[0]), found)]

    def build_title(self, part: Batch) -> str:
        pictures, clips = part.inputs.appearance.shape, part.inputs.motion.shape
        return f"{pictures[0]} × {pictures[1]} frames of {pictures[3]}×{pictures[2]}, {clips[1]} clips of {clips[3]}×{clips[4]}×{clips[5]}"


def _measure_bound_and_peak(
    way: str, size: EndToEndSize, device: str, store: Path
) -> tuple[LowerBound, int]:
    made = Fixture(size, device)
    with made.build_loader(store) as loader:
        parts = next(iter(loader))
    parts = parts if VARIANTS[way] is None else [made.build_raw_batch(part) for part in parts]
    return measure_bound_and_peak(made.build_step(way), parts, device)
