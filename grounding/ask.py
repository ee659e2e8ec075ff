"""Asking a trained run, or several together, about a video that is in no store.

    grounder = Grounder(Path("runs/shapes"))
    answers = grounder.ask(Path("video.mp4"), ["the red circle spins."])
    answers.queries[0].span_seconds

The video is decoded once, whatever the number of sentences, with the backbones, weights, sampling and reductions that
the run's `provenance.json` records. Its features stay in memory: with `full` backbones about 4 MB per second of video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from grounding.data import SQUARED, FeatureSet, Product
from grounding.ensemble import Ensemble
from grounding.models.end_to_end import EndToEnd
from grounding.predict import predict
from grounding.projections import as_stored, recorded_reduction
from grounding.raw import Pictures, Tokens
from grounding.systems import network_of, tokenise_of
from grounding.tubes import boxes_of
from pipeline.config import validate
from pipeline.errors import InputError
from pipeline.extract import SamplingConfig, encode_texts, extract_video
from pipeline.records import FORMAT, Prediction, Query, Record, Span, Tracks
from pipeline.store import Entry
from pipeline.weights import device_of, load_backbone

Progress = Callable[[int, int], None]
SHAPES_STAMP = "shapes.json"
"""The file at the root of a made `shapes`."""


class AskedVideo(Record):
    """The video's facts: `size` is `(width, height)` in pixels as shown, `fps` the mean rate."""

    path: str
    fps: float
    frame_count: int
    size: tuple[int, int]


class Answer(Record):
    """One sentence's tube. `score` compares answers of one system at one number of frames: CSDVL's is the probability of its best
    proposal, CG-STVG's and CoSTA's that of its first frame times that of its last one, which a wide target keeps far below 1.

    `span_frames` `[begin, end)`; `span_seconds` from when the first of them appears to when the last one goes, after
    the video's first frame; `boxes` one row `(frame, x1, y1, x2, y2)` for every frame of the span, in pixels.
    """

    text: str
    score: float
    span_frames: Span
    span_seconds: tuple[float, float]
    boxes: list[tuple[int, float, float, float, float]]


class Answers(Record):
    """What `stvg-predict --json` writes: the video and the answers, in the order of the sentences."""

    format: Literal[1] = FORMAT
    video: AskedVideo
    queries: list[Answer]


@dataclass(frozen=True)
class Seen:
    """A video that was looked at: its facts, its features by role, and the frames' edges in seconds `[frame_count + 1]`."""

    video: AskedVideo
    features: dict[str, Product]
    frame_edges: np.ndarray = field(repr=False)


