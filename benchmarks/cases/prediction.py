"""Latency of grounding, from cached features and from a video file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch

from benchmarks.case import Case, Comparison, LowerBound, Measurement
from benchmarks.flops import count_flops
from benchmarks.synthetic_data import (
    FPS,
    TEXT,
    build_grounder,
    build_rolled_features,
    make_queries,
    make_tracks,
    make_video,
)
from benchmarks.timing import profile_torch, time_interleaved
from benchmarks.training_step import CELL_STRIDE, CHANNELS, SLOWFAST_GRID, build_network
from grounding.data.dataset import GroundingDataset
from grounding.inference.predict import predict
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.registry import get_preset
from pipeline.config import merge
from pipeline.encoders.image_geometry import compute_appearance_size
from pipeline.records import Prediction
from pipeline.video import ProcessDecoder

HAS_GPU = torch.cuda.is_available()
MAP_STRIDE_FRAMES = 5
"""Frames between two maps: 5 maps per second."""
CLIP_STRIDE_FRAMES = 10
"""Frames between two clips: one clip per 0.4 s."""
NUM_TOKENS = 20


@dataclass
class PredictionLatency(Case):
    """Latency of grounding, from cached features and from a video file.

    An answer about a 20 s video at 5 maps a second. From cached features: CSDVL of the preset
    `hcstvg-v1`, one sentence, against several about the same video; sentences alone and together
    get the same tubes. From the file: a run of one step is asked (`Grounder`), from the mp4 and
    again about the video it has seen; both answer alike. On a GPU with the full backbones and
    N_short 320 (wanted: 25 ms from cached features, 0.5 s from the mp4; the paper states 0.5 s on
    an RTX 3090); on a CPU with N_short 160, and the tiny backbones and preset `shapes` from the
    file. The floor is the networks' operations, and reading the features, or writing the pictures
    that are decoded.
    """

    packages = ("torch", "numpy", "decord", "av")
    device: str = "cuda" if HAS_GPU else "cpu"
    precision: str = "bfloat16" if HAS_GPU else "float32"
    seconds: int = 20
    size: tuple[int, int] = (640, 360)
    short_side: int = 320 if HAS_GPU else 160
    num_sentences: int = 2
    rounds: int = 10 if HAS_GPU else 2
    overrides: dict[str, Any] = field(default_factory=dict)
    backbones: str = "full" if HAS_GPU else "tiny"
    preset_name: str = "hcstvg-v1" if HAS_GPU else "shapes"

    def __enter__(self) -> PredictionLatency:
        super().__enter__()
        self.process_decoder = ProcessDecoder().__enter__()  # as in the command
        config = CsdvlTrainConfig.model_validate(merge(get_preset("hcstvg-v1"), self.overrides))
        self.network = build_network(config).to(self.device).eval()
        frames = self.seconds * FPS
        width, height = compute_appearance_size(self.size, self.short_side)
        cells = (-(-height // CELL_STRIDE), -(-width // CELL_STRIDE))
        shapes = {
            "appearance": (frames // MAP_STRIDE_FRAMES, *cells, CHANNELS["appearance"]),
            "motion": (frames // CLIP_STRIDE_FRAMES, *SLOWFAST_GRID, CHANNELS["motion"]),
            "text": (NUM_TOKENS, CHANNELS["text"]),
        }

        # One query per sentence, all about the first video
        names = [f"v{index}" for index in range(self.num_sentences)]
        queries = make_queries(names, frames, self.size)
        video = queries[0]
        self.queries = [query.model_copy(update={"video": video.video}) for query in queries]

        frame_strides = {"appearance": MAP_STRIDE_FRAMES, "motion": CLIP_STRIDE_FRAMES}
        products = build_rolled_features(queries, shapes, frame_strides)
        parts = (
            products["appearance"],
            products["motion"],
            products["text"],
            config.model.num_frames,
            config.model.num_clips,
        )
        self.features = GroundingDataset(
            self.queries, make_tracks(queries), *parts, device=torch.device(self.device)
        )
        self.video_path = make_video(self.work_dir / "videos" / "v0.mp4", self.size, frames)
        self.grounder = build_grounder(
            self.work_dir,
            queries[0],
            self.backbones,
            self.short_side,
            self.preset_name,
            self.device,
            self.process_decoder,
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self.process_decoder.__exit__(*error)
        super().__exit__(*error)

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        joint_predictions = self._predict(self.num_sentences)
        for query, joint in zip(self.queries, joint_predictions, strict=True):
            (single,) = predict(self.network, self.features, [query])
            assert single.span == joint.span, (single.span, joint.span)
            boxes = (
                torch.tensor([row[1:] for row in prediction.boxes])
                for prediction in (single, joint)
            )
            torch.testing.assert_close(*boxes, rtol=0, atol=2.0 if HAS_GPU else 0.5)
        features = self.grounder.encode_video(self.video_path)
        assert (
            self.grounder.ground_encoded(features, [TEXT]).queries
            == self.grounder.ground(self.video_path, [TEXT]).queries
        )

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        title = f"{self.seconds} s of {self.size[0]}×{self.size[1]}"
        return [
            Comparison(
                f"{title}, cached features, N_short {self.short_side}",
                self._measure_cached_features(),
            ),
            Comparison(f"{title}, {self.backbones} backbones", self._measure_video_file()),
        ]

    def _measure_cached_features(self) -> dict[str, Measurement]:
        """Measure one sentence and several, on cached features."""
        counts = {
            f"{count} sentence{'s' if count > 1 else ''}": count
            for count in (1, self.num_sentences)
        }
        ways = {name: partial(self._predict, count) for name, count in counts.items()}
        floors = {
            name: LowerBound(count_flops(work), self._count_feature_bytes(counts[name]))
            for name, work in ways.items()
        }  # each has now begun
        seconds = time_interleaved(ways, self.rounds, warmup_rounds=int(HAS_GPU))
        top = {"1 sentence": profile_torch(ways["1 sentence"], self.device)}
        return {
            name: Measurement(rounds, floors[name], hotspots=top.get(name, []))
            for name, rounds in seconds.items()
        }

    def _measure_video_file(self) -> dict[str, Measurement]:
        """Measure an encoded video, and the video file."""
        features = self.grounder.encode_video(self.video_path)
        ways: dict[str, Callable[[], object]] = {
            "seen before": lambda: self.grounder.ground_encoded(features, [TEXT]),
            "from the mp4": lambda: self.grounder.ground(self.video_path, [TEXT]),
        }
        feature_bytes = sum(
            2 * prod(product.shape(features.key)) for product in features.features.values()
        )
        moved = {
            "seen before": feature_bytes,
            "from the mp4": self.seconds * FPS * prod(self.size) * 3,
        }
        seconds = time_interleaved(ways, self.rounds)
        return {
            name: Measurement(
                rounds,
                LowerBound(count_flops(ways[name]), moved[name]),
                hotspots=profile_torch(ways[name], self.device),
            )
            for name, rounds in seconds.items()
        }

    def _count_feature_bytes(self, sentences: int) -> int:
        """Return the bytes of the video's features and of the sentences' text features."""
        maps, clips, words = (
            2 * prod(getattr(self.features, name).shape("v0"))
            for name in ("appearance", "motion", "text")
        )
        return maps + clips + sentences * words

    def _predict(self, sentences: int) -> list[Prediction]:
        """Predict the tubes of the first sentences."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return predict(self.network, self.features, self.queries[:sentences])
