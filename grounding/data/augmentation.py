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

from grounding.data.image_transforms import ImageTransform
from grounding.data.images import EncodedImages
from grounding.data.sample import Sample
from grounding.data.sources import TokenizeFunction, TokenSource
from grounding.data.text_mirroring import mirror_left_right
from grounding.structures.targets import Targets
from pipeline.boxes import cxcywh_to_xyxy
from pipeline.config import StrictModel
from pipeline.encoders.image_geometry import MAX_LONG_SIDE_RATIO, compute_appearance_size
from pipeline.records import Query

ImageSize = tuple[int, int]
"""Rows and columns."""
log = logging.getLogger(__name__)


class AugmentConfig(StrictModel):
    """What is drawn for each query of an epoch; by default nothing."""

    flip_probability: float = Field(default=0.0, ge=0, le=1)
    """How often pictures are mirrored, and the sentence's left and right with them; where these cannot be told, never."""
    min_scale: float = Field(default=1.0, gt=0, le=1)
    """Pictures are brought to a size between this share of the stored one and all of it."""
    crop_probability: float = Field(default=0.0, ge=0, le=1)
    """How often a part that holds all true boxes is cut out first; never where there are none."""
    min_crop_fraction: float = Field(default=0.6, gt=0, le=1)
    """The share of each side that such a part has at least."""


class Augmentation:
    """What becomes of samples: a function of seed, epoch and query, whatever the batches and processes.

    With `tokenize` words are tokens, made anew where sides are exchanged; without, they are cached states, and where they name a side
    pictures are never mirrored.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        queries: Sequence[Query],
        tokenize: TokenizeFunction | None,
    ) -> None:
        self.config, self.seed = config, seed
        exchanged = (
            [(query, mirror_left_right(query.text)) for query in queries]
            if config.flip_probability
            else []
        )
        changed = [
            query.model_copy(update={"text": text})
            for query, text in exchanged
            if text is not None and text != query.text
        ]
        self._flipped_text: dict[str, np.ndarray | None] = {
            query.id: None for query, text in exchanged if text == query.text
        }
        if tokenize is not None:
            tokens = TokenSource(changed, tokenize)
            self._flipped_text |= {query.id: tokens.read(query.id) for query in changed}
        if left := len(exchanged) - len(self._flipped_text):
            why = (
                "their left or right may be no side"
                if tokenize
                else "they name sides, and their token states are cached"
            )
            log.info(
                "augment.flip: %d of %d sentences are never mirrored: %s", left, len(exchanged), why
            )

    def __call__(
        self, sample: Sample, targets: Targets, epoch: int, query_index: int
    ) -> tuple[Sample, Targets]:
        """A sample and what is true of it, as they are in an epoch; `number` is the query's place among all."""
        random, key = np.random.default_rng([self.seed, epoch, 2, query_index]), sample.query.id
        size: ImageSize = sample.appearance.shape[1:3]
        flip = random.random() < self.config.flip_probability and key in self._flipped_text
        view = choose_image_transform(
            self.config, size, _enclosing_box(targets, size), flip, random
        )
        boxes, clip_boxes = (
            torch.from_numpy(view.apply_to_boxes(own.numpy(), size))
            for own in (targets.boxes, targets.clip_boxes)
        )
        words = self._flipped_text[key] if flip else None
        pictures = sample.appearance
        seen = (
            pictures.with_transform(view)
            if isinstance(pictures, EncodedImages)
            else view.apply_to_array(pictures)
        )
        # samples of one video have different transforms: they share it no longer
        sample = replace(
            sample,
            appearance=seen,
            text=sample.text if words is None else words,
            video_key=(sample.video_key, epoch, query_index),
        )
        return sample, replace(targets, boxes=boxes, clip_boxes=clip_boxes)


def choose_image_transform(
    config: AugmentConfig,
    size: ImageSize,
    required_box: np.ndarray | None,
    flip: bool,
    rng: np.random.Generator,
) -> ImageTransform:
    """A look at pictures of a size; a part that is cut out holds `held`, an xyxy box in whole pixels, and fills what is seen."""
    rows, columns = size
    part = (0, 0, columns, rows)
    if rng.random() < config.crop_probability and required_box is not None:
        left, right = _choose_crop_interval(
            columns, required_box[0], required_box[2], config.min_crop_fraction, rng
        )
        top, bottom = _choose_crop_interval(
            rows, required_box[1], required_box[3], config.min_crop_fraction, rng
        )
        part = (left, top, right, bottom)
    short = rng.uniform(config.min_scale, 1) * max(min(size), max(size) / MAX_LONG_SIDE_RATIO)
    width, height = compute_appearance_size((part[2] - part[0], part[3] - part[1]), short)
    return ImageTransform(part, (height, width), flip)


def _choose_crop_interval(
    length: int,
    required_begin: int,
    required_end: int,
    min_fraction: float,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """A stretch `[begin, end)` of `length` pixels that holds `[first, last)`, and `least` of them."""
    kept = max(round(rng.uniform(min_fraction, 1) * length), required_end - required_begin, 1)
    begin = int(
        rng.integers(max(0, required_end - kept), min(required_begin, length - kept), endpoint=True)
    )
    return begin, begin + kept


def _enclosing_box(targets: Targets, size: ImageSize) -> np.ndarray | None:
    """What the true boxes cover of pictures of a size, xyxy in whole pixels; None without any."""
    boxes = np.concatenate(
        [
            targets.boxes.numpy()[targets.box_mask.numpy()],
            targets.clip_boxes.numpy()[targets.clip_box_mask.numpy()],
        ]
    )
    if not len(boxes):
        return None
    corners = cxcywh_to_xyxy(boxes, size[::-1])
    around = np.concatenate(
        [np.floor(corners[:, :2].min(0) + 1e-3), np.ceil(corners[:, 2:].max(0) - 1e-3)]
    )
    return np.clip(around, 0, [*size[::-1]] * 2).astype(np.int64)
