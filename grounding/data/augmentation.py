"""Data augmentation of images: flip, resize and crop, drawn anew for each query in each epoch.

All frames of a sample get the same transform, and its boxes and sentence stay true. The transforms
are near STCAT's, with two differences. A flip exchanges only whole words that name sides
(`grounding.data.text_mirroring`), and a crop keeps every true box whole. Colors are not changed,
because sentences name them.
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
    """Random changes of each query in each epoch; none by default."""

    flip_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip of the images, with left and right exchanged in the
    sentence. A sentence whose left or right is ambiguous is never flipped."""
    min_scale: float = Field(default=1.0, gt=0, le=1)
    """Images are resized to a random size between this fraction of the stored size and 1."""
    crop_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of a crop before resizing. The crop contains all true boxes; a sample without
    boxes is never cropped."""
    min_crop_fraction: float = Field(default=0.6, gt=0, le=1)
    """Smallest fraction of each side that a crop keeps."""


class Augmentation:
    """The augmentation of samples: a function of seed, epoch and query alone.

    Args:
        config: The probabilities and limits.
        seed: The seed of training.
        queries: All queries of the training split.
        tokenize: The tokenizer of a model that reads token ids. Without it text features are cached
            token states, and a sentence that names a side is never flipped.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        queries: Sequence[Query],
        tokenize: TokenizeFunction | None,
    ) -> None:
        self.config = config
        self.seed = seed
        self._flipped_text: dict[str, np.ndarray | None] = {}
        """Query id → tokens of the mirrored sentence; None if the sentence names no side."""
        if config.flip_probability:
            self._mirror_sentences(queries, tokenize)

    def _mirror_sentences(
        self, queries: Sequence[Query], tokenize: TokenizeFunction | None
    ) -> None:
        """Prepare the mirrored sentence of each query that can be flipped."""
        mirrored_queries = []
        for query in queries:
            mirrored = mirror_left_right(query.text)
            if mirrored == query.text:
                self._flipped_text[query.id] = None
            elif mirrored is not None:
                mirrored_queries.append(query.model_copy(update={"text": mirrored}))

        if tokenize is not None:
            tokens = TokenSource(mirrored_queries, tokenize)
            for query in mirrored_queries:
                self._flipped_text[query.id] = tokens.read(query.id)

        num_unflippable = len(queries) - len(self._flipped_text)
        if num_unflippable:
            reason = "they name sides, and their token states are cached"
            if tokenize:
                reason = "their left or right may be no side"
            log.info(
                "augment.flip: %d of %d sentences are never mirrored: %s",
                num_unflippable,
                len(queries),
                reason,
            )

    def __call__(
        self, sample: Sample, targets: Targets, epoch: int, query_index: int
    ) -> tuple[Sample, Targets]:
        """Augment a sample.

        Args:
            sample: The sample; `appearance` holds images.
            targets: Its targets, a batch of one.
            epoch: The epoch.
            query_index: Index of the query in the training split.

        Returns:
            The sample and the targets of this epoch.
        """
        # Draw the transform.
        query_id = sample.query.id
        image_size: ImageSize = sample.appearance.shape[1:3]
        rng = np.random.default_rng([self.seed, epoch, 2, query_index])
        flip = rng.random() < self.config.flip_probability and query_id in self._flipped_text
        required_box = _enclosing_box(targets, image_size)
        transform = choose_image_transform(self.config, image_size, required_box, flip, rng)

        # Apply the transform to images, boxes and sentence.
        images = sample.appearance
        if isinstance(images, EncodedImages):
            appearance: np.ndarray | EncodedImages = images.with_transform(transform)
        else:
            appearance = transform.apply_to_array(images)
        boxes = transform.apply_to_boxes(targets.boxes.numpy(), image_size)
        clip_boxes = transform.apply_to_boxes(targets.clip_boxes.numpy(), image_size)
        flipped_text = self._flipped_text[query_id] if flip else None
        text = sample.text if flipped_text is None else flipped_text

        # Samples of one video have different transforms, so they no longer share its images.
        sample = replace(
            sample,
            appearance=appearance,
            text=text,
            video_key=(sample.video_key, epoch, query_index),
        )
        targets = replace(
            targets, boxes=torch.from_numpy(boxes), clip_boxes=torch.from_numpy(clip_boxes)
        )
        return sample, targets


def choose_image_transform(
    config: AugmentConfig,
    size: ImageSize,
    required_box: np.ndarray | None,
    flip: bool,
    rng: np.random.Generator,
) -> ImageTransform:
    """Draw the transform of a sample's images.

    Args:
        config: The probabilities and limits.
        size: Rows and columns of the images.
        required_box: [4], xyxy in whole pixels, the box that a crop must contain; None to never
            crop.
        flip: Flip the images horizontally.
        rng: Source of random numbers.

    Returns:
        The transform.
    """
    # Draw the crop.
    rows, columns = size
    crop = (0, 0, columns, rows)
    if rng.random() < config.crop_probability and required_box is not None:
        left, right = _choose_crop_interval(
            columns, required_box[0], required_box[2], config.min_crop_fraction, rng
        )
        top, bottom = _choose_crop_interval(
            rows, required_box[1], required_box[3], config.min_crop_fraction, rng
        )
        crop = (left, top, right, bottom)

    # Draw the size, by the shorter side. That of a very long image is below its nominal length.
    left, top, right, bottom = crop
    nominal_short_side = max(min(size), max(size) / MAX_LONG_SIDE_RATIO)
    short_side = rng.uniform(config.min_scale, 1) * nominal_short_side
    width, height = compute_appearance_size((right - left, bottom - top), short_side)
    return ImageTransform(crop, (height, width), flip)


def _choose_crop_interval(
    length: int,
    required_begin: int,
    required_end: int,
    min_fraction: float,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Draw an interval [begin, end) of a side, in pixels, that contains the required one."""
    drawn_length = round(rng.uniform(min_fraction, 1) * length)
    crop_length = max(drawn_length, required_end - required_begin, 1)

    first = max(0, required_end - crop_length)
    last = min(required_begin, length - crop_length)
    begin = int(rng.integers(first, last, endpoint=True))
    return begin, begin + crop_length


def _enclosing_box(targets: Targets, size: ImageSize) -> np.ndarray | None:
    """Return the box around all true boxes, [4] xyxy in whole pixels; None without boxes."""
    frame_boxes = targets.boxes.numpy()[targets.box_mask.numpy()]
    clip_boxes = targets.clip_boxes.numpy()[targets.clip_box_mask.numpy()]
    boxes = np.concatenate([frame_boxes, clip_boxes])  # [n, 4]
    if not len(boxes):
        return None

    # Round outwards, but not because of rounding errors.
    rows, columns = size
    corners = cxcywh_to_xyxy(boxes, (columns, rows))
    top_left = np.floor(corners[:, :2].min(0) + 1e-3)
    bottom_right = np.ceil(corners[:, 2:].max(0) - 1e-3)
    box = np.concatenate([top_left, bottom_right])
    return np.clip(box, 0, [columns, rows, columns, rows]).astype(np.int64)