class InMemory:
    """Entries that were just made, read as a store's product is (`grounding.data.Product`)."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.key: entry for entry in entries}

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].rows.shape

    def facts(self, key: str) -> dict[str, Any]:
        return self._entries[key].facts

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return self._entries[key].columns

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        """Rows `[len(indices), *shape]`; all of them without `indices`."""
        rows = self._entries[key].rows
        return rows if indices is None else rows[indices]


class Grounder:
    """Models of one run, or of several that answer together, and the frozen backbones their features came from, ready to be asked.

    `frames` is how many frames a pass sees (T_s), by default as in training; `batch` how many passes run at once; `refine` and
    `between` are as in `predict`.
    """

    def __init__(
        self,
        *runs: Path,
        device: str = "auto",
        frames: int | None = None,
        batch: int = 16,
        refine: bool = False,
        between: bool = True,
    ) -> None:
        self.device = device_of(device)
        self.batch, self.refine, self.between = batch, refine, between
        self.ensemble = Ensemble.of_runs(runs, self.device, frames)
        run, provenance = self.ensemble.runs[0], self.ensemble.about
        self.dataset: str = provenance["dataset"]
        made_from = provenance["products"]
        sampling = {key: value for about in made_from.values() for key, value in about.get("sampling", {}).items()}
        self.sampling = validate(SamplingConfig, sampling, f"{run / 'provenance.json'}")
        trained = trained_encoders(self.ensemble)
        self.visual = tuple(self.ensemble.roles.values())
        self.tokenise = tokenise_of(self.ensemble.models[0]) if self.ensemble.pictures else None
        needed = self.visual if self.tokenise else (*self.visual, "text")
        found = {name: trained.get(name) or recorded_encoder(run, name, made_from[name]) for name in needed}
        self.encoders = {name: encoder.to(self.device) for name, encoder in found.items()}
        self.networks = [network_of(model) for model in self.ensemble.models]
        self.reductions = {name: recorded_reduction(run, name, made_from.get(name, {})) for name in self.visual}

    def ask(self, video: Path, sentences: Sequence[str]) -> Answers:
        """Where and when each sentence happens in the video. InputError for an empty sentence, VideoError for a bad video."""
        checked_sentences(sentences)
        return self.answer(self.look(video), sentences)

    def look(self, video: Path, progress: Progress = lambda done, total: None) -> Seen:
        """Decode a video and keep its features; `progress` counts frames. Then `answer` may be called any number of times."""
        encoders = {name: self.encoders[name] for name in self.visual}
        made = extract_video(Path(video), self.sampling, encoders, progress=progress)
        about = AskedVideo.model_validate({"path": str(video), **{key: made.facts[key] for key in ("fps", "frame_count", "size")}})
        entries = [made.entry(name, about.path) for name in self.visual]
        rows = [as_stored(entry.rows, self.reductions[name]) for name, entry in zip(self.visual, entries, strict=True)]
        stored: list[Product] = [InMemory([replace(entry, rows=own)]) for entry, own in zip(entries, rows, strict=True)]
        if self.ensemble.pictures:
            stored[0] = Pictures(stored[0], self.sampling.short)
        return Seen(about, dict(zip(self.ensemble.roles, stored, strict=True)), made.frame_edges)

    def answer(self, seen: Seen, sentences: Sequence[str], progress: Progress = lambda done, total: None) -> Answers:
        """Answers about a video that was looked at; `progress` counts sentences."""
        texts = checked_sentences(sentences)
        queries = [whole_video_query(seen.video, str(key), text) for key, text in enumerate(texts)]
        words: Product = Tokens(queries, self.tokenise) if self.tokenise else self._states(seen.video, texts)
        frames, clips, squared = self.ensemble.frames, self.ensemble.clips, self.ensemble.motion in SQUARED
        appearance, motion = seen.features["appearance"], seen.features.get("motion")
        features = FeatureSet(queries, Tracks(), appearance, motion, words, frames, clips, squared, self.device)
        found = predict(self.networks, features, queries, self.batch, progress, self.refine, self.between)
        answers = [answer_of(text, prediction, seen.frame_edges) for text, prediction in zip(texts, found, strict=True)]
        return Answers(video=seen.video, queries=answers)

    def _states(self, video: AskedVideo, texts: Sequence[str]) -> InMemory:
        """Token states of sentences, by their number."""
        states = encode_texts(list(texts), self.encoders["text"])
        return InMemory([Entry(str(key), video.path, rows, {"token": tokens}) for key, (rows, tokens) in enumerate(states)])

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
            raise InputError(f"sentence {number} of {len(texts)} is empty: say what to look for, or leave it out")
    return texts


def trained_encoders(ensemble: Ensemble) -> dict[str, nn.Module]:
    """The encoders that were trained before the network, by product; an InputError where several runs have each their own. A
    network that is given pictures keeps its own to itself."""
    first = ensemble.models[0]
    if not isinstance(first, EndToEnd):
        return {}
    if len(ensemble.models) > 1:
        raise InputError(
            f"{', '.join(map(str, ensemble.runs))}: each of these runs has encoders of its own, and a video is encoded once: name one run "
            "(stvg-eval lets several answer about a store)"
        )
    return {"appearance": first.image, "text": first.text_encoder}


def recorded_encoder(run: Path, product: str, made_from: dict[str, Any]) -> nn.Module:
    """The encoder a run's features came from; an InputError where the weights found now are others. Pictures need none."""
    if product == "frames":
        return nn.Identity()
    backbone = load_backbone(product, made_from["backbone"], made_from["weights"], made_from.get("slowfast"))
    if backbone.digest != made_from["weights_digest"]:
        raise InputError(
            f"{run} was trained on {product} features of weights {made_from['weights']!r} with digest"
            f" {made_from['weights_digest'][:12]}…, but these weights are {backbone.digest[:12]}… here:"
            " put the same weights back, or extract and train again"
        )
    return backbone.encoder


def whole_video_query(video: AskedVideo, key: str, text: str) -> Query:
    """A sentence about all of a video, as a query without truth."""
    facts = {"fps": video.fps, "frame_count": video.frame_count, "size": video.size, "segment": (0, video.frame_count)}
    return Query.model_validate({"id": key, "video": video.path, "path": video.path, "text": text, "split": "ask", **facts})


def answer_of(text: str, prediction: Prediction, frame_edges: np.ndarray) -> Answer:
    """A prediction with its boxes interpolated to every frame of the span, and the span in seconds."""
    begin, end = prediction.span
    frames = np.arange(begin, end)
    boxes = boxes_of(prediction, frames).round(2).tolist()
    return Answer(
        text=text,
        score=prediction.score,
        span_frames=prediction.span,
        span_seconds=(round(float(frame_edges[begin]), 3), round(float(frame_edges[end]), 3)),
        boxes=[(int(frame), x1, y1, x2, y2) for frame, (x1, y1, x2, y2) in zip(frames, boxes, strict=True)],
    )
