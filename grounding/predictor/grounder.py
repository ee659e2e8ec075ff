"""Grounding of sentences in a video file, with one or more trained runs.

    grounder = Grounder("runs/shapes")
    result = grounder.ground("video.mp4", ["the red circle spins."])
    result.queries[0].span_seconds

The video is decoded once for all sentences, with the encoders, sampling and reductions that the
run's `provenance.json` records. A video longer than the training segments is grounded window by
window (`grounding.predictor.windows`) while it is decoded, so memory does not grow with its length.
With `cache_dir`, its features are kept in a folder for later sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grounding.data.dataset import SQUARE_MOTION_PRODUCTS, GroundingDataset
from grounding.data.feature_reduction import load_reduction
from grounding.data.sources import FeatureSource, ImageSource, InMemorySource, TokenSource
from grounding.inference.decode_tube import decode_ranked_tube
from grounding.inference.ensemble import Ensemble
from grounding.inference.predict import iter_segment_predictions
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
from pipeline.callbacks import ProgressCallback
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

SHAPES_MARKER_FILE = "shapes.json"
"""File at the root of a generated `shapes` data set."""


@dataclass(frozen=True)
class VideoFeatures:
    """The features of a video.

    Attributes:
        video: Facts of the video.
        key: The video's key in the features.
        features: Product name → features.
        frame_edges: `[frame_count + 1]`, times of the frames' edges in seconds.
    """

    video: VideoInfo
    key: str
    features: dict[str, FeatureSource]
    frame_edges: np.ndarray = field(repr=False)


class Grounder:
    """The models of one or more runs, with the encoders of their features.

    Args:
        *runs: Run directories. Several runs predict together, as an ensemble.
        device: `auto`, `cpu` or `cuda`.
        num_frames: Frames per forward pass (T_s); by default as in training.
        batch_size: Forward passes that run at once.
        refine_boundaries: Run a second, denser pass around the predicted span.
        subframe_boundaries: Interpolate boundaries between clips or frames.
        window_seconds: Length of the windows of a longer video in seconds; by default that of the
            training segments (`grounding.predictor.window_length`).
        decoder: Decoder of video frames; by default in this process.

    Raises:
        InputError: A run is incomplete, the runs do not fit together, or weights have changed.
    """

    def __init__(
        self,
        *runs: str | Path,
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
        self.batch_size = batch_size
        self.refine_boundaries = refine_boundaries
        self.subframe_boundaries = subframe_boundaries

        # All runs of an ensemble are trained on equal features, so the first run describes them.
        run_paths = [Path(run) for run in runs]
        self.ensemble = Ensemble.from_runs(run_paths, self.device, num_frames)
        run = self.ensemble.runs[0]
        provenance = self.ensemble.provenance
        product_provenance = provenance["products"]
        self.dataset_name: str = provenance["dataset"]
        self.sampling = _merge_sampling(product_provenance, f"{run / 'provenance.json'}")

        # Models that read images tokenize sentences themselves if they train a text encoder.
        self.visual_products = tuple(self.ensemble.product_by_input.values())
        self.tokenize = None
        if self.ensemble.reads_images:
            self.tokenize = get_tokenizer(self.ensemble.models[0])

        # Encoders that the run trained, and the recorded encoders of the other products.
        encoded_products = self.visual_products
        if self.tokenize is None:
            encoded_products = (*self.visual_products, "text")
        trained_encoders = get_trained_encoders(self.ensemble)
        self.encoders: dict[str, nn.Module] = {}
        for name in encoded_products:
            self.encoders[name] = trained_encoders.get(name) or load_recorded_encoder(
                run, name, product_provenance[name], self.device
            )
        self.networks = [unwrap_encoders(model) for model in self.ensemble.models]

        self.reductions = {}
        self.origins: dict[str, dict[str, Any]] = {}
        for name in self.visual_products:
            recorded_origin = product_provenance.get(name, {})
            self.reductions[name] = load_reduction(run, name, recorded_origin)
            self.origins[name] = recorded_origin or self._build_trained_origin(name)

        if window_seconds is not None and not window_seconds > 0:
            raise InputError(f"a window of {window_seconds} seconds: give a number above 0")
        self.window_seconds = window_seconds or get_window_seconds(
            run, provenance, self.sampling.fps
        )

    def ground(
        self,
        video: str | Path,
        sentences: str | Sequence[str],
        top_k: int = 1,
        progress: ProgressCallback = lambda done, total: None,
    ) -> GroundingResult:
        """Find the events of sentences in a video, which is decoded once; nothing is kept.

        Args:
            video: Path of the video.
            sentences: One sentence, or several.
            top_k: Largest number of tubes per sentence, of different events.
            progress: Receives the number of decoded frames and the number of all frames.

        Returns:
            The tubes of each sentence.

        Raises:
            InputError: There is no sentence, or one is empty.
            VideoError: The video is missing or cannot be decoded.
        """
        texts = validate_sentences(sentences)
        stream = self._open_stream(video, progress)
        video_info = build_video_info(video, stream.initial_facts)
        frame_edges = stream.metadata.edges

        windows = plan_windows(frame_edges, self.window_seconds)
        window_batches = stream_window_batches(
            video_info.path, stream, self.reductions, windows, self._compute_windows_per_batch()
        )
        return self._ground_windows(
            video_info, video_info.path, frame_edges, window_batches, texts, top_k
        )

    def encode_video(
        self,
        video: str | Path,
        cache_dir: str | Path | None = None,
        progress: ProgressCallback = lambda done, total: None,
    ) -> VideoFeatures:
        """Compute the features of a video, for any number of calls of `ground_encoded`.

        Args:
            video: Path of the video.
            cache_dir: Folder of a feature cache, for long videos. Cached features are not computed
                again. By default features stay in memory.
            progress: Receives the number of decoded frames and the number of all frames.

        Returns:
            The features of the video.

        Raises:
            InputError: The cache holds features of other settings.
            VideoError: The video is missing or cannot be decoded.
        """
        if cache_dir is None:
            return self._encode_in_memory(video, progress)

        path = Path(video)
        cache = FeatureCache(Path(cache_dir), self.origins)
        cached_video = cache.find(path)
        if cached_video is None:
            stream = self._open_stream(video, progress)
            cached_video = cache.add(path, stream, self.reductions)
        return VideoFeatures(
            video=build_video_info(video, cached_video.facts),
            key=cached_video.key,
            features=dict(cached_video.products),
            frame_edges=cached_video.frame_edges,
        )

    def _encode_in_memory(self, video: str | Path, progress: ProgressCallback) -> VideoFeatures:
        """Compute the features of a video as those of a single window."""
        stream = self._open_stream(video, progress)
        windows = [(0, stream.metadata.frame_count)]
        window_batches = stream_window_batches(str(video), stream, self.reductions, windows, 1)
        window_batch = next(window_batches)
        return VideoFeatures(
            video=build_video_info(video, stream.initial_facts),
            key=str(video),
            features=window_batch.features,
            frame_edges=stream.metadata.edges,
        )

    def ground_encoded(
        self,
        video_features: VideoFeatures,
        sentences: str | Sequence[str],
        top_k: int = 1,
        progress: ProgressCallback = lambda done, total: None,
    ) -> GroundingResult:
        """Find the events of sentences in an encoded video.

        Args:
            video_features: Features of the video.
            sentences: One sentence, or several.
            top_k: Largest number of tubes per sentence, of different events.
            progress: Receives the number of finished windows and the number of all windows.

        Returns:
            The tubes of each sentence.

        Raises:
            InputError: There is no sentence, or one is empty.
        """
        texts = validate_sentences(sentences)
        windows = plan_windows(video_features.frame_edges, self.window_seconds)
        window_batches = read_window_batches(
            video_features.key, video_features.features, windows, self._compute_windows_per_batch()
        )
        progress(0, len(windows))
        return self._ground_windows(
            video_features.video,
            video_features.key,
            video_features.frame_edges,
            track_progress(window_batches, len(windows), progress),
            texts,
            top_k,
        )

    def _build_trained_origin(self, product: str) -> dict[str, Any]:
        """Return the settings that determine the features of an encoder that the run trained."""
        return {
            "weights_digest": compute_weights_digest(self.encoders[product], product),
            "sampling": self.sampling.model_dump(mode="json"),
        }

    def _open_stream(self, video: str | Path, progress: ProgressCallback) -> FeatureStream:
        """Open a video as a stream of features."""
        encoders = {name: self.encoders[name] for name in self.visual_products}
        return FeatureStream(
            Path(video), self.sampling, encoders, decoder=self.decoder, progress=progress
        )

    def _compute_windows_per_batch(self) -> int:
        """Return the number of windows whose passes fill a batch, at least 1."""
        frames_per_window = self.window_seconds * self.sampling.fps
        passes_per_window = math.ceil(frames_per_window / self.ensemble.num_frames)
        return max(1, self.batch_size // passes_per_window)

    def _ground_windows(
        self,
        video: VideoInfo,
        key: str,
        frame_edges: np.ndarray,
        window_batches: Iterable[WindowBatch],
        texts: Sequence[str],
        top_k: int,
    ) -> GroundingResult:
        """Ground all sentences in all windows; `key` is the video's key in the features."""
        text_source = self._build_text_source(video, texts)
        top_tubes = [TopTubes(top_k) for _ in texts]
        for window_batch in window_batches:
            # Every sentence is a query about every window.
            queries = []
            for window in window_batch.windows:
                for index, text in enumerate(texts):
                    queries.append(build_query(video, key, index, text, window))

            dataset = self._build_dataset(queries, window_batch, text_source)
            with self.ensemble.autocast():
                segment_predictions = iter_segment_predictions(
                    self.networks,
                    dataset,
                    queries,
                    self.batch_size,
                    refine_boundaries=self.refine_boundaries,
                    subframe_boundaries=self.subframe_boundaries,
                )
                for prediction in segment_predictions:
                    rank, tube = decode_ranked_tube(prediction, self.subframe_boundaries)
                    top_tubes[int(prediction.query.id)].add(rank, tube)

        results = []
        for text, sentence_tubes in zip(texts, top_tubes, strict=True):
            results.append(build_query_result(text, sentence_tubes.select(), frame_edges))
        return GroundingResult(video=video, queries=results)

    def _build_dataset(
        self, queries: Sequence[Query], window_batch: WindowBatch, text_source: FeatureSource
    ) -> GroundingDataset:
        """Return the queries about a batch of windows with their features."""
        appearance_product, *motion_products = self.visual_products
        appearance = window_batch.features[appearance_product]
        motion = window_batch.features[motion_products[0]] if motion_products else None
        if self.ensemble.reads_images:
            appearance = ImageSource(appearance, self.sampling.short_side)
        return GroundingDataset(
            queries,
            Tracks(),
            appearance,
            motion,
            text_source,
            self.ensemble.num_frames,
            self.ensemble.num_clips,
            self.ensemble.motion_product in SQUARE_MOTION_PRODUCTS,
            self.device,
        )

    def _build_text_source(self, video: VideoInfo, texts: Sequence[str]) -> FeatureSource:
        """Return the tokens or token states of sentences, by sentence index."""
        if self.tokenize is not None:
            queries = []
            for index, text in enumerate(texts):
                queries.append(build_query(video, video.path, index, text, (0, 1)))
            return TokenSource(queries, self.tokenize)

        entries = []
        for index, (states, tokens) in enumerate(encode_texts(list(texts), self.encoders["text"])):
            entries.append(Entry(str(index), video.path, states, {"token": tokens}))
        return InMemorySource(entries)

    def domain_warning(self, video: str | Path) -> str:
        """Return a warning if a run trained on `shapes` is given another video.

        Args:
            video: Path of the video.

        Returns:
            The warning, or "" without a reason for one.
        """
        if self.dataset_name != "shapes":
            return ""
        for folder in Path(video).resolve().parents:
            if (folder / SHAPES_MARKER_FILE).is_file():
                return ""
        return (
            f"{self.ensemble.runs[0]} was trained on `shapes`, moving figures on a plain"
            " background: its predictions for other videos mean little; train a run on videos like"
            " this one"
        )


