"""What a query's pictures become in training, drawn anew every epoch: one look for all frames, with boxes and words that are true of it.

Flips, sizes and crops are near STCAT's, but for two things: a sentence changes whole words alone, and only sides (`grounding.data.text_mirroring`), and a
crop holds every true box whole. Colours stay what they are: sentences name them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from grounding.data.image_transforms import View
from grounding.data.images import Jpegs
from grounding.data.sample import Sample
from grounding.data.sources import Tokenise, Tokens
from grounding.data.text_mirroring import mirrored
from grounding.structures.targets import Targets
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.config import StrictModel
from pipeline.encoders.image_geometry import MAX_LONG_SIDE_RATIO, compute_appearance_size
from pipeline.records import Query

Size = tuple[int, int]
"""Rows and columns."""
log = logging.getLogger(__name__)


class AugmentConfig(StrictModel):
    """What is drawn for each query of an epoch; by default nothing."""

    flip: float = Field(default=0.0, ge=0, le=1)
    """How often pictures are mirrored, and the sentence's left and right with them; where these cannot be told, never."""
    smallest: float = Field(default=1.0, gt=0, le=1)
    """Pictures are brought to a size between this share of the stored one and all of it."""
    crop: float = Field(default=0.0, ge=0, le=1)
    """How often a part that holds all true boxes is cut out first; never where there are none."""
    least: float = Field(default=0.6, gt=0, le=1)
    """The share of each side that such a part has at least."""


class Augmentation:
    """What becomes of samples: a function of seed, epoch and query, whatever the batches and processes.

    With `tokenise` words are tokens, made anew where sides are exchanged; without, they are cached states, and where they name a side
    pictures are never mirrored.
    """

    def __init__(self, config: AugmentConfig, seed: int, queries: Sequence[Query], tokenise: Tokenise | None) -> None:
        self.config, self.seed = config, seed
        exchanged = [(query, mirrored(query.text)) for query in queries] if config.flip else []
        changed = [query.model_copy(update={"text": text}) for query, text in exchanged if text is not None and text != query.text]
        self._words: dict[str, np.ndarray | None] = {query.id: None for query, text in exchanged if text == query.text}
        if tokenise is not None:
            tokens = Tokens(changed, tokenise)
            self._words |= {query.id: tokens.read(query.id) for query in changed}
        if left := len(exchanged) - len(self._words):
            why = "their left or right may be no side" if tokenise else "they name sides, and their token states are cached"
            log.info("augment.flip: %d of %d sentences are never mirrored: %s", left, len(exchanged), why)

    def __call__(self, sample: Sample, truth: Targets, epoch: int, number: int) -> tuple[Sample, Targets]:
        """A sample and what is true of it, as they are in an epoch; `number` is the query's place among all."""
        random, key = np.random.default_rng([self.seed, epoch, 2, number]), sample.query.id
        size: Size = sample.appearance.shape[1:3]
        flip = random.random() < self.config.flip and key in self._words
        view = draw_view(self.config, size, _around(truth, size), flip, random)
        boxes, clip_boxes = (torch.from_numpy(view.of_boxes(own.numpy(), size)) for own in (truth.boxes, truth.clip_boxes))
        words = self._words[key] if flip else None
        pictures = sample.appearance
        seen = pictures.seen(view) if isinstance(pictures, Jpegs) else view.of_arrays(pictures)
        sample = replace(sample, appearance=seen, text=sample.text if words is None else words)
        return sample, replace(truth, boxes=boxes, clip_boxes=clip_boxes)


def draw_view(config: AugmentConfig, size: Size, held: np.ndarray | None, flip: bool, random: np.random.Generator) -> View:
    """A look at pictures of a size; a part that is cut out holds `held`, an xyxy box in whole pixels, and fills what is seen."""
    rows, columns = size
    part = (0, 0, columns, rows)
    if random.random() < config.crop and held is not None:
        left, right = _stretch(columns, held[0], held[2], config.least, random)
        top, bottom = _stretch(rows, held[1], held[3], config.least, random)
        part = (left, top, right, bottom)
    short = random.uniform(config.smallest, 1) * max(min(size), max(size) / MAX_LONG_SIDE_RATIO)
    width, height = compute_appearance_size((part[2] - part[0], part[3] - part[1]), short)
    return View(part, (height, width), flip)


def _stretch(length: int, first: int, last: int, least: float, random: np.random.Generator) -> tuple[int, int]:
    """A stretch `[begin, end)` of `length` pixels that holds `[first, last)`, and `least` of them."""
    kept = max(round(random.uniform(least, 1) * length), last - first, 1)
    begin = int(random.integers(max(0, last - kept), min(first, length - kept), endpoint=True))
    return begin, begin + kept


def _around(truth: Targets, size: Size) -> np.ndarray | None:
    """What the true boxes cover of pictures of a size, xyxy in whole pixels; None without any."""
    boxes = np.concatenate([truth.boxes.numpy()[truth.boxed.numpy()], truth.clip_boxes.numpy()[truth.clip_boxed.numpy()]])
    if not len(boxes):
        return None
    corners = cxcywh_to_xyxy(boxes, size[::-1])
    around = np.concatenate([np.floor(corners[:, :2].min(0) + 1e-3), np.ceil(corners[:, 2:].max(0) - 1e-3)])
    return np.clip(around, 0, [*size[::-1]] * 2).astype(np.int64)
