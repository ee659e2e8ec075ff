"""CG-STVG at tiny size: batch = singles, what the context tells and what a stage does without it,
where gradients go.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from grounding.losses.cgstvg import CgstvgLossConfig, cgstvg_loss
from grounding.models.cgstvg import (
    Cgstvg,
    CgstvgConfig,
    CgstvgOutputs,
    ContextAttention,
    InstanceContext,
    InstanceContextOutputs,
)
from grounding.modules.roi import roi_align_weights
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import validate
from pipeline.encoders.image_geometry import picture_in_square
from pipeline.errors import InputError

DIMS = (6, 5, 7)
FRAMES, STAGES = 4, 3
TINY = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 12,
    "num_layers": 1,
    "num_stages": STAGES,
    "num_frames": FRAMES,
    "theta_t": 0.3,
    "theta_s": 0.25,
}
WIDE, TALL, SMALL = (4, 8), (8, 4), (3, 5)
"""Rows and columns of appearance maps."""
WHOLE = (0.0, 0.0, 1.0, 1.0)


def make_model(seed: int = 1, **changes: Any) -> Cgstvg:
    """A model in eval mode whose parameters are all random (biases and norms too), so that nothing
    hides behind a zero; its weights are large enough for frames to differ.
    """
    torch.manual_seed(seed)
    model = Cgstvg(DIMS, CgstvgConfig(**{**TINY, **changes}))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(
                parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3
            )
        elif name not in ("spatial_query", "temporal_query"):
            parameter.data *= 2
    return model.eval()


def make_query(
    seed: int, size: tuple[int, int], words: int, swin: bool = False, frames: int = FRAMES
) -> ModelInputs:
    """One query without any padding: motion over the padded square, as SlowFast's, or a little
    coarser than the map, as Swin's.
    """
    random = torch.Generator().manual_seed(seed)
    rows, columns = size
    motion = (rows - 1, columns - 1) if swin else (6, 6)
    return ModelInputs(
        appearance=torch.randn(1, frames, rows, columns, DIMS[0], generator=random),
        map_size=torch.tensor([size]),
        frame_positions=torch.rand(1, frames, generator=random).sort(-1).values,
        motion=torch.randn(1, frames, *motion, DIMS[1], generator=random),
        picture_in_square=torch.tensor([WHOLE if swin else picture_in_square((columns, rows))]),
        text=torch.randn(1, words, DIMS[2], generator=random),
        text_mask=torch.ones(1, words, dtype=torch.bool),
    )


def collate(queries: list[ModelInputs]) -> ModelInputs:
    """Queries in one batch, padded with 9 rather than zeros: what masks hide must not matter."""

    def pad_and_stack(tensors: list[Tensor]) -> Tensor:
        shape = torch.tensor([tensor.shape for tensor in tensors]).amax(0).tolist()
        batch = torch.full(
            (len(tensors), *shape[1:]),
            0 if tensors[0].dtype == torch.bool else 9,
            dtype=tensors[0].dtype,
        )
        for slot, tensor in zip(batch, tensors, strict=True):
            slot[tuple(slice(side) for side in tensor.shape[1:])] = tensor[0]
        return batch

    batch = ModelInputs(
        **{
            field.name: pad_and_stack([getattr(query, field.name) for query in queries])
            for field in fields(ModelInputs)
            if field.name != "video_indices"
        }
    )
    motion_sizes = [torch.tensor(query.motion.shape[2:4]).flip(0).repeat(2) for query in queries]
    rows, columns = batch.motion.shape[2:4]
    return replace(
        batch,
        picture_in_square=batch.picture_in_square
        * torch.stack(motion_sizes)
        / torch.tensor([columns, rows] * 2),
    )


def make_three_queries(swin: bool = False, frames: int = FRAMES) -> list[ModelInputs]:
    """Queries with maps and sentences of different sizes."""
    return [
        make_query(seed, size, words, swin, frames)
        for seed, size, words in ((0, WIDE, 4), (1, TALL, 7), (2, SMALL, 1))
    ]


def make_targets(count: int, boxes: Tensor | None = None, boxed: Tensor | None = None) -> Targets:
    """Boxes of all frames, or those given, and a span about the segment's middle."""
    random = torch.Generator().manual_seed(4)
    target_boxes = (
        torch.rand(count, FRAMES, 4, generator=random) * 0.3 + 0.35 if boxes is None else boxes
    )
    box_mask = torch.ones(count, FRAMES, dtype=torch.bool) if boxed is None else boxed
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(count, FRAMES)
    return Targets(
        target_boxes,
        box_mask,
        torch.tensor([[0.2, 0.7]]).expand(count, 2),
        inside,
        inside,
        target_boxes,
        box_mask,
    )


