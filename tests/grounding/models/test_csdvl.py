"""CSDVL at tiny size: batch = singles, what each variant lets one stream hear of the other, and eq.
(2) worked out again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from grounding.models.csdvl import CollaborationKind, Csdvl, CsdvlConfig, CsdvlOutputs
from grounding.modules.proposal_map import valid_proposal_mask
from grounding.structures.inputs import ModelInputs
from pipeline.config import validate
from pipeline.encoders.image_geometry import picture_in_square
from pipeline.errors import InputError

DIMS = (6, 5, 7)
FRAMES, CLIPS = 5, 4
KINDS = get_args(CollaborationKind)
TINY = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 12,
    "num_layers": 2,
    "num_frames": FRAMES,
    "num_clips": CLIPS,
    "proposal_map_channels": 6,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 2,
}
WIDE, TALL, SMALL = (4, 8), (8, 4), (3, 5)
"""Rows and columns of appearance maps."""


def make_model(seed: int = 0, **changes: Any) -> Csdvl:
    """A model in eval mode whose parameters are all random (biases and norms too), so that nothing
    hides behind a zero.
    """
    torch.manual_seed(seed)
    model = Csdvl(DIMS, CsdvlConfig(**{**TINY, **changes}))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "object_query" not in name:
            torch.nn.init.normal_(
                parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3
            )
    return model.eval()


def make_query(seed: int, size: tuple[int, int], words: int) -> ModelInputs:
    """One query without any padding."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = size
    return ModelInputs(
        appearance=torch.randn(1, FRAMES, rows, columns, DIMS[0], generator=random),
        map_size=torch.tensor([size]),
        frame_positions=torch.rand(1, FRAMES, generator=random).sort(-1).values,
        motion=torch.randn(1, CLIPS, 4, 4, DIMS[1], generator=random),
        picture_in_square=torch.tensor([picture_in_square((columns, rows))]),
        text=torch.randn(1, words, DIMS[2], generator=random),
        text_mask=torch.ones(1, words, dtype=torch.bool),
    )


def collate(queries: list[ModelInputs]) -> ModelInputs:
    """Queries in one batch, padded with 9 rather than zeros: what masks hide must not matter."""

    def pad_and_stack(
        tensors: list[Tensor], dims: tuple[int, ...], fill_value: float = 9.0
    ) -> Tensor:
        shape = [
            max(tensor.shape[dim] for tensor in tensors) if dim in dims else tensors[0].shape[dim]
            for dim in range(tensors[0].dim())
        ]
        batch = torch.full((len(tensors), *shape[1:]), fill_value, dtype=tensors[0].dtype)
        for slot, tensor in zip(batch, tensors, strict=True):
            slot[tuple(slice(side) for side in tensor.shape[1:])] = tensor[0]
        return batch

    padded_dims = {"appearance": (2, 3), "text": (1,), "text_mask": (1,)}
    values = {
        field.name: pad_and_stack(
            [getattr(query, field.name) for query in queries],
            padded_dims.get(field.name, ()),
            9.0 * (field.name != "text_mask"),
        )
        for field in fields(ModelInputs)
        if field.name != "video_indices"
    }
    return ModelInputs(**values)


@pytest.fixture
def query() -> ModelInputs:
    return make_query(3, WIDE, 4)


Change = Callable[[ModelInputs], ModelInputs]


def other_appearance(inputs: ModelInputs, frames: slice = slice(None)) -> ModelInputs:
    appearance = inputs.appearance.clone()
    appearance[:, frames] += torch.randn(
        appearance[:, frames].shape, generator=torch.Generator().manual_seed(9)
    )
    return replace(inputs, appearance=appearance)


def other_motion(inputs: ModelInputs) -> ModelInputs:
    return replace(
        inputs,
        motion=inputs.motion
        + torch.randn(inputs.motion.shape, generator=torch.Generator().manual_seed(8)),
    )


def changed_outputs(model: Csdvl, inputs: ModelInputs, change: Change) -> dict[str, bool]:
    """Which outputs a change of the input changes."""
    with torch.no_grad():
        before, after = model(inputs), model(change(inputs))
    return {
        name: not torch.equal(getattr(before, name), getattr(after, name))
        for name in ("boxes", "frame_logits", "proposal_logits", "clip_logits")
    }


# Shapes and ranges


