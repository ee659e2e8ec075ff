"""A box in a picture still bounds what it bounded, however the picture is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grounding.data.augmentation import AugmentConfig, choose_image_transform
from grounding.data.image_transforms import ImageTransform
from pipeline.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

ROWS, COLUMNS = 90, 160
BOX = (40, 25, 92, 61)
"""xyxy, in pixels."""


@pytest.fixture
def images() -> np.ndarray:
    """Two pictures of noise, in which a box is red."""
    images = np.random.default_rng(0).integers(0, 90, (2, ROWS, COLUMNS, 3), dtype=np.uint8)
    images[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = (250, 0, 0)
    return images


def red_box(picture: np.ndarray) -> np.ndarray:
    """The xyxy box around all that is red, in pixels."""
    red_pixels = np.argwhere((picture[..., 0] > 140) & (picture[..., 1] < 60))
    (top, left), (bottom, right) = red_pixels.min(0), red_pixels.max(0) + 1
    return np.array([left, top, right, bottom])


def draw_transforms(count: int, **config: float) -> list[ImageTransform]:
    random = np.random.default_rng(1)
    settings = AugmentConfig.model_validate(config)
    return [
        choose_image_transform(settings, (ROWS, COLUMNS), np.array(BOX), bool(number % 2), random)
        for number in range(count)
    ]


def test_the_box_bounds_what_it_bounded(images: np.ndarray) -> None:
    """To a pixel, in every view that is drawn: cut, resized, mirrored."""
    box = xyxy_to_cxcywh(np.array(BOX), (COLUMNS, ROWS))
    transforms = draw_transforms(60, min_scale=0.5, crop_probability=0.8, min_crop_fraction=0.3)
    for transform in transforms:
        transformed = transform.apply_to_array(images)
        assert transformed.shape == (2, *transform.size, 3)
        transformed_box = cxcywh_to_xyxy(
            transform.apply_to_boxes(box[None], (ROWS, COLUMNS))[0], transform.size[::-1]
        )
        for picture in transformed:
            np.testing.assert_allclose(red_box(picture), transformed_box, atol=1)
    assert len({transform.crop for transform in transforms}) > 40
    assert len({transform.size for transform in transforms}) > 40


def test_a_mirrored_picture_is_the_picture_in_a_mirror(images: np.ndarray) -> None:
    transform = ImageTransform((0, 0, COLUMNS, ROWS), (ROWS, COLUMNS), True)
    np.testing.assert_array_equal(transform.apply_to_array(images), images[:, :, ::-1])
    np.testing.assert_allclose(
        transform.apply_to_boxes(np.array([[0.2, 0.3, 0.1, 0.2]]), (ROWS, COLUMNS)),
        [[0.8, 0.3, 0.1, 0.2]],
    )


def test_arrays_and_tensors_are_seen_alike(images: np.ndarray) -> None:
    """Pillow and torch round a grey level apart."""
    for transform in draw_transforms(
        20, min_scale=0.5, crop_probability=0.8, min_crop_fraction=0.3
    ):
        array_result, tensor_result = (
            transform.apply_to_array(images),
            transform.apply_to_tensor(torch.from_numpy(images)).numpy(),
        )
        assert tensor_result.dtype == np.uint8
        assert np.abs(array_result.astype(int) - tensor_result).max() <= 1


def test_a_part_holds_what_it_must_and_as_much_as_is_asked() -> None:
    for transform in draw_transforms(200, crop_probability=1.0, min_crop_fraction=0.5):
        left, top, right, bottom = transform.crop
        assert 0 <= left <= BOX[0] < BOX[2] <= right <= COLUMNS
        assert 0 <= top <= BOX[1] < BOX[3] <= bottom <= ROWS
        assert right - left >= COLUMNS // 2
        assert bottom - top >= ROWS // 2
    lefts = [
        transform.crop[0]
        for transform in draw_transforms(200, crop_probability=1.0, min_crop_fraction=0.5)
    ]
    assert min(lefts) == 0
    assert max(lefts) > 30


@pytest.mark.parametrize("size", [(320, 568), (320, 576), (160, 576), (568, 320), (33, 57)])
def test_where_nothing_is_drawn_pictures_stay_as_they_are(size: tuple[int, int]) -> None:
    """Long ones too, whose shorter side is less than it would be."""
    transform = choose_image_transform(
        AugmentConfig(), size, np.array([1, 1, 5, 5]), False, np.random.default_rng(0)
    )
    assert transform == ImageTransform((0, 0, size[1], size[0]), size, False)


def test_without_boxes_nothing_is_cut_off() -> None:
    transform = choose_image_transform(
        AugmentConfig(crop_probability=1), (ROWS, COLUMNS), None, False, np.random.default_rng(0)
    )
    assert transform.crop == (0, 0, COLUMNS, ROWS)


def test_sizes_are_between_the_smallest_and_the_stored_one() -> None:
    shorts = [min(transform.size) for transform in draw_transforms(300, min_scale=0.5)]
    assert ROWS / 2 <= min(shorts) < 0.55 * ROWS
    assert 0.95 * ROWS < max(shorts) <= ROWS
    for transform in draw_transforms(
        300, min_scale=0.5, crop_probability=1.0, min_crop_fraction=0.2
    ):
        assert max(transform.size) <= 1.8 * ROWS + 1