def outputs_of_query(out: CgstvgOutputs, index: int) -> dict[str, Tensor]:
    """What stages answer of one query."""
    return {
        name: getattr(out, name)[:, index]
        for name in (
            "boxes",
            "start_logits",
            "end_logits",
            "inside_logits",
            "box_confidence",
            "context_mask",
            "temporal_attention",
            "box_attention",
        )
    }


def assert_same(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, expected_value in expected.items():
        torch.testing.assert_close(results[name], expected_value, atol=1e-5, rtol=1e-5)


# Shapes and ranges


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("box_head", ["mlp", "attention"])
@pytest.mark.parametrize("swin", [False, True])
def test_outputs_have_their_shapes_and_ranges(stages: int, box_head: str, swin: bool) -> None:
    model = make_model(num_stages=stages, box_head=box_head)
    out = model(collate(make_three_queries(swin)))
    cells = 8 * 8
    assert out.boxes.shape == (stages, 3, FRAMES, 4)
    assert ((out.boxes[..., 2:] > 0) & (out.boxes[..., 2:] < 1)).all()
    assert (
        out.start_logits.shape
        == out.end_logits.shape
        == out.inside_logits.shape
        == out.box_confidence.shape
        == out.context_mask.shape
        == (stages, 3, FRAMES)
    )
    assert ((out.box_confidence > 0) & (out.box_confidence < 1)).all()
    assert out.context_mask.dtype == torch.bool
    assert out.frame_positions.shape == (3, FRAMES)
    assert out.cell_centers.shape == (3, cells, 2)
    assert out.box_attention.shape == out.temporal_attention.shape == (stages, 3, FRAMES, cells)
    assert out.cell_boxes.shape == ((3, FRAMES, cells, 4) if box_head == "attention" else (0,))
    assert all(torch.isfinite(getattr(out, field.name)).all() for field in fields(CgstvgOutputs))
    torch.testing.assert_close(out.box_attention.sum(-1), torch.ones(stages, 3, FRAMES))
    assert (
        (out.temporal_attention.sum(-1) > 0) & (out.temporal_attention.sum(-1) < 1)
    ).all()  # the words take the rest


def test_without_context_nothing_is_said_of_it() -> None:
    model = make_model(context=False)
    out = model(collate(make_three_queries()))
    assert out.boxes.shape == (STAGES, 3, FRAMES, 4)
    assert out.box_confidence.numel() == out.context_mask.numel() == 0
    assert not [
        name for name, _ in model.named_parameters() if "context" in name or "instance" in name
    ]


def test_of_when_it_says_the_last_stage_s_probabilities() -> None:
    out = make_model()(collate(make_three_queries()))
    predictions = out.span_predictions()
    assert len(predictions) == 3
    for index, prediction in enumerate(predictions):
        np.testing.assert_allclose(
            prediction.start, out.start_logits[-1, index].detach().softmax(-1), rtol=1e-5
        )
        np.testing.assert_allclose(
            prediction.end, out.end_logits[-1, index].detach().softmax(-1), rtol=1e-5
        )
        assert (prediction.start.sum(), prediction.end.sum()) == pytest.approx((1, 1))


# A batch is its queries


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context": False},
        {"temporal_context": True, "refinement": "none"},
        {"query_positions": "boxes", "refinement": "none"},
        {"region_pooling": "mean", "refinement": "none"},
        {"box_head": "attention", "text_balance": "num_cells", "refinement": "none"},
        {
            "box_head": "attention",
            "region_pooling": "mean",
            "query_positions": "boxes",
            "refinement": "sum",
            "single_threshold": 0.3,
        },
    ],
)
@pytest.mark.parametrize("swin", [False, True])
def test_a_batch_gives_what_its_queries_give_alone(swin: bool, changes: dict[str, Any]) -> None:
    """Other map sizes, squares and numbers of words, padded with 9: the same outputs (tolerance
    1e-5).
    """
    model, queries = make_model(**changes), make_three_queries(swin)
    with torch.no_grad():
        batch, single_outputs = model(collate(queries)), [model(query) for query in queries]
    for index, (query, single_output) in enumerate(zip(queries, single_outputs, strict=True)):
        rows, columns = query.map_size[0].tolist()
        for name in ("boxes", "start_logits", "end_logits", "inside_logits") + (
            ("box_confidence", "context_mask") if model.config.context else ()
        ):
            torch.testing.assert_close(
                getattr(batch, name)[:, index],
                getattr(single_output, name)[:, 0],
                atol=1e-5,
                rtol=1e-5,
            )
        for name in ("box_attention", "temporal_attention"):
            query_weights = getattr(batch, name)[:, index].unflatten(-1, (8, 8))
            assert query_weights.sum() == pytest.approx(
                float(query_weights[..., :rows, :columns].sum())
            )
            single_weights = getattr(single_output, name)[:, 0].unflatten(-1, (rows, columns))
            torch.testing.assert_close(
                query_weights[..., :rows, :columns], single_weights, atol=1e-5, rtol=1e-5
            )