@pytest.mark.parametrize("box_head", ["mlp", "attention"])
@pytest.mark.parametrize("clip_pool", ["mean", "attention"])
def test_outputs_have_their_shapes_and_ranges(box_head: str, clip_pool: str) -> None:
    model = make_model(box_head=box_head, clip_pooling=clip_pool)
    out = model(collate([make_query(0, WIDE, 4), make_query(1, SMALL, 2), make_query(2, WIDE, 3)]))
    rows, columns = WIDE
    assert out.boxes.shape == (2, 3, FRAMES, 4)
    assert ((out.boxes[..., 2:] > 0) & (out.boxes[..., 2:] < 1)).all()
    assert ((out.boxes[..., :2] > -0.5) & (out.boxes[..., :2] < 1.5)).all()
    assert out.proposal_logits.shape == (3, CLIPS, CLIPS)
    assert out.frame_logits.shape == (3, FRAMES)
    assert out.clip_logits.shape == (3, CLIPS)
    assert out.guidance.shape == out.box_attention.shape == (2, 3, FRAMES, rows, columns)
    assert out.cell_centers.shape == (3, rows * columns, 2)
    assert out.temporal_attention.shape[:2] == (3, CLIPS)
    assert out.temporal_cell_centers.shape == (3, out.temporal_attention.shape[2], 2)
    assert all(torch.isfinite(getattr(out, field.name)).all() for field in fields(CsdvlOutputs))
    torch.testing.assert_close(out.box_attention.sum((-1, -2)), torch.ones(2, 3, FRAMES))
    torch.testing.assert_close(out.temporal_attention.sum(-1), torch.ones(3, CLIPS))


def test_the_guide_keeps_what_the_words_take() -> None:
    """The visual part of A is not renormalised: it sums to less than 1."""
    total = make_model()(make_query(0, WIDE, 4)).guidance.sum((-1, -2))
    assert ((total > 0) & (total < 1)).all()


def test_cell_centres_are_shares_of_the_picture() -> None:
    out = make_model()(collate([make_query(0, WIDE, 4), make_query(1, SMALL, 2)]))
    centres = out.cell_centers.unflatten(1, WIDE)
    torch.testing.assert_close(centres[0, 0, 0], torch.tensor([1 / 16, 1 / 8]))
    torch.testing.assert_close(centres[1, 2, 4], torch.tensor([4.5 / 5, 2.5 / 3]))


