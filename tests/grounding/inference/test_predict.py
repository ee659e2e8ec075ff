"""From model outputs to tubes, with a model of known outputs and with a real tiny model."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grounding.data.dataset import GroundingDataset
from grounding.data.sample import Sample
from grounding.inference.predict import predict
from grounding.inference.segment_prediction import SegmentPrediction
from grounding.models.csdvl import Csdvl, CsdvlConfig, CsdvlOutputs
from grounding.structures.inputs import ModelInputs
from pipeline.errors import StoreError
from pipeline.records import Query

FRAMES, CLIPS = 6, 5
Maker = Callable[..., Path]
QueryMaker = Callable[..., Query]


class Known(nn.Module):
    """Says the box of every frame by its τ, and spans by a map of logits per query of the batch."""

    def __init__(self, logits: Callable[[ModelInputs], Tensor]) -> None:
        super().__init__()
        self.anchor, self.logits, self.calls = nn.Parameter(torch.zeros(1)), logits, 0

    def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
        self.calls += 1
        tau = inputs.frame_positions
        boxes = torch.stack(
            [tau, torch.full_like(tau, 0.5), torch.full_like(tau, 0.5), torch.full_like(tau, 0.25)],
            -1,
        )
        nothing = torch.zeros(0)
        older = torch.full_like(boxes, 0.9)
        return CsdvlOutputs(torch.stack([older, boxes]), self.logits(inputs), *[nothing] * 8)


def flat(inputs: ModelInputs) -> Tensor:
    return torch.zeros(len(inputs.frame_positions), CLIPS, CLIPS)


def spike(i: int, j: int, value: float = 2.0) -> Callable[[ModelInputs], Tensor]:
    def logits(inputs: ModelInputs) -> Tensor:
        result = flat(inputs)
        result[:, i, j] = value
        result[:, 4, 0] = 9.0  # not a valid cell
        return result

    return logits


@pytest.fixture
def dataset(shapes_store: Path) -> GroundingDataset:
    return GroundingDataset.from_store(shapes_store, "train", FRAMES, CLIPS)


def test_the_highest_valid_cell_is_the_span(dataset: GroundingDataset) -> None:
    """Cell (1, 2) of five is [.2, .6) of 100 frames; its probability is σ(2)."""
    (prediction,) = predict(Known(spike(1, 2)), dataset, dataset.queries[:1])
    assert prediction.id == "train-0"
    assert prediction.span == (20, 60)
    assert prediction.score == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


def test_every_stored_frame_has_one_box_and_the_last_layer_says_which(
    dataset: GroundingDataset,
) -> None:
    """The box around τ is .5 wide: in a picture of 64 it is cut at both ends; its height is a
    quarter of 36.
    """
    (prediction,) = predict(Known(flat), dataset, dataset.queries[:1])
    assert [row[0] for row in prediction.boxes] == list(range(0, 100, 5))
    for frame, x1, y1, x2, y2 in prediction.boxes:
        centre = (frame + 0.5) / 100 * 64
        assert (x1, x2) == (
            pytest.approx(max(0, centre - 16), abs=0.01),
            pytest.approx(min(64, centre + 16), abs=0.01),
        )
        assert (y1, y2) == (pytest.approx(13.5), pytest.approx(22.5))


def test_boxes_and_maps_seen_twice_are_averaged(dataset: GroundingDataset) -> None:
    """The passes of one query answer with their number in the batch: probabilities and boxes are
    their mean.
    """
    query = dataset.queries[0]
    passes = SegmentPrediction(query, dataset).passes

    class Numbered(Known):
        def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
            out = super().forward(inputs)
            number = torch.arange(len(inputs.frame_positions)) / 10
            boxes = out.boxes.clone()
            boxes[-1] = 0.5
            boxes[-1, ..., 0] = number[:, None]
            logits = torch.where(torch.eye(CLIPS, dtype=torch.bool), number[:, None, None], -5.0)
            return replace(out, boxes=boxes, proposal_logits=logits)

    (prediction,) = predict(Numbered(flat), dataset, [query])
    recorded: dict[int, list[float]] = {}
    for number, rows in enumerate(passes):
        for frame in dataset.load_sample(query, rows).frame_indices.tolist():
            recorded.setdefault(frame, []).append(number / 10)
    assert max(len(values) for values in recorded.values()) > 1
    for frame, x1, _, _, _ in prediction.boxes:
        assert x1 == pytest.approx(max(0.0, (np.mean(recorded[frame]) - 0.25) * 64), abs=0.01)
    numbers = torch.arange(len(passes)) / 10
    assert prediction.score == pytest.approx(float(numbers.sigmoid().mean()), abs=1e-6)


class Saying(Known):
    """The same box in all frames, `[4]` cxcywh."""

    def __init__(self, logits: Callable[[ModelInputs], Tensor], box: Tensor) -> None:
        super().__init__(logits)
        self.box = box

    def forward(self, inputs: ModelInputs) -> CsdvlOutputs:
        out = super().forward(inputs)
        return replace(out, boxes=self.box.expand_as(out.boxes))


def test_an_ensembles_boxes_and_probabilities_are_averaged(dataset: GroundingDataset) -> None:
    """Cell (1, 2) has σ(2) and σ(0), cell (2, 3) σ(0) and σ(3): the second one is higher in the
    mean.
    """
    models = [
        Saying(spike(1, 2, 2.0), torch.tensor([0.25, 0.5, 0.25, 0.25])),
        Saying(spike(2, 3, 3.0), torch.tensor([0.5, 0.5, 0.25, 0.75])),
    ]
    (prediction,) = predict(models, dataset, dataset.queries[:1])
    assert prediction.span == (40, 80)
    assert prediction.score == pytest.approx((1 / (1 + np.exp(-3)) + 0.5) / 2, abs=1e-6)
    assert {row[1:] for row in prediction.boxes} == {(16.0, 9.0, 32.0, 27.0)}


@pytest.fixture
def model() -> Csdvl:
    torch.manual_seed(0)
    config = CsdvlConfig(
        hidden_dim=8,
        num_heads=2,
        ffn_dim=8,
        num_layers=1,
        num_frames=FRAMES,
        num_clips=CLIPS,
        proposal_map_channels=4,
        proposal_map_kernel=3,
        proposal_map_layers=1,
    )
    return Csdvl((6, 5, 7), config)


def test_predictions_lie_in_segment_and_picture(
    make_store: Maker, make_query: QueryMaker, model: Csdvl
) -> None:
    segments = [(0, 100), (20, 61), (3, 98), (29, 60), (30, 60), (30, 31)]
    store = make_store(
        [
            make_query(number, "train", segment=segment, truth=None)
            for number, segment in enumerate(segments)
        ]
    )
    features = GroundingDataset.from_store(store, "train", FRAMES, CLIPS)
    for query, prediction in zip(
        features.queries, predict(model, features, features.queries), strict=True
    ):
        begin, end = query.segment
        assert begin <= prediction.span[0] < prediction.span[1] <= end
        assert [row[0] for row in prediction.boxes] == [
            frame for frame in range(0, 100, 5) if begin <= frame < end
        ]
        corners = np.array(prediction.boxes)[:, 1:]
        assert (corners >= 0).all()
        assert (corners <= [*query.size, *query.size]).all()
        assert (corners[:, 2:] > corners[:, :2]).all()
        assert 0 <= prediction.score <= 1


@pytest.mark.parametrize("refine", [False, True])
def test_one_model_and_several_of_the_same_answer_alike(
    dataset: GroundingDataset, model: Csdvl, refine: bool
) -> None:
    alone = predict(model, dataset, dataset.queries, refine_boundaries=refine)
    assert predict([model], dataset, dataset.queries, refine_boundaries=refine) == alone
    assert predict([model, model], dataset, dataset.queries, refine_boundaries=refine) == alone


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 5, 100])
def test_answers_do_not_depend_on_the_batch(
    dataset: GroundingDataset, model: Csdvl, batch: int, refine: bool
) -> None:
    """Boxes are rounded to hundredths of a pixel; passes of several queries, wide and tall, share a
    batch.
    """
    expected = [
        predict(model, dataset, [query], refine_boundaries=refine)[0] for query in dataset.queries
    ]
    result = predict(model, dataset, dataset.queries, batch_size=batch, refine_boundaries=refine)
    for current, reference in zip(result, expected, strict=True):
        assert (current.id, current.span) == (reference.id, reference.span)
        np.testing.assert_allclose(current.boxes, reference.boxes, atol=0.011)


def test_passes_share_batches_and_stay_together(dataset: GroundingDataset) -> None:
    """Twenty frames by six are four passes a query (or more): three queries fit two batches of
    eight.
    """
    known = Known(flat)
    each = len(SegmentPrediction(dataset.queries[0], dataset).passes)
    predict(known, dataset, dataset.queries[:3], batch_size=2 * each)
    assert known.calls == 2


def test_what_shares_a_batch_is_of_one_size_and_answers_keep_their_order(
    make_store: Maker, make_query: QueryMaker
) -> None:
    """Two wide videos and a tall one in turns; two queries a batch."""
    features = GroundingDataset.from_store(
        make_store([make_query(number, "train") for number in range(6)]), "train", FRAMES, CLIPS
    )
    sizes: list[set[tuple[int, ...]]] = []

    def logits(inputs: ModelInputs) -> Tensor:
        sizes.append({tuple(size) for size in inputs.map_size.tolist()})
        return flat(inputs)

    each = len(SegmentPrediction(features.queries[0], features).passes)
    predictions = predict(Known(logits), features, features.queries, batch_size=2 * each)
    assert [prediction.id for prediction in predictions] == [query.id for query in features.queries]
    assert sorted(map(len, sizes)) == [1, 1, 1]
    assert len(set.union(*sizes)) == 2


def test_a_frame_between_stored_ones_gets_the_nearest_box(
    make_store: Maker, make_query: QueryMaker
) -> None:
    features = GroundingDataset.from_store(
        make_store([make_query(0, "train", segment=(31, 33), truth=None)]), "train", FRAMES, CLIPS
    )
    for refine in (False, True):
        (prediction,) = predict(Known(flat), features, features.queries, refine_boundaries=refine)
        assert (prediction.span[0], [row[0] for row in prediction.boxes]) == (31, [30])


@pytest.mark.parametrize("frames", [1, 7, 20, 96])
def test_every_frame_is_seen_whatever_the_number_at_once(
    shapes_store: Path, model: Csdvl, frames: int
) -> None:
    features = GroundingDataset.from_store(shapes_store, "train", frames, CLIPS)
    (prediction,) = predict(model, features, features.queries[:1])
    assert [row[0] for row in prediction.boxes] == list(range(0, 100, 5))


@pytest.mark.parametrize("refine", [False, True])
def test_no_more_samples_are_held_than_run_at_once_and_as_many_to_come(
    shapes_store: Path, refine: bool
) -> None:
    """One frame at once makes twenty passes of one query; samples of passes before are gone when
    the next ones run.
    """
    held: list[weakref.ref[Sample]] = []
    most = 0

    class Counted(GroundingDataset):
        def load_sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
            nonlocal most
            result = super().load_sample(query, rows)
            held.append(weakref.ref(result))
            most = max(most, sum(item() is not None for item in held))
            return result

    features = Counted.from_store(shapes_store, "train", 1, CLIPS)
    predict(Known(flat), features, features.queries[:2], batch_size=4, refine_boundaries=refine)
    assert len(held) >= 40
    assert most <= 8


@pytest.mark.parametrize("broken", [False, True])
def test_the_next_passes_are_read_while_those_before_them_are_answered(
    shapes_store: Path, broken: bool
) -> None:
    """The network's first answer waits until samples of the second part have been read; what goes
    wrong in reading is raised.
    """
    second, reads = threading.Event(), Counter[str]()

    class Noted(GroundingDataset):
        def load_sample(self, query: Query, rows: np.ndarray | None = None) -> Sample:
            reads[threading.current_thread().name] += 1
            if sum(reads.values()) > 4:
                second.set()
                if broken:
                    raise StoreError("damaged")
            return super().load_sample(query, rows)

    def waiting(inputs: ModelInputs) -> Tensor:
        assert second.wait(60)
        return flat(inputs)

    features = Noted.from_store(shapes_store, "train", 1, CLIPS)
    raised = pytest.raises(StoreError, match="damaged") if broken else nullcontext()
    with raised:
        predict(Known(waiting), features, features.queries[:1], batch_size=4)
    assert threading.current_thread().name not in reads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prediction")]


def test_progress_counts_queries(dataset: GroundingDataset, model: Csdvl) -> None:
    recorded: list[tuple[int, int]] = []
    predict(
        model,
        dataset,
        dataset.queries[:3],
        batch_size=1,
        progress=lambda done, total: recorded.append((done, total)),
    )
    assert recorded == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_predicting_puts_the_model_into_eval_mode(dataset: GroundingDataset, model: Csdvl) -> None:
    model.train()
    predictions = [predict(model, dataset, dataset.queries[:2]) for _ in range(2)]
    assert not model.training
    assert predictions[0] == predictions[1]