def test_what_is_shared_is_answered_and_learned_from_as_if_it_were_not(
    assert_sharing_changes_nothing: Callable[..., None],
) -> None:
    assert_sharing_changes_nothing(
        make_model(),
        make_three_queries(),
        collate,
        ("boxes", "start_logits", "end_logits", "inside_logits"),
    )


def test_what_temporal_queries_hear_is_the_motion() -> None:
    """Of the weights over appearance cells, motion cells and words, those in the middle."""
    model, query = make_model(num_stages=1), make_query(0, WIDE, 4)
    layer, results = model.temporal_blocks[0].memory_attention.attention, []
    with_weights = layer.with_weights

    def record_call(*args: Any) -> Any:
        results.append(with_weights(*args))
        return results[0]

    with mock.patch.object(layer, "with_weights", record_call), torch.no_grad():
        attention = model(query).temporal_attention[0]
    cells = attention.shape[-1]
    torch.testing.assert_close(
        attention, results[0][1][:, 0, cells : 2 * cells].unflatten(0, attention.shape[:2])
    )


def test_in_that_batch_some_context_is_kept_and_some_dropped() -> None:
    with torch.no_grad():
        context_mask = make_model()(collate(make_three_queries())).context_mask[:-1]
    assert context_mask.any()
    assert not context_mask.all()


# Frames


@pytest.mark.parametrize("query_positions", ["learned", "boxes"])
@pytest.mark.parametrize("swin", [False, True])
def test_other_numbers_of_frames_than_in_training_work(query_positions: str, swin: bool) -> None:
    model, queries = make_model(query_positions=query_positions), make_three_queries(swin, frames=7)
    with torch.no_grad():
        batch, single_outputs = model(collate(queries)), [model(query) for query in queries]
    assert batch.boxes.shape == (STAGES, 3, 7, 4)
    assert [prediction.start.shape for prediction in batch.span_predictions()] == [(7,)] * 3
    for index, single_output in enumerate(single_outputs):
        for name in ("boxes", "start_logits", "end_logits"):
            torch.testing.assert_close(
                getattr(batch, name)[:, index],
                getattr(single_output, name)[:, 0],
                atol=1e-5,
                rtol=1e-5,
            )