# A batch is its queries


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_batch_gives_what_its_queries_give_alone(kind: str, from_scratch: bool) -> None:
    """Other map sizes, other squares, other numbers of words, padded with 9: the same outputs
    (tolerance 1e-5).
    """
    extras = (
        {"box_head": "attention", "clip_pooling": "attention", "guidance_scale": "num_cells"}
        if from_scratch
        else {}
    )
    model = make_model(collaboration=kind, alpha=0.7, **extras)
    queries = [make_query(0, WIDE, 4), make_query(1, TALL, 7), make_query(2, SMALL, 1)]
    with torch.no_grad():
        batch = model(collate(queries))
        single_outputs = [model(query) for query in queries]
    for index, (query, single_output) in enumerate(zip(queries, single_outputs, strict=True)):
        rows, columns = query.map_size[0].tolist()
        for name in ("proposal_logits", "frame_logits", "clip_logits"):
            torch.testing.assert_close(
                getattr(batch, name)[index], getattr(single_output, name)[0], atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(
            batch.boxes[:, index], single_output.boxes[:, 0], atol=1e-5, rtol=1e-5
        )
        for name in ("guidance", "box_attention"):
            query_weights = getattr(batch, name)[:, index]
            torch.testing.assert_close(
                query_weights[..., :rows, :columns],
                getattr(single_output, name)[:, 0],
                atol=1e-5,
                rtol=1e-5,
            )
            assert query_weights.sum() == pytest.approx(
                float(query_weights[..., :rows, :columns].sum())
            )


def test_what_is_shared_is_answered_and_learned_from_as_if_it_were_not(
    assert_sharing_changes_nothing: Callable[..., None],
) -> None:
    model = make_model(alpha=0.7, box_head="attention", clip_pooling="attention")
    queries = [make_query(0, WIDE, 4), make_query(1, WIDE, 7), make_query(2, TALL, 1)]
    assert_sharing_changes_nothing(
        model,
        queries,
        collate,
        ("boxes", "proposal_logits", "frame_logits", "clip_logits", "guidance"),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamic_spatial_tokens": False},
        {"text_attends_pooled_clips": False},
        {"streams": "dynamic"},
        {"mask_padding": False},
    ],
)
def test_a_batch_gives_what_its_queries_give_alone_in_ablations(changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    queries = [make_query(0, WIDE, 4), make_query(1, TALL, 7)]
    with torch.no_grad():
        batch, single_outputs = model(collate(queries)), [model(query) for query in queries]
    for index, single_output in enumerate(single_outputs):
        torch.testing.assert_close(
            batch.boxes[:, index], single_output.boxes[:, 0], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            batch.proposal_logits[index], single_output.proposal_logits[0], atol=1e-5, rtol=1e-5
        )


# Collaboration: who hears whom

HEARS = {"none": (False, False), "s2d": (True, False), "d2s": (False, True)}
"""Whether proposals hear the appearance, and boxes the motion; all others hear both."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamic_space", [True, False])
def test_proposals_hear_the_appearance_only_from_static_to_dynamic(
    kind: str, dynamic_space: bool, query: ModelInputs
) -> None:
    model = make_model(collaboration=kind, dynamic_spatial_tokens=dynamic_space)
    changes = HEARS.get(kind, (True, True))[0]
    assert changed_outputs(model, query, other_appearance) == {
        "boxes": True,
        "frame_logits": True,
        "proposal_logits": changes,
        "clip_logits": changes,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dynamic_space", [True, False])
def test_boxes_hear_the_motion_only_from_dynamic_to_static(
    kind: str, dynamic_space: bool, query: ModelInputs
) -> None:
    model = make_model(collaboration=kind, dynamic_spatial_tokens=dynamic_space)
    changes = HEARS.get(kind, (True, True))[1]
    assert changed_outputs(model, query, other_motion) == {
        "boxes": changes,
        "frame_logits": changes,
        "proposal_logits": True,
        "clip_logits": True,
    }


def boxes_of_frame_0_change(model: Csdvl, query: ModelInputs) -> bool:
    """Whether frame 0's box hears the other frames' appearance."""
    with torch.no_grad():
        before, after = model(query).boxes, model(other_appearance(query, slice(1, None))).boxes
    assert not torch.allclose(before[:, :, 1:], after[:, :, 1:])
    return not torch.allclose(before[:, :, 0], after[:, :, 0], atol=1e-7)


@pytest.mark.parametrize("kind", ["none", "s2d"])
def test_frames_mix_only_in_the_collaboration_block(kind: str, query: ModelInputs) -> None:
    assert not boxes_of_frame_0_change(make_model(collaboration=kind), query)


@pytest.mark.parametrize("query_mixing", [True, False])
def test_query_mixing_mixes_frames(query_mixing: bool, query: ModelInputs) -> None:
    model = make_model(collaboration="d2s", query_self_attention=query_mixing)
    assert boxes_of_frame_0_change(model, query) == query_mixing


def test_both_directions_read_the_states_before_the_block(query: ModelInputs) -> None:
    """In one layer boxes cannot hear other frames through the guided clips: those go into the next
    layer.
    """
    strong_guidance = {
        "collaboration": "full",
        "query_self_attention": False,
        "alpha": 4.0,
        "guidance_scale": "num_cells",
    }
    assert not boxes_of_frame_0_change(make_model(num_layers=1, **strong_guidance), query)
    assert boxes_of_frame_0_change(make_model(num_layers=2, **strong_guidance), query)


def test_a_frame_hears_only_its_own_clip_in_the_block(query: ModelInputs) -> None:
    """The block alone: clip 0's features reach frames of clip 0 and, without mixing, no others."""
    model = make_model(collaboration="d2s", query_self_attention=False)
    query = replace(query, frame_positions=torch.tensor([[0.1, 0.2, 0.4, 0.6, 0.9]]))
    clips, queries, weights, slot = block_inputs(model, query)
    changed_clips = clips.clone()
    changed_clips[:, 0] += 1
    block = model.collaboration[0]
    difference = (
        (block(changed_clips, queries, weights, slot)[1] - block(clips, queries, weights, slot)[1])
        .abs()
        .sum(-1)[0]
    )
    assert (difference > 1e-4).tolist() == [True, True, False, False, False]


def test_the_collaboration_block_takes_in_place_as_well_as_content(query: ModelInputs) -> None:
    """Queries read values that carry the cells' positions: swapping two cells' contents changes
    what they hear.
    """
    model = make_model(collaboration="d2s", query_self_attention=False)
    clips, queries, weights, slot = block_inputs(model, query)
    swapped_clips = clips[:, :, torch.arange(clips.shape[2]).flip(0)]
    block = model.collaboration[0]
    assert not torch.allclose(
        block(swapped_clips, queries, weights, slot)[1],
        block(clips, queries, weights, slot)[1],
        atol=1e-4,
    )


def block_inputs(model: Csdvl, inputs: ModelInputs) -> tuple[Any, ...]:
    """What the first collaboration block is given."""
    recorded: list[tuple[Any, ...]] = []
    handle = model.collaboration[0].register_forward_pre_hook(
        lambda module, args: recorded.append(args)
    )
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return recorded[0]


@pytest.mark.parametrize("kind", ["sum", "fc_sum", "concat_fc"])
def test_symmetric_blocks_by_hand(kind: str, query: ModelInputs) -> None:
    model = make_model(collaboration=kind)
    clips, queries, weights, slot = block_inputs(model, query)
    block = model.collaboration[0]
    padded_dims = torch.stack([queries[:, frames].mean(1) for frames in frames_by_clip(query)], 1)[
        :, :, None
    ].expand_as(clips)
    frames_in_clip = (query.frame_positions[0] * CLIPS).long()
    pooled = clips.mean(2)[:, frames_in_clip]
    if kind == "sum":
        expected = clips + padded_dims, queries + pooled
    elif kind == "fc_sum":
        expected = clips + block.dynamic_fusion(padded_dims), queries + block.static_fusion(pooled)
    else:
        expected = (
            block.dynamic_fusion(torch.cat([clips, padded_dims], -1)),
            block.static_fusion(torch.cat([queries, pooled], -1)),
        )
    for result, expected_output in zip(block(clips, queries, weights, slot), expected, strict=True):
        torch.testing.assert_close(result, expected_output, atol=1e-5, rtol=1e-5)


def frames_by_clip(query: ModelInputs) -> list[list[int]]:
    """The frames of each clip of a single query, or the one nearest to the clip's middle."""
    tau = query.frame_positions[0]
    chosen = []
    for clip in range(CLIPS):
        frames_in_clip = [
            frame for frame in range(FRAMES) if clip / CLIPS <= tau[frame] < (clip + 1) / CLIPS
        ]
        chosen.append(frames_in_clip or [int((tau - (clip + 0.5) / CLIPS).abs().argmin())])
    return chosen


# Equation (2)


def guide_again(model: Csdvl, query: ModelInputs, alpha: float) -> Tensor:
    """A of the first layer over a single query's own cells `[T_s, H, W]`, head by head from what
    the cross-attention is given.
    """
    attention = model.decoder[0].cross_attn
    with mock.patch.object(attention, "with_weights", wraps=attention.with_weights) as called:
        model(query)
    decoder_queries, keys = called.call_args.args[:2]
    wq, wk, _ = attention.in_proj_weight.chunk(3)
    bq, bk, _ = attention.in_proj_bias.chunk(3)
    q, k = (decoder_queries @ wq.T + bq) * alpha, keys @ wk.T + bk
    width = q.shape[-1] // attention.num_heads
    heads = [
        (q[..., i * width : (i + 1) * width] @ k[..., i * width : (i + 1) * width].transpose(1, 2))
        for i in range(attention.num_heads)
    ]
    over_all = torch.stack([(logits / width**0.5).softmax(-1) for logits in heads]).mean(0)[:, 0]
    rows, columns = query.map_size[0].tolist()
    assert over_all.shape[1] == rows * columns + query.text.shape[1]
    return over_all[:, : rows * columns].reshape(FRAMES, rows, columns)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0])