def _merge_sampling(products: Mapping[str, Mapping[str, Any]], context: str) -> SamplingConfig:
    """Return the sampling settings of all products; each product records the keys it uses."""
    values: dict[str, Any] = {}
    for provenance in products.values():
        values |= provenance.get("sampling", {})
    return validate(SamplingConfig, values, context)


def validate_sentences(sentences: str | Sequence[str]) -> list[str]:
    """Return sentences without surrounding white space.

    Args:
        sentences: One sentence, or several.

    Returns:
        The sentences in their order.

    Raises:
        InputError: There is no sentence, or one is empty.
    """
    # A string is a sequence of letters too.
    if isinstance(sentences, str):
        sentences = [sentences]
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
    """Return the encoders that train in front of the network, by product.

    A model that reads images contains its encoders, so they are not among them.

    Args:
        ensemble: Models of the runs.

    Returns:
        Product name → encoder; empty if the runs trained on cached features or images.

    Raises:
        InputError: Several runs have encoders of their own.
    """
    model = ensemble.models[0]
    if not isinstance(model, EndToEnd):
        return {}
    if len(ensemble.models) > 1:
        raise InputError(
            f"{', '.join(map(str, ensemble.runs))}: each of these runs has its own encoders, and a"
            " video is encoded once: give one run (stvg-eval evaluates several on a store)"
        )
    return {"appearance": model.image_encoder, "text": model.text_encoder}


