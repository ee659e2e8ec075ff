"""Asking a trained run, or several together, about a video that is in no store.

    grounder = Grounder(Path("runs/shapes"))
    answers = grounder.ask(Path("video.mp4"), ["the red circle spins."])
    answers.queries[0].span_seconds

The video is decoded once, whatever the number of sentences, with the backbones, weights, sampling and reductions that the run's
`provenance.json` records. A video longer than what the run was trained on is asked about window by window (`grounding.predictor.windows`) while
it is decoded: hours take no more memory than minutes. With `keep` its features stay in a folder, for sentences to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grounding.data.dataset import SQUARE_MOTION_PRODUCTS, GroundingDataset
from grounding.data.feature_reduction import load_reduction
from grounding.data.sources import FeatureSource, ImageSource, InMemorySource, TokenSource
from grounding.inference.ensemble import Ensemble
from grounding.inference.predict import predicted, ranked_tube
from grounding.models.end_to_end import EndToEnd
from grounding.predictor.feature_cache import Kept
from grounding.predictor.results import Answers, AskedVideo, Best, answer_of
from grounding.predictor.window_length import window_seconds
from grounding.predictor.windows import Stretch, kept_stretches, streamed_stretches, windows_of
from grounding.systems.registry import get_tokenizer, unwrap_encoders
from pipeline.config import validate
from pipeline.devices import resolve_device
from pipeline.encoders.optimize import optimize_for_inference
from pipeline.errors import InputError
from pipeline.features.builders import encode_texts
from pipeline.features.config import SamplingConfig
from pipeline.features.stream import IN_PROCESS, FeatureStream, FrameDecoder
from pipeline.records import Query, Span
from pipeline.store import Entry
from pipeline.tracks import Tracks
from pipeline.weights.load import compute_weights_digest, load_backbone

Progress = Callable[[int, int], None]
SHAPES_STAMP = "shapes.json"
"""The file at the root of a made `shapes`."""


@dataclass(frozen=True)
class Seen:
    """A video that was looked at: its facts, its features by product, under `key`, and the frames' edges in seconds `[frame_count + 1]`."""

    video: AskedVideo
    key: str
    features: dict[str, FeatureSource]
    frame_edges: np.ndarray = field(repr=False)