def test_a_frame_s_learned_position_is_that_of_its_place_in_the_segment() -> None:
    """Each of four positions stands for the middle of a quarter of the segment; between middles
    they are interpolated.
    """
    model, tau = make_model(), torch.tensor([[0.1, 0.2, 0.3, 0.45, 0.5, 0.8, 0.9]])
    query = replace(make_query(0, WIDE, 4, frames=7), frame_positions=tau)
    positions_seen: list[Tensor] = []
    handle = model.spatial_blocks[0].register_forward_pre_hook(
        lambda module, args: positions_seen.append(args[1])
    )
    with torch.no_grad():
        model(query)
    handle.remove()
    shares = [
        [1, 0, 0, 0],
        [0.7, 0.3, 0, 0],
        [0.3, 0.7, 0, 0],
        [0, 0.7, 0.3, 0],
        [0, 0.5, 0.5, 0],
        [0, 0, 0.3, 0.7],
        [0, 0, 0, 1],
    ]
    torch.testing.assert_close(
        positions_seen[0][0], torch.tensor(shares) @ model.spatial_query.detach()
    )


@pytest.mark.parametrize("refinement", ["none", "both"])
def test_frames_taken_twice_give_what_they_give_once(refinement: str) -> None:
    """Every average over frames, the context's too, stays as it is."""
    model, query = make_model(refinement=refinement, temporal_context=True), make_query(0, WIDE, 4)
    repeated_query = replace(
        query,
        **{
            name: getattr(query, name).repeat_interleave(2, 1)
            for name in ("appearance", "motion", "frame_positions")
        },
    )
    with torch.no_grad():
        outputs, repeated_outputs = model(query), model(repeated_query)
    for name in ("boxes", "start_logits", "end_logits", "box_confidence"):
        torch.testing.assert_close(
            getattr(repeated_outputs, name)[:, :, ::2], getattr(outputs, name), atol=1e-5, rtol=1e-5
        )


# ICG


