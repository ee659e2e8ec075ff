"""Box arithmetic against torchvision and by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.ops import box_convert
from torchvision.ops import box_iou as torchvision_box_iou

from pipeline.boxes import box_area, box_iou, cxcywh_to_xyxy, interpolate_boxes, xyxy_to_cxcywh

SIZE = (640, 360)
places = arrays(np.float64, (5, 4), elements=st.floats(0, 300))


def upright(raw: np.ndarray) -> np.ndarray:
    """Any four numbers as a box of positive size."""
    return np.concatenate([raw[:, :2], raw[:, :2] + raw[:, 2:] + 1], -1)


@given(places, places)
def test_iou_is_torchvision_s(a: np.ndarray, b: np.ndarray) -> None:
    a, b = upright(a), upright(b)
    expected = torchvision_box_iou(torch.from_numpy(a), torch.from_numpy(b)).diagonal().numpy()
    np.testing.assert_allclose(box_iou(a, b), expected, atol=1e-9)


@given(places, places)
def test_iou_is_symmetric_and_at_most_one(a: np.ndarray, b: np.ndarray) -> None:
    a, b = upright(a), upright(b)
    np.testing.assert_array_equal(box_iou(a, b), box_iou(b, a))
    assert ((box_iou(a, b) >= 0) & (box_iou(a, b) <= 1)).all()
    np.testing.assert_allclose(box_iou(a, a), 1)


def test_iou_by_hand_and_broadcast() -> None:
    """10×10 against the same moved by 5: 50 shared of 150."""
    box = np.array([0, 0, 10, 10])
    np.testing.assert_allclose(
        box_iou(box, np.array([[5, 0, 15, 10], [20, 20, 30, 30]])), [50 / 150, 0]
    )


def test_boxes_without_area_share_nothing() -> None:
    point, inside_out = np.array([3.0, 3, 3, 3]), np.array([9.0, 9, 1, 1])
    assert box_iou(point, point) == 0
    assert box_area(inside_out) == 0
    assert box_iou(inside_out, inside_out) == 0


@given(places)
def test_to_cxcywh_is_torchvision_s(raw: np.ndarray) -> None:
    boxes = upright(raw)
    expected = box_convert(torch.from_numpy(boxes / [*SIZE, *SIZE]), "xyxy", "cxcywh").numpy()
    np.testing.assert_allclose(xyxy_to_cxcywh(boxes, SIZE), expected, atol=1e-12)


@given(places)
def test_there_and_back(raw: np.ndarray) -> None:
    boxes = upright(raw)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes, SIZE), SIZE), boxes, atol=1e-9)


def test_the_whole_picture_is_the_unit_box() -> None:
    np.testing.assert_array_equal(
        xyxy_to_cxcywh(np.array([0, 0, 640, 360]), SIZE), [0.5, 0.5, 1, 1]
    )


def test_between_samples_boxes_are_linear_and_outside_held() -> None:
    boxes = np.array([[0, 0, 10, 10], [40, 20, 50, 30]])
    result = interpolate_boxes(np.array([10, 14]), boxes, np.array([3, 10, 11, 14, 99]))
    np.testing.assert_array_equal(result, [boxes[0], boxes[0], [10, 5, 20, 15], boxes[1], boxes[1]])


@given(st.sets(st.integers(0, 100), min_size=5, max_size=5), places)
def test_at_samples_boxes_are_exact(frames: set[int], boxes: np.ndarray) -> None:
    numbers = np.array(sorted(frames))
    np.testing.assert_array_equal(interpolate_boxes(numbers, boxes, numbers), boxes)


def test_one_sample_is_held_everywhere() -> None:
    np.testing.assert_array_equal(
        interpolate_boxes(np.array([5]), np.array([[1, 2, 3, 4]]), np.array([0, 5, 9])),
        [[1, 2, 3, 4]] * 3,
    )
