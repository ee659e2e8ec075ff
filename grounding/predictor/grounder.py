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
from grounding.inference.predict import decode_ranked_tube, run_passes
from grounding.models.end_to_end import EndToEnd
from grounding.predictor.feature_cache import FeatureCache
from grounding.predictor.results import GroundingResult, TopTubes, VideoInfo, build_query_result
from grounding.predictor.window_length import get_window_seconds
from grounding.predictor.windows import (
    WindowBatch,
    plan_windows,
    read_window_batches,
    stream_window_batches,
)
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

ProgressCallback = Callable[[int, int], None]
SHAPES_MARKER_FILE = "shapes.json"
"""The file at the root of a made `shapes`."""


@dataclass(frozen=True)
class VideoFeatures:
    """A video that was looked at: its facts, its features by product, under `key`, and the frames' edges in seconds `[frame_count + 1]`."""

    video: VideoInfo
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
        num_frames: int | None = None,
        batch_size: int = 16,
        refine_boundaries: bool = False,
        subframe_boundaries: bool = True,
        window_seconds: float | None = None,
        decoder: FrameDecoder = IN_PROCESS,
    ) -> None:
        self.decoder = decoder
        self.device = resolve_device(device)
        self.batch_size, self.refine_boundaries, self.subframe_boundaries = (
            batch_size,
            refine_boundaries,
            subframe_boundaries,
        )
        self.ensemble = Ensemble.from_runs(runs, self.device, num_frames)
        run, provenance = self.ensemble.runs[0], self.ensemble.provenance
        self.dataset_name: str = provenance["dataset"]
        made_from = provenance["products"]
        sampling = {
            key: value
            for about in made_from.values()
            for key, value in about.get("sampling", {}).items()
        }
        self.sampling = validate(SamplingConfig, sampling, f"{run / 'provenance.json'}")
        trained = get_trained_encoders(self.ensemble)
        self.visual_products = tuple(self.ensemble.product_by_input.values())
        self.tokenize = (
            get_tokenizer(self.ensemble.models[0]) if self.ensemble.reads_images else None
        )
        needed = self.visual_products if self.tokenize else (*self.visual_products, "text")
        self.encoders = {
            name: trained.get(name)
            or load_recorded_encoder(run, name, made_from[name], self.device)
            for name in needed
        }
        self.networks = [unwrap_encoders(model) for model in self.ensemble.models]
        self.reductions = {
            name: load_reduction(run, name, made_from.get(name, {}))
            for name in self.visual_products
        }
        self.origins = {
            name: made_from.get(name) or self._build_trained_origin(name)
            for name in self.visual_products
        }
        if window_seconds is not None and not window_seconds > 0:
            raise InputError(f"a window of {window_seconds} seconds: give a number above 0")
        self.window_seconds = window_seconds or get_window_seconds(
            run, provenance, self.sampling.fps
        )

    def ground(
        self,
        video: Path,
        sentences: Sequence[str],
        top_k: int = 1,
        progress: ProgressCallback = lambda done, total: None,
    ) -> GroundingResult:
        """Where and when each sentence happens in the video, which is decoded once and of which nothing is kept.

        `top`: how many tubes, of different events, a sentence is given at most. `progress` counts frames. InputError for an empty
        sentence, VideoError for a bad video.
        """
        texts, stream = validate_sentences(sentences), self._open_stream(video, progress)
        about, edges = build_video_info(video, stream.initial_facts), stream.video_metadata.edges
        windows = plan_windows(edges, self.window_seconds)
        stretches = stream_window_batches(
            about.path, stream, self.reductions, windows, self._compute_windows_per_batch()
        )
        return self._ground_windows(about, about.path, edges, stretches, texts, top_k)

    def encode_video(
        self,
        video: Path,
        cache_dir: Path | None = None,
        progress: ProgressCallback = lambda done, total: None,
    ) -> VideoFeatures:
        """Decode a video and keep its features, so that `answer` may be called any number of times; `progress` counts frames.

        They are kept in memory, or, of a long video, in the folder `keep`: where they are there already nothing is decoded.
        """
        if cache_dir is None:
            stream = self._open_stream(video, progress)
            whole = next(
                stream_window_batches(
                    str(video), stream, self.reductions, [(0, stream.video_metadata.frame_count)], 1
                )
            )
            return VideoFeatures(
                build_video_info(video, stream.initial_facts),
                str(video),
                whole.features,
                stream.video_metadata.edges,
            )
        folder = FeatureCache(cache_dir, self.origins)
        there = folder.find(video) or folder.add(
            video, self._open_stream(video, progress), self.reductions
        )
        return VideoFeatures(
            build_video_info(video, there.facts), there.key, {**there.products}, there.frame_edges
        )

    def ground_encoded(
        self,
        video_features: VideoFeatures,
        sentences: Sequence[str],
        top_k: int = 1,
        progress: ProgressCallback = lambda done, total: None,
    ) -> GroundingResult:
        """Answers about a video that was looked at; `progress` counts windows, each of which all sentences are asked about."""
        texts, windows = (
            validate_sentences(sentences),
            plan_windows(video_features.frame_edges, self.window_seconds),
        )
        stretches = read_window_batches(
            video_features.key, video_features.features, windows, self._compute_windows_per_batch()
        )
        progress(0, len(windows))
        return self._ground_windows(
            video_features.video,
            video_features.key,
            video_features.frame_edges,
            track_progress(stretches, len(windows), progress),
            texts,
            top_k,
        )

    def _build_trained_origin(self, product: str) -> dict[str, Any]:
        """What tells features of an encoder that trained from others."""
        return {
            "weights_digest": compute_weights_digest(self.encoders[product], product),
            "sampling": self.sampling.model_dump(mode="json"),
        }

    def _open_stream(self, video: Path, progress: ProgressCallback) -> FeatureStream:
        encoders = {name: self.encoders[name] for name in self.visual_products}
        return FeatureStream(
            Path(video), self.sampling, encoders, decoder=self.decoder, progress=progress
        )

    def _compute_windows_per_batch(self) -> int:
        """How many windows' passes fill a batch."""
        passes = math.ceil(self.window_seconds * self.sampling.fps / self.ensemble.num_frames)
        return max(1, self.batch_size // passes)

    def _ground_windows(
        self,
        video: VideoInfo,
        key: str,
        frame_edges: np.ndarray,
        window_batches: Iterable[WindowBatch],
        texts: Sequence[str],
        top_k: int,
    ) -> GroundingResult:
        """Ask every window about every sentence; `key` is the video's among the features."""
        words = self._build_text_source(video, texts)
        best = [TopTubes(top_k) for _ in texts]
        for stretch in window_batches:
            queries = [
                build_query(video, key, place, text, window)
                for window in stretch.windows
                for place, text in enumerate(texts)
            ]
            features = self._build_dataset(queries, stretch, words)
            with self.ensemble.autocast():
                found = run_passes(
                    decode_ranked_tube,
                    self.networks,
                    features,
                    queries,
                    self.batch_size,
                    refine_boundaries=self.refine_boundaries,
                    subframe_boundaries=self.subframe_boundaries,
                )
            for query, (rank, prediction) in zip(queries, found, strict=True):
                best[int(query.id)].add(rank, prediction)
        answers = [
            build_query_result(text, own.select(), frame_edges)
            for text, own in zip(texts, best, strict=True)
        ]
        return GroundingResult(video=video, queries=answers)

    def _build_dataset(
        self, queries: Sequence[Query], window_batch: WindowBatch, text_source: FeatureSource
    ) -> GroundingDataset:
        appearance, *motion = (window_batch.features[name] for name in self.visual_products)
        if self.ensemble.reads_images:
            appearance = ImageSource(appearance, self.sampling.short_side)
        frames, clips, squared = (
            self.ensemble.num_frames,
            self.ensemble.num_clips,
            self.ensemble.motion_product in SQUARE_MOTION_PRODUCTS,
        )
        return GroundingDataset(
            queries,
            Tracks(),
            appearance,
            motion[0] if motion else None,
            text_source,
            frames,
            clips,
            squared,
            self.device,
        )

    def _build_text_source(self, video: VideoInfo, texts: Sequence[str]) -> FeatureSource:
        """What the networks read of sentences, by their number: tokens, or token states."""
        if self.tokenize is not None:
            return TokenSource(
                [
                    build_query(video, video.path, place, text, (0, 1))
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

    def domain_warning(self, video: Path) -> str:
        """Why the run may be of no use for this video ("" if nothing speaks against it)."""
        folders = Path(video).resolve().parents
        if self.dataset_name != "shapes" or any(
            (folder / SHAPES_MARKER_FILE).is_file() for folder in folders
        ):
            return ""
        return (
            f"{self.ensemble.runs[0]} was trained on `shapes`, moving figures on plain ground: what it says about another video"
            " means little; train a run on videos like this one"
        )


def validate_sentences(sentences: Sequence[str]) -> list[str]:
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


def get_trained_encoders(ensemble: Ensemble) -> dict[str, nn.Module]:
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


def load_recorded_encoder(
    run: Path, product: str, provenance: dict[str, Any], device: torch.device
) -> nn.Module:
    """The encoder a run's features came from, ready to compute; InputError where the weights found now are others. Pictures need none."""
    if product == "frames":
        return nn.Identity()
    backbone = load_backbone(
        product, provenance["backbone"], provenance["weights"], provenance.get("slowfast")
    )
    if backbone.digest != provenance["weights_digest"]:
        raise InputError(
            f"{run} was trained on {product} features of weights {provenance['weights']!r} with digest"
            f" {provenance['weights_digest'][:12]}…, but these weights are {backbone.digest[:12]}… here:"
            " put the same weights back, or extract and train again"
        )
    return optimize_for_inference(backbone.encoder.to(device))


def build_video_info(video: Path, facts: Mapping[str, Any]) -> VideoInfo:
    return VideoInfo.model_validate(
        {"path": str(video), **{key: facts[key] for key in ("fps", "frame_count", "size")}}
    )


def build_query(video: VideoInfo, key: str, sentence_index: int, text: str, window: Span) -> Query:
    """A sentence, by its place among the sentences, about a window of a video, as a query without truth."""
    facts = {
        "fps": video.fps,
        "frame_count": video.frame_count,
        "size": video.size,
        "segment": window,
    }
    return Query.model_validate(
        {
            "id": str(sentence_index),
            "video": key,
            "path": video.path,
            "text": text,
            "split": "ask",
            **facts,
        }
    )


def track_progress(
    window_batches: Iterable[WindowBatch], total: int, progress: ProgressCallback
) -> Iterator[WindowBatch]:
    """The same stretches; `progress` hears of the windows of each one that is done with."""
    done = 0
    for stretch in window_batches:
        yield stretch
        done += len(stretch.windows)
        progress(done, total)