def test_the_context_is_what_lies_in_the_boxes_appearance_and_motion_apart() -> None:
    model, query = make_model(), make_query(0, WIDE, 4)
    boxes, logits = torch.rand(1, FRAMES, 4) * 0.5 + 0.2, torch.zeros(1, FRAMES)
    with torch.no_grad():
        memory = model.encode(query)
        context = model.instance_context(memory, boxes, logits, None)
        count = WIDE[0] * WIDE[1]
        states_by_kind = (memory.states[:, :count], memory.states[:, count : 2 * count])
        weights = roi_align_weights(boxes[0], torch.tensor([WIDE]).expand(FRAMES, 2), WIDE)
        appearance, motion = (
            torch.einsum("ts,tsd->td", weights, states) for states in states_by_kind
        )
        tokens = model.instance_context.fuse_motion(torch.cat([appearance, motion], -1))
        quality = (
            model.instance_context.appearance_confidence(appearance).sigmoid()
            + model.instance_context.motion_confidence(motion).sigmoid()
        )[:, 0] / 2
    torch.testing.assert_close(context.tokens[0], tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(context.box_confidence[0], quality, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temporal_context", [False, True])
def test_what_the_context_says_of_when_only_the_temporal_blocks_can_hear(
    temporal_context: bool,
) -> None:
    """Boxes hear it in any case, but for those of the first stage."""
    model, queries = (
        make_model(temporal_context=temporal_context, refinement="none"),
        collate(make_three_queries()),
    )
    with torch.no_grad():
        all_kept = model(queries)
        with mock.patch.object(
            model.instance_context,
            "select_context",
            side_effect=lambda temporal, spatial: torch.zeros_like(temporal, dtype=torch.bool),
        ):
            none_kept = model(queries)
    for name, affected in (
        ("boxes", True),
        ("start_logits", temporal_context),
        ("end_logits", temporal_context),
        ("inside_logits", temporal_context),
    ):
        before, after = getattr(all_kept, name), getattr(none_kept, name)
        torch.testing.assert_close(before[0], after[0])
        assert [
            not torch.allclose(before_stage, changed, atol=1e-5)
            for before_stage, changed in zip(before[1:], after[1:], strict=True)
        ] == [affected] * 2


# ICR


@pytest.mark.parametrize(
    ("refinement", "context_mask"),
    [
        ("none", [1, 1, 1, 1, 1]),
        ("temporal", [1, 0, 1, 0, 0]),
        ("spatial", [1, 1, 0, 0, 1]),
        ("both", [1, 0, 0, 0, 0]),
        ("sum", [1, 1, 1, 0, 1]),  # halves of the sums: .625 .75 .625 .25 .625
        ("product", [0, 1, 0, 0, 1]),  # roots of the products: .612 .707 .5 .25 .625
    ],
)
def test_icr_drops_what_is_under_its_threshold(refinement: str, context_mask: list[int]) -> None:
    """θ_t .75, θ_s .5, for one level .625; what equals a threshold is kept."""
    icr = InstanceContext(
        CgstvgConfig.model_validate(
            {
                "hidden_dim": 16,
                "refinement": refinement,
                "theta_t": 0.75,
                "theta_s": 0.5,
                "single_threshold": 0.625,
            }
        )
    )
    temporal, spatial = (
        torch.tensor([[0.75, 0.5, 1.0, 0.25, 0.625]]),
        torch.tensor([[0.5, 1.0, 0.25, 0.25, 0.625]]),
    )
    assert icr.select_context(temporal, spatial).int().tolist() == [context_mask]


def test_the_paper_s_thresholds_are_the_default() -> None:
    icr = InstanceContext(CgstvgConfig(hidden_dim=16))
    temporal, spatial = torch.tensor([[0.7, 0.69, 0.7, 1.0]]), torch.tensor([[0.8, 1.0, 0.79, 1.0]])
    assert icr.select_context(temporal, spatial).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("refinement", ["temporal", "spatial", "both", "sum", "product"])
def test_a_stage_s_confidences_refine_its_context(refinement: str) -> None:
    """s^t is the logit's sigmoid."""
    model = make_model(refinement=refinement, single_threshold=0.3)
    with torch.no_grad():
        out = model(collate(make_three_queries()))
        assert torch.equal(
            out.context_mask,
            model.instance_context.select_context(out.inside_logits.sigmoid(), out.box_confidence),
        )
    assert 0 < int(out.context_mask.sum()) < out.context_mask.numel()


@pytest.mark.parametrize("context_mask", [[True, False, True, False], [False, False, False, True]])
def test_every_query_looks_at_kept_frames_alone_and_at_no_others(context_mask: list[bool]) -> None:
    """Another token of one frame changes what all frames' queries take from the context, or that of
    none.
    """
    model = make_model()
    attention = model.spatial_blocks[1].context_attention
    assert isinstance(attention, ContextAttention)
    tokens, queries, positions = torch.randn(
        3, 1, FRAMES, 16, generator=torch.Generator().manual_seed(6)
    )
    context_mask_row = torch.tensor([context_mask])
    with torch.no_grad():
        memory = model.encode(make_query(0, WIDE, 4))
        before = attention.attend_context(
            queries,
            positions,
            memory,
            InstanceContextOutputs(tokens, context_mask_row, torch.zeros(1, FRAMES)),
        )
        for frame in range(FRAMES):
            changed = tokens.clone()
            changed[:, frame] += 1
            after = attention.attend_context(
                queries,
                positions,
                memory,
                InstanceContextOutputs(changed, context_mask_row, torch.zeros(1, FRAMES)),
            )
            assert ((after - before).abs().amax(-1) > 1e-4).tolist() == [
                [context_mask[frame]] * FRAMES
            ]


# Nothing kept

SECOND_HAS_NONE = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
ALL_SOME = SECOND_HAS_NONE | torch.tensor([[0], [1], [0]], dtype=torch.bool)
LATER = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)


def run_with_masks(
    model: Cgstvg, context_mask: list[Tensor], ablated_stage: int | None = None
) -> CgstvgOutputs:
    """The three queries, with `context_mask` `[B, T]` after each stage.

    Stage `ablated_stage` has no attention to the context.
    """
    with ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(model.instance_context, "select_context", side_effect=context_mask)
        )
        if ablated_stage is not None:
            for blocks in (model.spatial_blocks, model.temporal_blocks):
                stack.enter_context(
                    mock.patch.object(blocks[ablated_stage], "context_attention", None)
                )
        return model(collate(make_three_queries()))


