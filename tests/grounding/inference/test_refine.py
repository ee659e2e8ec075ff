"""The second look, with models that know the truth: one says every proposal's IoU with it, one its
first and last frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grounding.data.dataset import GroundingDataset
from grounding.data.sources import InMemorySource
from grounding.inference.predict import predict
from grounding.inference.refine import expand_span
from grounding.models.csdvl import CsdvlOutputs
from grounding.modules.proposal_map import proposal_iou_map
from grounding.structures.inputs import ModelInputs
from grounding.structures.span_scores import BoundaryPrediction, interval_edges
from pipeline.records import Prediction, Query
from pipeline.store import Entry
from pipeline.tracks import Tracks

FRAME_COUNT, EVERY, FRAMES, CLIPS = 320, 5, 8, 8
SEGMENT = (100, 260)


@dataclass(eq=False)
class Knowing(nn.Module):
    """Reads from the motion features when it is looking, since they hold the middles of their
    clips; boxes are at τ.
    """

    truth: tuple[float, float]
    windows: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
        middles = inputs.motion[:, :, 0, 0, 0].float()
        half = (middles[:, 1] - middles[:, 0]) / 2
        begin, end = middles[:, 0] - half, middles[:, -1] + half
        self.windows += zip(begin.tolist(), end.tolist(), strict=True)
        span = (torch.tensor([self.truth]) - begin[:, None]) / (end - begin)[:, None]
        tau, nothing = inputs.frame_positions, torch.zeros(0)
        boxes = torch.stack([tau, *(torch.full_like(tau, side) for side in (0.5, 0.0, 0.25))], -1)
        logits: Tensor = proposal_iou_map(span, CLIPS).clamp(1e-7, 1 - 1e-7).logit()
        return CsdvlOutputs(boxes[None], logits, *[nothing] * 8)


@dataclass
class Said:
    """What a model of first and last frames answers."""

    boxes: Tensor
    first: np.ndarray
    last: np.ndarray

    def span_predictions(self) -> list[BoundaryPrediction]:
        return [BoundaryPrediction(*both) for both in zip(self.first, self.last, strict=True)]


class KnowingFrames(Knowing):
    """Reads from the appearance maps, which hold their frames' numbers, when it is looking.

    It says Gaussians as wide as its frames are apart, and begins and ends a share `late` of that
    too late.
    """

    late = 0.3

    def forward(self, inputs: ModelInputs) -> Said:
        numbers, tau = (
            inputs.appearance[:, :, 0, 0, 0].double().numpy(),
            inputs.frame_positions.double().numpy(),
        )
        length = ((numbers[:, -1] - numbers[:, 0]) / (tau[:, -1] - tau[:, 0])).round()
        starts = (numbers[:, 0] + 0.5 - tau[:, 0] * length).round()
        segments = list(zip(starts.tolist(), (starts + length).tolist(), strict=True))
        self.windows += segments
        edges = np.stack(
            [interval_edges(own, segment) for own, segment in zip(numbers, segments, strict=True)]
        )
        apart = length[:, None] / FRAMES
        sides = ((edges[:, :-1], self.truth[0]), (edges[:, 1:], self.truth[1]))
        first, last = (np.exp(-(((at - side) / apart - self.late) ** 2) / 2) for at, side in sides)
        boxes = torch.full((1, *numbers.shape, 4), 0.5)
        return Said(boxes, first / first.sum(1, keepdims=True), last / last.sum(1, keepdims=True))


def features_of(
    clip_frames: int, segment: tuple[int, int] = SEGMENT, clips: int | None = CLIPS
) -> GroundingDataset:
    """One query about a video with an appearance map every five frames and a clip every
    `clip_frames`.
    """
    facts = {"fps": 25.0, "frame_count": FRAME_COUNT, "size": (100, 100)}
    query = Query.model_validate(
        {
            "id": "q",
            "video": "v",
            "path": "v.mp4",
            "segment": segment,
            "text": "x",
            "split": "test",
            **facts,
        }
    )
    frames, starts = np.arange(0, FRAME_COUNT, EVERY), np.arange(0, FRAME_COUNT, clip_frames)
    motion = (starts + clip_frames / 2).astype(np.float16)[:, None, None, None]
    result = [
        Entry(
            "v",
            "v",
            frames.astype(np.float16)[:, None, None, None],
            {"frame": frames},
            {"size": [100, 100]},
        ),
        Entry("v", "v", motion, {"frame": starts + clip_frames // 2}, {"size": [100, 100]}),
        Entry("q", "v", np.zeros((2, 1), np.float16), {}),
    ]
    return GroundingDataset(
        [query],
        Tracks(),
        *(InMemorySource([entry]) for entry in result),
        num_frames=FRAMES,
        num_clips=clips,
    )


def ask(
    model: nn.Module,
    features: GroundingDataset,
    refine_boundaries: bool = True,
    subframe_boundaries: bool = False,
) -> Prediction:
    (prediction,) = predict(
        model,
        features,
        features.queries,
        refine_boundaries=refine_boundaries,
        subframe_boundaries=subframe_boundaries,
    )
    return prediction


def test_the_second_look_finds_the_boundary_on_the_finer_grid() -> None:
    """Clips of 20 frames hold [140, 180) best; the window [120, 200) has clips of 10, and the truth
    is on their edges.
    """
    model, features = Knowing((150, 180)), features_of(5)
    assert ask(model, features, refine_boundaries=False).span == (140, 180)
    model.windows.clear()
    prediction = ask(model, features)
    assert prediction.span == (150, 180)
    assert sorted(set(model.windows)) == [(100, 260), (120, 200)]
    assert prediction.score == pytest.approx((1 + (30 / 40 + 20 / 30) / 2) / 2, abs=1e-5)


def test_a_truth_between_fine_clips_is_found_to_half_a_clip() -> None:
    for begin in range(145, 156):
        result = ask(Knowing((begin, begin + 32)), features_of(5), subframe_boundaries=True)
        assert abs(result.span[0] - begin) <= 5
        assert abs(result.span[1] - begin - 32) <= 5


def test_boxes_of_both_looks_are_averaged() -> None:
    """Each stored frame is seen once by each look: at τ of the segment, and in the window at τ of
    the window.
    """
    prediction = ask(Knowing((150, 180)), features_of(5))
    assert [row[0] for row in prediction.boxes] == list(range(*SEGMENT, EVERY))
    for frame, x1, *_ in prediction.boxes:
        recorded = [(frame + 0.5 - 100) / 160] + (
            [(frame + 0.5 - 120) / 80] if 120 <= frame < 200 else []
        )
        assert x1 == pytest.approx(100 * np.mean(recorded), abs=0.01)


@pytest.mark.parametrize(
    ("clip_frames", "truth"),
    [
        (20, (150, 180)),  # as many clips are stored as the model sees
        (40, (150, 180)),  # fewer
        (5, (100, 260)),  # the span is the whole segment
        (5, (120, 250)),  # with its margins it is
    ],
)
def test_where_nothing_new_can_be_seen_there_is_no_second_look(
    clip_frames: int, truth: tuple[int, int]
) -> None:
    model, features = Knowing(truth), features_of(clip_frames)
    once = ask(model, features, refine_boundaries=False)
    calls = len(model.windows)
    assert ask(model, features) == once
    assert len(model.windows) == 2 * calls


def test_the_window_holds_as_many_clips_as_the_model_sees() -> None:
    """The best is one clip of 20 frames; 16 clips of 10 are stored, so that eight of them are 80
    frames.
    """
    model = Knowing((160, 180))
    ask(model, features_of(10))
    assert sorted(set(model.windows)) == [(100, 260), (130, 210)]


@pytest.mark.parametrize(
    ("span", "least", "window"),
    [
        ((40, 60), 1, (30, 70)),
        ((5, 25), 1, (0, 35)),
        ((80, 100), 1, (70, 100)),
        ((49, 50), 20, (40, 60)),
        ((0, 2), 30, (0, 30)),
        ((97, 100), 30, (70, 100)),
        ((10, 90), 1, (0, 100)),
        ((50, 51), 100, (0, 100)),
    ],
)
def test_windows_have_margins_and_stay_in_the_segment(
    span: tuple[int, int], least: int, window: tuple[int, int]
) -> None:
    assert expand_span(span, (0, 100), least) == window
    moved = expand_span((span[0] + 7, span[1] + 7), (7, 107), least)
    assert moved == (window[0] + 7, window[1] + 7)


@pytest.mark.parametrize("truth", [(150, 180), (143, 178), (161, 199)])
def test_first_and_last_frames_are_found_closer_by_the_second_look(truth: tuple[int, int]) -> None:
    """Eight of 32 frames are 20 frames apart, so the answer 6 frames late; in the window they are
    closer, and less late.

    There are only as many clips as the model sees: where it takes motion at its frames, they do not
    matter.
    """
    model, features = KnowingFrames(truth), features_of(20, clips=None)
    once = ask(model, features, refine_boundaries=False, subframe_boundaries=True)
    assert set(model.windows) == {SEGMENT}
    assert np.subtract(once.span, truth) == pytest.approx([6, 6], abs=1.5)
    model.windows.clear()
    prediction = ask(model, features, subframe_boundaries=True)
    assert set(model.windows) == {SEGMENT, expand_span(once.span, SEGMENT, 40)}
    apart = (model.windows[-1][1] - model.windows[-1][0]) / FRAMES
    late = np.subtract(prediction.span, truth)
    assert (late < 6 - 1.5).all()
    assert (late > 0.3 * apart - 1.5).all()
    assert 0 < prediction.score < 1
    assert [row[0] for row in prediction.boxes] == list(range(*SEGMENT, EVERY))


def test_where_all_frames_are_seen_at_once_there_is_no_second_look_at_them() -> None:
    """Eight frames are stored, and sixteen clips."""
    model, features = KnowingFrames((150, 170)), features_of(5, segment=(140, 180), clips=None)
    once = ask(model, features, refine_boundaries=False, subframe_boundaries=True)
    assert ask(model, features, subframe_boundaries=True) == once
    assert set(model.windows) == {(140, 180)}


def test_models_of_first_and_last_frames_answer_together() -> None:
    """One begins and ends early, one late, and both together in between; two that are alike answer
    as one.
    """
    early, late = KnowingFrames((140, 170)), KnowingFrames((152, 182))
    features = features_of(20, clips=None)
    alone = [ask(model, features, subframe_boundaries=True) for model in (early, late)]
    (both,) = predict([early, late], features, features.queries, refine_boundaries=True)
    assert alone[0].span[0] < both.span[0] < alone[1].span[0]
    assert alone[0].span[1] < both.span[1] < alone[1].span[1]
    assert predict([late, late], features, features.queries, refine_boundaries=True) == alone[1:]
