"""How long an answer takes: from cached features, and from the video file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch

from benchmarks.case import Case, Floor, Group, Way
from benchmarks.flops import operations_of
from benchmarks.synthetic_data import FPS, TEXT, asked_run, make_queries, make_tracks, make_video, rolled_features
from benchmarks.timing import in_turns, profile_torch
from benchmarks.training_step import CHANNELS, SLOWFAST, STRIDE, network_of_size
from grounding.data.dataset import FeatureSet
from grounding.inference.predict import predict
from grounding.systems.config import TrainConfig
from grounding.systems.registry import preset
from pipeline.config import merge
from pipeline.encoders.image_geometry import appearance_size
from pipeline.records import Prediction
from pipeline.video import DecodeChild

GPU = torch.cuda.is_available()
MAPS_EVERY, CLIPS_EVERY = 5, 10
"""Frames from one to the next: 5 maps a second, a clip each 0.4 s."""
WORDS = 20


@dataclass
class Answering(Case):
    """An answer about a 20 s video at 5 maps a second. From cached features: CSDVL of the preset `hcstvg-v1`, one sentence, against
    several about the same video; sentences alone and together get the same tubes. From the file: a run of one step is asked
    (`Grounder`), from the mp4 and again about the video it has seen; both answer alike. On a GPU with the full backbones and
    N_short 320 (wanted: 25 ms from cached features, 0.5 s from the mp4; the paper states 0.5 s on an RTX 3090); on a CPU with
    N_short 160, and the tiny backbones and preset `shapes` from the file. The floor is the networks' operations, and reading the
    features, or writing the pictures that are decoded.
    """

    packages = ("torch", "numpy", "decord", "av")
    device: str = "cuda" if GPU else "cpu"
    precision: str = "bfloat16" if GPU else "float32"
    seconds: int = 20
    size: tuple[int, int] = (640, 360)
    short: int = 320 if GPU else 160
    sentences: int = 2
    rounds: int = 10 if GPU else 2
    given: dict[str, Any] = field(default_factory=dict)
    backbones: str = "full" if GPU else "tiny"
    preset_name: str = "hcstvg-v1" if GPU else "shapes"

    def __enter__(self) -> Answering:
        super().__enter__()
        self.child = DecodeChild().__enter__()  # which decodes, as for the command
        config = TrainConfig.model_validate(merge(preset("hcstvg-v1"), self.given))
        self.network = network_of_size(config).to(self.device).eval()
        frames, (width, height) = self.seconds * FPS, appearance_size(self.size, self.short)
        cells = (-(-height // STRIDE), -(-width // STRIDE))
        shapes = {
            "appearance": (frames // MAPS_EVERY, *cells, CHANNELS["appearance"]),
            "motion": (frames // CLIPS_EVERY, *SLOWFAST, CHANNELS["motion"]),
            "text": (WORDS, CHANNELS["text"]),
        }
        video, *_ = queries = make_queries([f"v{number}" for number in range(self.sentences)], frames, self.size)
        self.queries = [query.model_copy(update={"video": video.video}) for query in queries]
        every = {"appearance": MAPS_EVERY, "motion": CLIPS_EVERY}
        made = rolled_features(queries, shapes, every)
        parts = (made["appearance"], made["motion"], made["text"], config.model.frames, config.model.clips)
        self.features = FeatureSet(self.queries, make_tracks(queries), *parts, device=torch.device(self.device))
        self.file = make_video(self.place / "videos" / "v0.mp4", self.size, frames)
        self.grounder = asked_run(self.place, queries[0], self.backbones, self.short, self.preset_name, self.device, self.child)
        return self

    def __exit__(self, *error: Any) -> None:
        self.child.__exit__(*error)
        super().__exit__(*error)

    def agree(self) -> None:
        together = self._answer(self.sentences)
        for query, answer in zip(self.queries, together, strict=True):
            (alone,) = predict(self.network, self.features, [query])
            assert alone.span == answer.span, (alone.span, answer.span)
            boxes = (torch.tensor([row[1:] for row in one.boxes]) for one in (alone, answer))
            torch.testing.assert_close(*boxes, rtol=0, atol=2.0 if GPU else 0.5)
        seen = self.grounder.look(self.file)
        assert self.grounder.answer(seen, [TEXT]).queries == self.grounder.ask(self.file, [TEXT]).queries

    def measure(self) -> list[Group]:
        title = f"{self.seconds} s of {self.size[0]}×{self.size[1]}"
        return [
            Group(f"{title}, cached features, N_short {self.short}", self._from_features()),
            Group(f"{title}, {self.backbones} backbones", self._from_file()),
        ]

    def _from_features(self) -> dict[str, Way]:
        counts = {f"{count} sentence{'s' if count > 1 else ''}": count for count in (1, self.sentences)}
        ways = {name: partial(self._answer, count) for name, count in counts.items()}
        floors = {name: Floor(operations_of(work), self._read(counts[name])) for name, work in ways.items()}  # each has now begun
        seconds = in_turns(ways, self.rounds, warm=int(GPU))
        top = {"1 sentence": profile_torch(ways["1 sentence"], self.device)}
        return {name: Way(own, floors[name], top=top.get(name, [])) for name, own in seconds.items()}

    def _from_file(self) -> dict[str, Way]:
        seen = self.grounder.look(self.file)
        ways: dict[str, Callable[[], object]] = {
            "seen before": lambda: self.grounder.answer(seen, [TEXT]),
            "from the mp4": lambda: self.grounder.ask(self.file, [TEXT]),
        }
        features = sum(2 * prod(product.shape(seen.key)) for product in seen.features.values())
        moved = {"seen before": features, "from the mp4": self.seconds * FPS * prod(self.size) * 3}
        seconds = in_turns(ways, self.rounds)
        return {
            name: Way(own, Floor(operations_of(ways[name]), moved[name]), top=profile_torch(ways[name], self.device))
            for name, own in seconds.items()
        }

    def _read(self, sentences: int) -> int:
        """Bytes of the video's features and of so many sentences' words."""
        maps, clips, words = (2 * prod(getattr(self.features, name).shape("v0")) for name in ("appearance", "motion", "text"))
        return maps + clips + sentences * words

    def _answer(self, sentences: int) -> list[Prediction]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return predict(self.network, self.features, self.queries[:sentences])