@pytest.mark.parametrize("temporal_context", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_query_with_nothing_kept_does_without_context_and_the_others_do_not_notice(
    temporal_context: bool, stage: int
) -> None:
    model = make_model(temporal_context=temporal_context)
    results, ablated_stage = [LATER] * STAGES, [LATER] * STAGES
    results[stage - 1], ablated_stage[stage - 1] = SECOND_HAS_NONE, ALL_SOME
    with torch.no_grad():
        out, ablated, unmasked = (
            run_with_masks(model, results),
            run_with_masks(model, results, stage),
            run_with_masks(model, ablated_stage),
        )
    assert all(torch.isfinite(getattr(out, field.name)).all() for field in fields(CgstvgOutputs))
    assert_same(outputs_of_query(out, 1), outputs_of_query(ablated, 1))
    assert not torch.allclose(out.boxes[stage, 1], unmasked.boxes[stage, 1], atol=1e-4)
    for index in (0, 2):
        assert_same(outputs_of_query(out, index), outputs_of_query(unmasked, index))
        assert not torch.allclose(out.boxes[stage, index], ablated.boxes[stage, index], atol=1e-4)


@pytest.mark.parametrize("temporal_context", [False, True])
def test_with_nothing_kept_gradients_are_those_of_a_stage_without_context(
    temporal_context: bool,
) -> None:
    context_mask = [SECOND_HAS_NONE, LATER, LATER]
    results = []
    for ablated_stage in (None, 1):
        model = make_model(temporal_context=temporal_context)
        parameters = dict(model.named_parameters())
        out = outputs_of_query(run_with_masks(model, context_mask, ablated_stage), 1)
        torch.cat(
            [
                out[name].square().flatten()
                for name in (
                    "boxes",
                    "start_logits",
                    "end_logits",
                    "inside_logits",
                    "box_confidence",
                )
            ]
        ).sum().backward()
        results.append(
            {
                name: torch.zeros(()) if parameter.grad is None else parameter.grad
                for name, parameter in parameters.items()
            }
        )
    gradients, ablated = results
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all(), name
        if ".1.context_attention." in name:
            assert not gradient.any(), name
        else:
            torch.testing.assert_close(
                gradient, ablated[name].expand_as(gradient), atol=1e-4, rtol=1e-4
            )
    assert gradients["spatial_blocks.2.context_attention.attention.in_proj_weight"].any()


def test_with_nothing_kept_at_all_forward_and_gradients_are_finite() -> None:
    model = make_model()
    empty_masks = [torch.zeros(3, FRAMES, dtype=torch.bool)] * STAGES
    out, targets = run_with_masks(model, empty_masks), make_targets(3)
    loss = cgstvg_loss(out, targets, CgstvgLossConfig(), LossNormalizers.from_targets(targets))[
        "loss"
    ]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(
        parameter.grad is None or torch.isfinite(parameter.grad).all()
        for parameter in model.parameters()
    )


# Gradients


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temporal_context": True},
        {"query_positions": "boxes"},
        {"region_pooling": "mean"},
        {"box_head": "attention", "text_balance": "num_cells"},
        {"context": False},
    ],
)
def test_gradients_reach_every_parameter_that_can_learn(changes: dict[str, Any]) -> None:
    """In the first stage queries have no content: attention among them has nothing to weigh, and
    nothing to choose between. And a softmax never sees what all of its logits share: the last bias
    of first and last, that of the box head's keys.
    """
    model, targets = make_model(dropout=0.0, refinement="none", **changes).train(), make_targets(3)
    out = model(collate(make_three_queries()), targets)
    cgstvg_loss(out, targets, CgstvgLossConfig(), LossNormalizers.from_targets(targets))[
        "loss"
    ].backward()
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
    }
    ablated_stage = {
        f"{block}.0.frame_attention.attention.in_proj_weight"
        for block in ("spatial_blocks", "temporal_blocks")
    } | {"boundary_head.layers.1.bias"}
    if changes.get("box_head") == "attention":
        ablated_stage.add("box_head.key.bias")
    assert {name for name, norm in norms.items() if norm < 1e-5} == ablated_stage