def test_the_guide_is_a_second_softmax_over_all_tokens(alpha: float, query: ModelInputs) -> None:
    with torch.no_grad():
        model = make_model(alpha=alpha)
        torch.testing.assert_close(
            model(query).guidance[0, 0], guide_again(model, query, alpha), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("size", [WIDE, TALL, (6, 6)])
@pytest.mark.parametrize("gain", ["none", "num_cells"])
def test_equation_2_by_another_way(size: tuple[int, int], gain: str) -> None:
    """A padded to the square and resized by torch, averaged over each clip's frames, times FC(F),
    added, normalised.
    """
    query = make_query(5, size, 4)
    model = make_model(collaboration="s2d", alpha=2.0, guidance_scale=gain)
    rows, columns = size
    with torch.no_grad():
        clips, queries, weights, slot = block_inputs(model, query)
        side = max(size)
        top_padding, left_padding = (side - rows) // 2, (side - columns) // 2
        square = functional.pad(
            guide_again(model, query, 2.0),
            (left_padding, side - columns - left_padding, top_padding, side - rows - top_padding),
        )
        small = functional.interpolate(square[None], (4, 4), mode="bilinear", align_corners=False)[
            0
        ].flatten(1)[:, slot.motion_cell_indices]
        per_clip = torch.stack([small[frames].mean(0) for frames in frames_by_clip(query)])[
            None, :, :, None
        ]
        block = model.collaboration[0]
        strength = rows * columns if gain == "num_cells" else 1
        expected = block.norm_guidance(
            clips + strength * per_clip * block.guidance_projection(clips)
        )
        torch.testing.assert_close(
            block(clips, queries, weights, slot)[0], expected, atol=1e-5, rtol=1e-5
        )


def test_without_space_the_guide_is_its_mean_over_the_picture(query: ModelInputs) -> None:
    with torch.no_grad():
        model = make_model(collaboration="s2d", dynamic_spatial_tokens=False)
        clips, queries, weights, slot = block_inputs(model, query)
        assert clips.shape[2] == 1
        mean = guide_again(model, query, 0.1).mean((1, 2))
        per_clip = torch.stack([mean[frames].mean() for frames in frames_by_clip(query)])[
            None, :, None, None
        ]
        block = model.collaboration[0]
        expected = block.norm_guidance(clips + per_clip * block.guidance_projection(clips))
        torch.testing.assert_close(
            block(clips, queries, weights, slot)[0], expected, atol=1e-5, rtol=1e-5
        )


def test_alpha_changes_the_guide_and_not_the_decoder_s_own_attention(query: ModelInputs) -> None:
    with torch.no_grad():
        sharp, flat = (make_model(collaboration="none", alpha=alpha)(query) for alpha in (2.0, 0.1))
        assert not torch.allclose(sharp.guidance, flat.guidance, atol=1e-4)
        assert torch.equal(sharp.boxes, flat.boxes)
        guided = [
            make_model(collaboration="s2d", alpha=alpha)(query).proposal_logits
            for alpha in (2.0, 0.1)
        ]
        assert not torch.allclose(*guided, atol=1e-5)


# Gradients


def gradients(
    model: Csdvl,
    inputs: ModelInputs,
    names: tuple[str, ...] = ("boxes", "proposal_logits", "frame_logits", "clip_logits"),
) -> set[str]:
    """Names of the parameters that outputs give a gradient worth the name."""
    random = torch.Generator().manual_seed(0)
    model.zero_grad()
    out = model(inputs)
    weighted_outputs = [
        torch.where(valid_proposal_mask(CLIPS), out.proposal_logits, 0.0)
        if name == "proposal_logits"
        else getattr(out, name)
        for name in names
    ]
    total = sum(
        (output * torch.randn(output.shape, generator=random)).sum() for output in weighted_outputs
    )
    assert isinstance(total, Tensor)
    total.backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-8
    }