class Grounder:
    """Models of one run, or of several that answer together, and the frozen backbones their features came from, ready to be asked.

    `frames` is how many frames a pass sees (T_s), by default as in training; `batch` how many passes run at once; `refine` and
    `between` are as in `predict`. `window` is the length in seconds of the windows that a longer video is asked about in, by default
    that of the segments the run was trained on (`grounding.predictor.window_length`). Videos are decoded in this process, or where `decoder` does it.
    """

    def __init__(
        self,
        *runs: Path,
        device: str = "auto",
        frames: int | None = None,
        batch: int = 16,
        refine: bool = False,
        between: bool = True,
        window: float | None = None,
        decoder: FrameDecoder = IN_PROCESS,
    ) -> None:
        self.decoder = decoder
        self.device = resolve_device(device)
        self.batch, self.refine, self.between = batch, refine, between
        self.ensemble = Ensemble.of_runs(runs, self.device, frames)
        run, provenance = self.ensemble.runs[0], self.ensemble.about
        self.dataset: str = provenance["dataset"]
        made_from = provenance["products"]
        sampling = {
            key: value
            for about in made_from.values()
            for key, value in about.get("sampling", {}).items()
        }
        self.sampling = validate(SamplingConfig, sampling, f"{run / 'provenance.json'}")
        trained = trained_encoders(self.ensemble)
        self.visual = tuple(self.ensemble.roles.values())
        self.tokenize = get_tokenizer(self.ensemble.models[0]) if self.ensemble.pictures else None
        needed = self.visual if self.tokenize else (*self.visual, "text")
        self.encoders = {
            name: trained.get(name) or recorded_encoder(run, name, made_from[name], self.device)
            for name in needed
        }
        self.networks = [unwrap_encoders(model) for model in self.ensemble.models]
        self.reductions = {
            name: load_reduction(run, name, made_from.get(name, {})) for name in self.visual
        }
        self.origins = {
            name: made_from.get(name) or self._trained_origin(name) for name in self.visual
        }
        if window is not None and not window > 0:
            raise InputError(f"a window of {window} seconds: give a number above 0")
        self.window = window or window_seconds(run, provenance, self.sampling.fps)

    def ask(
        self,
        video: Path,
        sentences: Sequence[str],
        top: int = 1,
        progress: Progress = lambda done, total: None,
    ) -> Answers:
        """Where and when each sentence happens in the video, which is decoded once and of which nothing is kept.

        `top`: how many tubes, of different events, a sentence is given at most. `progress` counts frames. InputError for an empty
        sentence, VideoError for a bad video.
        """
        texts, stream = checked_sentences(sentences), self._stream(video, progress)
        about, edges = asked_video(video, stream.initial_facts), stream.video_metadata.edges
        windows = windows_of(edges, self.window)
        stretches = streamed_stretches(
            about.path, stream, self.reductions, windows, self._together()
        )
        return self._answers(about, about.path, edges, stretches, texts, top)

    def look(
        self, video: Path, keep: Path | None = None, progress: Progress = lambda done, total: None
    ) -> Seen:
        """Decode a video and keep its features, so that `answer` may be called any number of times; `progress` counts frames.

        They are kept in memory, or, of a long video, in the folder `keep`: where they are there already nothing is decoded.
        """
        if keep is None:
            stream = self._stream(video, progress)
            whole = next(
                streamed_stretches(
                    str(video), stream, self.reductions, [(0, stream.video_metadata.frame_count)], 1
                )
            )
            return Seen(
                asked_video(video, stream.initial_facts),
                str(video),
                whole.features,
                stream.video_metadata.edges,
            )
        folder = Kept(keep, self.origins)
        there = folder.find(video) or folder.add(
            video, self._stream(video, progress), self.reductions
        )
        return Seen(
            asked_video(video, there.facts), there.key, {**there.products}, there.frame_edges
        )

    def answer(
        self,
        seen: Seen,
        sentences: Sequence[str],
        top: int = 1,
        progress: Progress = lambda done, total: None,
    ) -> Answers:
        """Answers about a video that was looked at; `progress` counts windows, each of which all sentences are asked about."""
        texts, windows = checked_sentences(sentences), windows_of(seen.frame_edges, self.window)
        stretches = kept_stretches(seen.key, seen.features, windows, self._together())
        progress(0, len(windows))
        return self._answers(
            seen.video,
            seen.key,
            seen.frame_edges,
            counted(stretches, len(windows), progress),
            texts,
            top,
        )

    def _trained_origin(self, product: str) -> dict[str, Any]:
        """What tells features of an encoder that trained from others."""
        return {
            "weights_digest": compute_weights_digest(self.encoders[product], product),
            "sampling": self.sampling.model_dump(mode="json"),
        }

    def _stream(self, video: Path, progress: Progress) -> FeatureStream:
        encoders = {name: self.encoders[name] for name in self.visual}
        return FeatureStream(
            Path(video), self.sampling, encoders, decoder=self.decoder, progress=progress
        )

    def _together(self) -> int:
        """How many windows' passes fill a batch."""
        passes = math.ceil(self.window * self.sampling.fps / self.ensemble.frames)
        return max(1, self.batch // passes)

    def _answers(
        self,
        video: AskedVideo,
        key: str,
        frame_edges: np.ndarray,
        stretches: Iterable[Stretch],
        texts: Sequence[str],
        top: int,
    ) -> Answers:
        """Ask every window about every sentence; `key` is the video's among the features."""
        words = self._words(video, texts)
        best = [Best(top) for _ in texts]
        for stretch in stretches:
            queries = [
                query_of(video, key, place, text, window)
                for window in stretch.windows
                for place, text in enumerate(texts)
            ]
            features = self._features(queries, stretch, words)
            with self.ensemble.computing():
                found = predicted(
                    ranked_tube,
                    self.networks,
                    features,
                    queries,
                    self.batch,
                    refine=self.refine,
                    between=self.between,
                )
            for query, (rank, prediction) in zip(queries, found, strict=True):
                best[int(query.id)].add(rank, prediction)
        answers = [
            answer_of(text, own.chosen(), frame_edges)
            for text, own in zip(texts, best, strict=True)
        ]
        return Answers(video=video, queries=answers)

    def _features(
        self, queries: Sequence[Query], stretch: Stretch, words: FeatureSource
    ) -> GroundingDataset:
        appearance, *motion = (stretch.features[name] for name in self.visual)
        if self.ensemble.pictures:
            appearance = ImageSource(appearance, self.sampling.short_side)
        frames, clips, squared = (
            self.ensemble.frames,
            self.ensemble.clips,
            self.ensemble.motion in SQUARE_MOTION_PRODUCTS,
        )
        return GroundingDataset(
            queries,
            Tracks(),
            appearance,
            motion[0] if motion else None,
            words,
            frames,
            clips,
            squared,
            self.device,
        )

    def _words(self, video: AskedVideo, texts: Sequence[str]) -> FeatureSource:
        """What the networks read of sentences, by their number: tokens, or token states."""
        if self.tokenize is not None:
            return TokenSource(
                [
                    query_of(video, video.path, place, text, (0, 1))
                    for place, text in enumerate(texts)
                ],
                self.tokenize,
            )
        states = encode_texts(list(texts), self.encoders["text"])
        return InMemorySource(
            [
                Entry(str(place), video.path, rows, {"token": tokens})
                for place, (rows, tokens) in enumerate(states)
            ]
        )

    def doubt(self, video: Path) -> str:
        """Why the run may be of no use for this video ("" if nothing speaks against it)."""
        folders = Path(video).resolve().parents
        if self.dataset != "shapes" or any((folder / SHAPES_STAMP).is_file() for folder in folders):
            return ""
        return (
            f"{self.ensemble.runs[0]} was trained on `shapes`, moving figures on plain ground: what it says about another video"
            " means little; train a run on videos like this one"
        )


def checked_sentences(sentences: Sequence[str]) -> list[str]:
    """The sentences without white space around them; none at all, or an empty one, is an InputError."""
    texts = [text.strip() for text in sentences]
    if not texts:
        raise InputError('no sentence: say what to look for, for example "a dog jumps."')
    for number, text in enumerate(texts, start=1):
        if not text:
            raise InputError(
                f"sentence {number} of {len(texts)} is empty: say what to look for, or leave it out"
            )
    return texts


def trained_encoders(ensemble: Ensemble) -> dict[str, nn.Module]:
    """The encoders that were trained before the network, by product; an InputError where several runs have each their own. A
    network that is given pictures keeps its own to itself.
    """
    first = ensemble.models[0]
    if not isinstance(first, EndToEnd):
        return {}
    if len(ensemble.models) > 1:
        raise InputError(
            f"{', '.join(map(str, ensemble.runs))}: each of these runs has encoders of its own, and a video is encoded once: name one run "
            "(stvg-eval lets several answer about a store)"
        )
    return {"appearance": first.image_encoder, "text": first.text_encoder}


def recorded_encoder(
    run: Path, product: str, made_from: dict[str, Any], device: torch.device
) -> nn.Module:
    """The encoder a run's features came from, ready to compute; InputError where the weights found now are others. Pictures need none."""
    if product == "frames":
        return nn.Identity()
    backbone = load_backbone(
        product, made_from["backbone"], made_from["weights"], made_from.get("slowfast")
    )
    if backbone.digest != made_from["weights_digest"]:
        raise InputError(
            f"{run} was trained on {product} features of weights {made_from['weights']!r} with digest"
            f" {made_from['weights_digest'][:12]}…, but these weights are {backbone.digest[:12]}… here:"
            " put the same weights back, or extract and train again"
        )
    return optimize_for_inference(backbone.encoder.to(device))


def asked_video(video: Path, facts: Mapping[str, Any]) -> AskedVideo:
    return AskedVideo.model_validate(
        {"path": str(video), **{key: facts[key] for key in ("fps", "frame_count", "size")}}
    )


def query_of(video: AskedVideo, key: str, place: int, text: str, window: Span) -> Query:
    """A sentence, by its place among the sentences, about a window of a video, as a query without truth."""
    facts = {
        "fps": video.fps,
        "frame_count": video.frame_count,
        "size": video.size,
        "segment": window,
    }
    return Query.model_validate(
        {"id": str(place), "video": key, "path": video.path, "text": text, "split": "ask", **facts}
    )


def counted(stretches: Iterable[Stretch], total: int, progress: Progress) -> Iterator[Stretch]:
    """The same stretches; `progress` hears of the windows of each one that is done with."""
    done = 0
    for stretch in stretches:
        yield stretch
        done += len(stretch.windows)
        progress(done, total)