def test_what_is_kept_and_where_the_boxes_are_passes_no_gradient() -> None:
    """The context after the first stage tells the second of the memory, never of the first one's
    boxes or its s^t.
    """
    model = make_model(query_positions="boxes", refinement="both")
    query = collate(make_three_queries())
    memory = model.encode(query)
    boxes, inside = (
        torch.full((3, FRAMES, 4), 0.5, requires_grad=True),
        torch.zeros(3, FRAMES, requires_grad=True),
    )
    context = model.instance_context(memory, boxes, inside, None)
    (context.tokens.sum() + context.box_confidence.sum()).backward()
    assert boxes.grad is None
    assert inside.grad is None
    assert model.project_motion.weight.grad is not None


# Truth


def near_truth(out: CgstvgOutputs, targets: Targets, min_iou: float) -> Tensor:
    """Which boxes of each stage have that GIoU with a true one, `[K, B, T]`, by torchvision."""
    truth = box_convert(targets.boxes, "cxcywh", "xyxy").flatten(0, 1)
    stages = [
        generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy").flatten(0, 1), truth).diagonal()
        for boxes in out.boxes
    ]
    return (torch.stack(stages).unflatten(1, targets.box_mask.shape) >= min_iou) & targets.box_mask


@pytest.mark.parametrize("min_iou", [-0.3, 0.0, 0.7])
def test_in_training_the_context_can_be_that_of_boxes_near_the_truth(min_iou: float) -> None:
    """True boxes are those of the first stage in frame 0, near them in frame 1, in a corner in
    frame 2; frame 3 is not boxed. What ICR says does not count.
    """
    model, queries = (
        make_model(dropout=0.0, teacher_iou=min_iou, theta_t=1.0).train(),
        collate(make_three_queries()),
    )
    with torch.no_grad():
        truth = model(queries, make_targets(3)).boxes[0].clone()
        truth[:, 1] += 0.02
        truth[:, 2] = 0.02
        targets = make_targets(
            3, truth, torch.tensor([[True, True, True, False]]).expand(3, FRAMES)
        )
        out = model(queries, targets)
    assert torch.equal(out.context_mask, near_truth(out, targets, min_iou))
    assert 0 < int(out.context_mask.sum()) < STAGES * int(targets.box_mask.sum())


def test_in_training_without_it_the_truth_is_not_looked_at() -> None:
    model, queries = make_model(dropout=0.0).train(), collate(make_three_queries())
    with torch.no_grad():
        with_truth, without_truth = model(queries, make_targets(3)), model(queries)
    for index in range(3):
        assert_same(outputs_of_query(with_truth, index), outputs_of_query(without_truth, index))


@pytest.mark.parametrize("min_iou", [-1.0, 0.5])
def test_predictions_need_no_truth(min_iou: float) -> None:
    """Told the truth or not, they are the same, and those of the confidences."""
    model, queries = make_model(teacher_iou=min_iou), collate(make_three_queries())
    with torch.no_grad():
        with_truth, without_truth = model(queries, make_targets(3)), model(queries)
    for field in fields(CgstvgOutputs):
        assert torch.equal(getattr(with_truth, field.name), getattr(without_truth, field.name))
    assert torch.equal(
        without_truth.context_mask,
        (without_truth.inside_logits.sigmoid() >= 0.3) & (without_truth.box_confidence >= 0.25),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_dim": 20, "num_heads": 8},
            "hidden_dim must be a multiple of 4 .* and of num_heads, not 20 with num_heads 8",
        ),
        (
            {"hidden_dim": 18, "num_heads": 2},
            "hidden_dim must be a multiple of 4 .*, not 18 with num_heads 2",
        ),
        ({"refinement": "either"}, r"refinement: .*'product' \(got 'either'\)"),
        ({"clips": 4}, "unknown key 'clips'; the keys are box_head, context"),
    ],
)
def test_a_bad_model_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(CgstvgConfig, changes, "model")