LAST_WORDS = (
    "dynamic_layers.1.attend.to_clips",
    "dynamic_layers.1.norm.to_clips",
    "dynamic_layers.1.text_ffn",
)
"""The words after the last dynamic layer are not looked at."""
FLAT = {"decoder.0.self_attn.in_proj_weight", "box_head.key.bias", "clip_attention.bias"}
"""Zero by their nature, up to rounding: the first self-attention sees one query of content 0; a
softmax sees no common bias.
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_scratch", [False, True])
def test_gradients_reach_every_parameter(kind: str, from_scratch: bool) -> None:
    model = make_model(
        collaboration=kind,
        alpha=1.0,
        **({"box_head": "attention", "clip_pooling": "attention"} if from_scratch else {}),
    )
    trained = gradients(model, collate([make_query(0, WIDE, 4), make_query(1, TALL, 7)]))
    names = {name for name, _ in model.named_parameters()}
    assert names - trained - FLAT == {name for name in names if name.startswith(LAST_WORDS)}


def test_gradients_flow_through_the_guide_unless_it_is_detached(query: ModelInputs) -> None:
    """Proposals teach the static stream only through A; with one layer that is the encoder and the
    decoder's attention.
    """
    for detach in (False, True):
        model = make_model(collaboration="full", num_layers=1, alpha=1.0, detach_guidance=detach)
        static = {
            name
            for name in gradients(model, query, ("proposal_logits",))
            if name.startswith(("encoder", "decoder", "project_appearance"))
        }
        assert bool(static) is not detach


def test_detaching_changes_no_output(query: ModelInputs) -> None:
    with torch.no_grad():
        from_scratch, detached = (
            make_model(detach_guidance=detach)(query) for detach in (False, True)
        )
    assert torch.equal(from_scratch.proposal_logits, detached.proposal_logits)
    assert torch.equal(from_scratch.boxes, detached.boxes)


# Ablations


def test_the_dynamic_stream_alone_answers_with_the_whole_picture(query: ModelInputs) -> None:
    model = make_model(streams="dynamic")
    out = model(query)
    assert out.boxes.shape == (1, 1, FRAMES, 4)
    assert out.boxes.unique(dim=2).flatten().tolist() == [0.5, 0.5, 1.0, 1.0]
    assert not out.frame_logits.any()
    assert not [
        name
        for name, _ in model.named_parameters()
        if name.startswith(("encoder", "decoder", "collaboration", "box_head"))
    ]
    assert changed_outputs(model, query, other_appearance) == dict.fromkeys(
        ("boxes", "frame_logits", "proposal_logits", "clip_logits"), False
    )
    assert changed_outputs(model, query, other_motion)["proposal_logits"]


def permuted_picture(inputs: ModelInputs) -> ModelInputs:
    """The motion cells of a wide picture (rows 1 and 2 of 4) in another order, the same in every
    clip.
    """
    motion = inputs.motion.clone()
    motion[:, :, 1:3] = inputs.motion[:, :, 1:3].flip(2, 3)
    return replace(inputs, motion=motion)


def test_without_space_the_order_of_motion_cells_is_nothing(query: ModelInputs) -> None:
    for space in (False, True):
        model = make_model(dynamic_spatial_tokens=space, streams="dynamic")
        with torch.no_grad():
            before, after = (
                model(query).proposal_logits,
                model(permuted_picture(query)).proposal_logits,
            )
        assert torch.allclose(before, after, atol=1e-5) is not space


def test_words_attend_to_pooled_clips_or_to_all_cells(query: ModelInputs) -> None:
    for pools, keys in ((True, CLIPS), (False, CLIPS * 8)):
        model = make_model(text_attends_pooled_clips=pools)
        recorded: list[int] = []
        model.dynamic_layers[0].attend["to_clips"].register_forward_pre_hook(
            lambda module, args, recorded=recorded: recorded.append(args[1].shape[1])
        )
        model(query)
        assert recorded == [keys]


@pytest.mark.parametrize("mask_padding", [True, False])
def test_padding_of_the_square_is_heard_only_unmasked(
    mask_padding: bool, query: ModelInputs
) -> None:
    """The wide picture fills rows 1 and 2 of 4; rows 0 and 3 are padding."""
    motion = query.motion.clone()
    motion[:, :, [0, 3]] += 5
    model = make_model(mask_padding=mask_padding, clip_pooling="attention")
    changes = changed_outputs(model, query, lambda inputs: replace(inputs, motion=motion))
    assert set(changes.values()) == {not mask_padding}


def test_with_attention_a_clip_is_heard_from_the_cells_it_chooses(query: ModelInputs) -> None:
    model = make_model(clip_pooling="attention")
    assert model(query).temporal_attention.std(-1).min() > 1e-3
    uniform = make_model(clip_pooling="mean")(query).temporal_attention
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 8))


def test_only_the_last_word_counts_as_padding_says(query: ModelInputs) -> None:
    mask = query.text_mask.clone()
    mask[:, -1] = False
    model = make_model()
    with torch.no_grad():
        short = model(replace(query, text=query.text[:, :-1], text_mask=query.text_mask[:, :-1]))
        masked = model(replace(query, text_mask=mask))
    torch.testing.assert_close(masked.boxes, short.boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked.proposal_logits, short.proposal_logits, atol=1e-5, rtol=1e-5)


def test_dropout_acts_in_training_only(query: ModelInputs) -> None:
    model = make_model(dropout=0.5)
    assert torch.equal(model(query).proposal_logits, model(query).proposal_logits)
    model.train()
    assert not torch.equal(model(query).proposal_logits, model(query).proposal_logits)
    assert not torch.equal(model(query).boxes, model(query).boxes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collaboration": "half"}, r"collaboration: .*'concat_fc' \(got 'half'\)"),
        ({"streams": "static"}, r"streams: .*'both' or 'dynamic'"),
        (
            {"layer": 3},
            "unknown key 'layer'; the keys are alpha, box_head, clip_pooling, collaboration",
        ),
    ],
)
def test_a_bad_model_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(CsdvlConfig, changes, "model")