def load_recorded_encoder(
    run: Path, product: str, provenance: Mapping[str, Any], device: torch.device
) -> nn.Module:
    """Load the encoder of a run's features, ready for inference.

    Args:
        run: Run directory, for the message.
        product: Name of the product; `frames` needs no encoder.
        provenance: Provenance of the product.
        device: Device of the encoder.

    Returns:
        The encoder.

    Raises:
        InputError: The weights are missing or have changed.
    """
    if product == "frames":
        return nn.Identity()
    backbone = load_backbone(
        product, provenance["backbone"], provenance["weights"], provenance.get("slowfast")
    )
    expected_digest = provenance["weights_digest"]
    if backbone.digest != expected_digest:
        raise InputError(
            f"{run} was trained on {product} features of weights {provenance['weights']!r} with"
            f" digest {expected_digest[:12]}…, but the digest of these weights is now"
            f" {backbone.digest[:12]}…: restore the original weights, or extract and train again"
        )
    return optimize_for_inference(backbone.encoder.to(device))


def build_video_info(video: str | Path, facts: Mapping[str, Any]) -> VideoInfo:
    """Build the facts of a video.

    Args:
        video: Path of the video.
        facts: Facts of its features, with `fps`, `frame_count` and `size`.

    Returns:
        The facts of the video.
    """
    return VideoInfo(
        path=str(video),
        fps=facts["fps"],
        frame_count=facts["frame_count"],
        size=facts["size"],
    )


def build_query(video: VideoInfo, key: str, sentence_index: int, text: str, window: Span) -> Query:
    """Build a query without ground truth about a window of a video.

    Args:
        video: Facts of the video.
        key: The video's key in the features.
        sentence_index: Index of the sentence, the id of the query.
        text: The sentence.
        window: Frames `[begin, end)`.

    Returns:
        The query.
    """
    return Query(
        id=str(sentence_index),
        video=key,
        path=video.path,
        fps=video.fps,
        frame_count=video.frame_count,
        size=video.size,
        segment=window,
        text=text,
        split="ask",
    )


def track_progress(
    window_batches: Iterable[WindowBatch], total: int, progress: ProgressCallback
) -> Iterator[WindowBatch]:
    """Yield window batches and report the finished ones.

    Args:
        window_batches: Batches of windows.
        total: Number of all windows.
        progress: Receives the number of finished windows and `total`.

    Yields:
        The batches, unchanged.
    """
    num_finished = 0
    for window_batch in window_batches:
        yield window_batch
        num_finished += len(window_batch.windows)
        progress(num_finished, total)
