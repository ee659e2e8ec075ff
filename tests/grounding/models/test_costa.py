"""CoSTA at tiny size: every stage's maps, batch = singles, what the span tells the entangled query,
anchors that move, gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import grounding.models.costa
from grounding.losses.costa import CostaLossConfig, costa_loss
from grounding.models.costa import Costa, CostaConfig, CostaMemory, CostaOutputs
from grounding.modules.frame_outputs import most_likely_span
from grounding.modules.freezing import TRAINABLE_PREFIXES
from grounding.modules.position_encoding import sinusoidal_box, sinusoidal_time
from grounding.modules.r3d import LateralConnection, R3dTrunk
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import LossNormalizers, Targets
from pipeline.config import validate
from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError

FRAMES, LAYERS, WORDS = 4, 2, 7
TINY = {
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 12,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_frames": FRAMES,
    "r3d_width": 8,
}
WIDE, TALL, SMALL = (33, 70), (64, 35), (20, 50)
"""Heights and widths of pictures."""
INSIDE = torch.tensor([0.0, 1.0, 1.0, 0.0])


def make_model(seed: int = 1, text_encoder: TextEncoder | None = None, **changes: Any) -> Costa:
    """A model in eval mode whose own parameters are all random (biases and norms too), so that
    nothing hides behind a zero.
    """
    torch.manual_seed(seed)
    model = Costa(
        (3, 0, WORDS), CostaConfig(**{**TINY, **changes}), AppearanceEncoder("tiny"), text_encoder
    )
    for name, parameter in model.named_parameters():
        if name.startswith(("image_encoder.", "text_encoder.")):
            continue
        if parameter.dim() == 1:
            nn.init.normal_(
                parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3
            )
        elif not name.startswith("r3d."):
            parameter.data *= 2
    return model.eval()


def make_query(seed: int, size: tuple[int, int], words: int, frames: int = FRAMES) -> ModelInputs:
    """One query without any padding: pictures, token states, and no motion."""
    random = torch.Generator().manual_seed(seed)
    return ModelInputs(
        appearance=torch.randint(
            0, 256, (1, frames, *size, 3), generator=random, dtype=torch.uint8
        ),
        map_size=torch.tensor([size]),
        frame_positions=torch.rand(1, frames, generator=random).sort(-1).values,
        motion=torch.zeros(1, 0, 1, 1, 0),
        picture_in_square=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        text=torch.randn(1, words, WORDS, generator=random),
        text_mask=torch.ones(1, words, dtype=torch.bool),
    )


def together(queries: list[ModelInputs]) -> ModelInputs:
    """Queries in one batch, padded with 9 rather than zeros: what masks and sizes hide must not
    matter.
    """

    def padded(tensors: list[Tensor]) -> Tensor:
        shape = torch.tensor([tensor.shape for tensor in tensors]).amax(0).tolist()
        whole = torch.full(
            (len(tensors), *shape[1:]),
            0 if tensors[0].dtype == torch.bool else 9,
            dtype=tensors[0].dtype,
        )
        for place, tensor in zip(whole, tensors, strict=True):
            place[tuple(slice(side) for side in tensor.shape[1:])] = tensor[0]
        return whole

    return ModelInputs(
        **{
            field.name: padded([getattr(query, field.name) for query in queries])
            for field in fields(ModelInputs)
            if field.name != "video_indices"
        }
    )


def three(frames: int = FRAMES) -> list[ModelInputs]:
    """Queries with pictures and sentences of different sizes."""
    return [
        make_query(seed, size, words, frames)
        for seed, size, words in ((0, WIDE, 4), (1, TALL, 7), (2, SMALL, 1))
    ]


def make_targets(count: int, inside: Tensor = INSIDE) -> Targets:
    """Boxes of all frames, and a span about the segment's middle."""
    random = torch.Generator().manual_seed(4)
    boxes = torch.rand(count, FRAMES, 4, generator=random) * 0.3 + 0.35
    where, frames = torch.ones(count, FRAMES, dtype=torch.bool), inside.expand(count, FRAMES)
    return Targets(
        boxes, where, torch.tensor([[0.2, 0.7]]).expand(count, 2), frames, frames, boxes, where
    )


def loss_of(model: Costa, out: CostaOutputs, targets: Targets, **weights: Any) -> Tensor:
    return costa_loss(
        out, targets, CostaLossConfig(**weights), LossNormalizers.from_targets(targets)
    )["loss"]


@cache
def encoder_of(kind: str) -> AppearanceEncoder:
    return AppearanceEncoder(kind).eval().requires_grad_(False)


# The space-time encoder


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (95, 31), (7, 9)])
@pytest.mark.parametrize("kind", ["tiny", "full"])
@pytest.mark.parametrize("connection", ["sum", "concat", "hadamard"])
def test_both_networks_have_maps_of_one_size_after_every_stage_and_all_frames(
    size: tuple[int, int], kind: str, connection: Any
) -> None:
    """Odd sizes too; beside ResNet-101, whose stem pools, and the tiny one, whose does not."""
    image = encoder_of(kind)
    trunk = R3dTrunk(8, image.stage_channels, image.has_stem_pooling, connection)
    met: list[tuple[torch.Size, torch.Size, torch.Size]] = []
    for joint in trunk.lateral_connections:
        joint.register_forward_hook(
            lambda module, given, found: met.append((given[0].shape, given[1].shape, found.shape))
        )
    videos, still = torch.rand(2, 3, 3, *size), list[Tensor]()
    x = image.stem(videos.flatten(0, 1))
    for stage in image.stages:
        still.append(x := stage(x))
    y = trunk(videos.transpose(1, 2), still)
    for (moving, seen, joined), width, channels in zip(
        met, (8, 16, 32, 64), image.stage_channels, strict=True
    ):
        assert moving == joined == (2, width, 3, *seen[2:])
        assert seen[:2] == (6, channels)
    assert y.shape == (2, 3, *still[-1].shape[2:], 64)


def test_a_stage_is_the_sum_of_both_networks_normed() -> None:
    joint = LateralConnection(8, 3, "sum")
    moving, still = torch.randn(2, 8, 5, 2, 3), torch.randn(10, 3, 2, 3)
    bring, layer_norm = joint.project_image, nn.functional.layer_norm
    assert bring is not None
    frames = moving.transpose(1, 2).flatten(0, 1)
    expected = sum(layer_norm(part.permute(0, 2, 3, 1), [8]) for part in (frames, bring(still)))
    torch.testing.assert_close(joint(moving, still).permute(0, 2, 3, 4, 1).flatten(0, 1), expected)


def test_the_hadamard_product_and_the_concatenation_are_of_plain_features() -> None:
    moving, still = torch.randn(2, 8, 5, 2, 3), torch.randn(10, 3, 2, 3)
    product, chain = LateralConnection(8, 3, "hadamard"), LateralConnection(8, 3, "concat")
    assert product.project_image is not None
    assert chain.project_image is not None
    assert chain.reduce is not None
    torch.testing.assert_close(
        product(moving, still),
        moving * product.project_image(still).unflatten(0, (2, 5)).transpose(1, 2),
    )
    both = torch.cat([moving, chain.project_image(still).unflatten(0, (2, 5)).transpose(1, 2)], 1)
    torch.testing.assert_close(chain(moving, still), chain.reduce(both))


def test_the_trunk_sees_motion_and_the_2_d_network_does_not() -> None:
    """Another second frame changes the first one's maps, but not those of the 2-D network alone."""
    query = make_query(0, WIDE, 4)
    other = query.appearance.clone()
    other[:, 1] = 255 - other[:, 1]
    for used, told in (("both", True), ("3d", True), ("2d", False)):
        model = make_model(backbones=used)
        with torch.no_grad():
            before, after = (
                model.encode_images(pictures, query.map_size)[0][0, 0]
                for pictures in (query.appearance, other)
            )
        assert torch.allclose(before, after, atol=1e-6) != told


def test_the_2_d_network_alone_gives_its_c5_maps() -> None:
    model, query = make_model(backbones="2d"), make_query(0, WIDE, 4)
    with torch.no_grad():
        maps, size = model.encode_images(query.appearance, query.map_size)
        expected = model.image_encoder(query.appearance[0].permute(0, 3, 1, 2))
    torch.testing.assert_close(maps[0], expected)
    assert size.tolist() == [list(expected.shape[1:3])]


def test_videos_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = (
        make_model(),
        torch.cat([make_query(seed, WIDE, 4).appearance for seed in range(3)]),
    )
    sizes = torch.tensor([WIDE] * 3)
    with torch.no_grad():
        whole = model.encode_images(pictures, sizes)[0]
        monkeypatch.setattr(grounding.models.costa, "MAX_CONVOLUTION_PIXELS", 1)
        torch.testing.assert_close(
            model.encode_images(pictures, sizes)[0], whole, atol=1e-4, rtol=1e-4
        )


# Shapes, and a batch is its queries


@pytest.mark.parametrize("box_head", ["mlp", "attention"])
def test_outputs_have_their_shapes_and_ranges(box_head: str) -> None:
    with torch.no_grad():
        out = make_model(box_head=box_head)(together(three()))
    cells = 4 * 5
    assert out.boxes.shape == (LAYERS, 3, FRAMES, 4)
    assert ((out.boxes[..., 2:] > 0) & (out.boxes[..., 2:] < 1)).all()
    assert out.start_logits.shape == out.end_logits.shape == (LAYERS, 3, FRAMES)
    assert (
        out.encoder_presence_logits.shape
        == out.decoder_presence_logits.shape
        == out.event_mask.shape
        == out.frame_positions.shape
        == (3, FRAMES)
    )
    assert out.cell_centers.shape == (3, cells, 2)
    assert out.box_attention.shape == out.temporal_attention.shape == (LAYERS, 3, FRAMES, cells)
    assert out.cell_boxes.shape == ((3, FRAMES, cells, 4) if box_head == "attention" else (0,))
    assert all(torch.isfinite(getattr(out, field.name)).all() for field in fields(CostaOutputs))
    torch.testing.assert_close(out.box_attention.sum(-1), torch.ones(LAYERS, 3, FRAMES))
    assert (
        (out.temporal_attention.sum(-1) > 0) & (out.temporal_attention.sum(-1) < 1)
    ).all()  # the words take the rest


def test_of_when_it_says_the_last_layer_s_probabilities() -> None:
    out = make_model()(together(three()))
    for number, answer in enumerate(out.span_predictions()):
        np.testing.assert_allclose(
            answer.start, out.start_logits[-1, number].detach().softmax(-1), rtol=1e-5
        )
        np.testing.assert_allclose(
            answer.end, out.end_logits[-1, number].detach().softmax(-1), rtol=1e-5
        )


ABLATIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no space-time encoder": {"backbones": "2d", "temporal_fusion": False},
    "no space-time decoder": {"entangled_queries": False},
    "2-D only": {"backbones": "2d"},
    "3-D only": {"backbones": "3d"},
    "concatenation": {"connection": "concat"},
    "Hadamard": {"connection": "hadamard"},
    "from scratch": {"box_head": "attention", "text_balance": "num_cells"},
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
@pytest.mark.parametrize("frames", [FRAMES, 7])
def test_a_batch_gives_what_its_queries_give_alone(frames: int, changes: dict[str, Any]) -> None:
    """Other picture sizes and numbers of words, padded with 9, and other numbers of frames than in
    training (tolerance 1e-5).
    """
    model, queries = make_model(**changes), three(frames)
    with torch.no_grad():
        batch, singles = model(together(queries)), [model(query) for query in queries]
    for number, single in enumerate(singles):
        for name in ("boxes", "start_logits", "end_logits"):
            torch.testing.assert_close(
                getattr(batch, name)[:, number], getattr(single, name)[:, 0], atol=1e-5, rtol=1e-5
            )
        for name in ("encoder_presence_logits", "decoder_presence_logits", "event_mask"):
            torch.testing.assert_close(
                getattr(batch, name)[number], getattr(single, name)[0], atol=1e-5, rtol=1e-5
            )
        rows, columns = model.encode_images(queries[number].appearance, queries[number].map_size)[
            1
        ][0].tolist()
        for name in ("box_attention", "temporal_attention"):
            mine = getattr(batch, name)[:, number].unflatten(-1, (4, 5))
            assert mine.sum() == pytest.approx(float(mine[..., :rows, :columns].sum()))
            alone = getattr(single, name)[:, 0].unflatten(-1, (rows, columns))
            torch.testing.assert_close(mine[..., :rows, :columns], alone, atol=1e-5, rtol=1e-5)


def test_what_is_shared_is_answered_and_learned_from_as_if_it_were_not(
    shared_is_apart: Callable[..., None],
) -> None:
    names = (
        "boxes",
        "start_logits",
        "end_logits",
        "encoder_presence_logits",
        "decoder_presence_logits",
    )
    shared_is_apart(
        make_model(), three(), together, names, tolerance=1e-4
    )  # its gradients are sums of many, in another order


# The span


def test_the_likeliest_frames_are_those_of_the_best_pair_in_order() -> None:
    """First 3 and last 1 are each the likeliest, but 3 … 1 is no span."""
    first = torch.tensor(
        [[0.10, 0.20, 0.10, 0.60], [0.1, 0.2, 0.1, 0.6], [1.0, 0.0, 0.0, 0.0]]
    ).log()
    last = torch.tensor(
        [[0.10, 0.55, 0.25, 0.10], [0.1, 0.1, 0.1, 0.7], [0.0, 0.0, 0.0, 1.0]]
    ).log()
    found = most_likely_span(first, last)  # products: [1, 1] .11 beats [3, 3] .06 and [1, 2] .05
    assert found.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]


def test_it_is_the_best_of_all_pairs() -> None:
    random = torch.Generator().manual_seed(3)
    first, last = torch.randn(2, 20, 5, generator=random)
    joint = first.softmax(-1)[:, :, None] * last.softmax(-1)[:, None]
    for query, frames in enumerate(most_likely_span(first, last)):
        i, j = max(
            ((i, j) for i in range(5) for j in range(i, 5)),
            key=lambda pair: float(joint[query][pair]),
        )
        assert frames.nonzero()[:, 0].tolist() == list(range(i, j + 1))


def test_the_event_part_places_frames_in_time_inside_the_span_alone() -> None:
    model = make_model()
    tau = torch.rand(2, 3, FRAMES).sort(-1).values
    told, cls = (
        torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool),
        torch.randn(3, FRAMES, 16),
    )
    event = model.event_token
    assert event is not None
    parts = [model.embed_event(told, cls, sinusoidal_time(one, 16)) for one in tau]
    for part, one in zip(parts, tau, strict=True):
        torch.testing.assert_close(part[told], event.weight[1] + sinusoidal_time(one, 16)[told])
        torch.testing.assert_close(part[~told], event.weight[0].expand(int((~told).sum()), -1))
    assert not torch.allclose(parts[0][told], parts[1][told])


def test_without_entanglement_spatial_queries_begin_as_cls() -> None:
    model, cls = make_model(entangled_queries=False), torch.randn(1, FRAMES, 16)
    assert model.event_token is None
    assert torch.equal(
        model.embed_event(torch.ones(1, FRAMES, dtype=torch.bool), cls, torch.randn(1, FRAMES, 16)),
        cls,
    )


@pytest.mark.parametrize(("beta", "true"), [(0.0, False), (1.0, True)])
def test_in_training_beta_says_how_often_the_span_is_the_true_one(beta: float, true: bool) -> None:
    model, queries = make_model(teacher_forcing_rate=beta, dropout=0.0).train(), together(three())
    with torch.no_grad():
        out = model(queries, make_targets(3))
    predicted = most_likely_span(out.start_logits[-1], out.end_logits[-1])
    assert torch.equal(out.event_mask, INSIDE.bool().expand(3, -1) if true else predicted)
    assert not torch.equal(predicted, INSIDE.bool().expand(3, -1))


def test_beta_is_drawn_for_every_query_by_torch_s_generator() -> None:
    """Nine of ten on the whole; the same draw for the same seed."""
    model = make_model(teacher_forcing_rate=0.9).train()
    first, last = torch.zeros(2000, FRAMES), torch.zeros(2000, FRAMES)
    first[:, 0], last[:, 0] = 9, 9
    targets = make_targets(2000)
    torch.manual_seed(3)
    told = model.select_span(first, last, targets)
    true = (told == INSIDE.bool()).all(1)
    assert float(true.float().mean()) == pytest.approx(0.9, abs=0.03)
    assert (told[~true] == torch.tensor([True, False, False, False])).all()
    torch.manual_seed(3)
    assert torch.equal(model.select_span(first, last, targets), told)


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_predictions_need_no_truth(beta: float) -> None:
    """Told the truth or not, they are the same."""
    model, queries = make_model(teacher_forcing_rate=beta), together(three())
    with torch.no_grad():
        told, untold = model(queries, make_targets(3)), model(queries)
    for field in fields(CostaOutputs):
        assert torch.equal(getattr(told, field.name), getattr(untold, field.name))
    assert torch.equal(
        untold.event_mask, most_likely_span(untold.start_logits[-1], untold.end_logits[-1])
    )


@pytest.mark.parametrize("entangled", [True, False])
def test_boxes_know_the_span_where_decoding_is_entangled(entangled: bool) -> None:
    """Another true span moves them, and nothing of when."""
    model, queries = (
        make_model(entangled_queries=entangled, teacher_forcing_rate=1.0, dropout=0.0).train(),
        together(three()),
    )
    with torch.no_grad():
        one, other = (model(queries, make_targets(3, inside)) for inside in (INSIDE, 1 - INSIDE))
    assert torch.allclose(one.boxes, other.boxes, atol=1e-6) != entangled
    for name in (
        "start_logits",
        "end_logits",
        "encoder_presence_logits",
        "decoder_presence_logits",
    ):
        assert torch.equal(getattr(one, name), getattr(other, name))


# Decoders


@pytest.mark.parametrize("box_head", ["mlp", "attention"])
def test_anchors_move_layer_by_layer(box_head: str) -> None:
    """Each layer is given the anchors that the last one left, at first those of [CLS]."""
    model = make_model(box_head=box_head)
    given: list[Tensor] = []
    for layer in model.spatial_decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: given.append(args[1]))
    with torch.no_grad():
        query = together(three())
        out = model(query)
        cls = model.encode(query)[1]
        first = model.spatial_decoder.initial_anchor(cls).sigmoid()
    for anchors, positions in zip((first, *out.boxes[:-1]), given, strict=True):
        torch.testing.assert_close(sinusoidal_box(anchors, 8), positions)
    assert (out.boxes[1] - out.boxes[0]).abs().max() > 1e-3


def test_without_a_move_anchors_stay() -> None:
    model = make_model()
    move = model.spatial_decoder.anchor_update
    assert move is not None
    for parameter in move.layers[-1].parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        query = together(three())
        anchors = model.spatial_decoder.initial_anchor(model.encode(query)[1]).sigmoid()
        for boxes in model(query).boxes:
            torch.testing.assert_close(boxes, anchors, atol=1e-5, rtol=1e-5)


def changed_frame(memory: CostaMemory, frame: int) -> CostaMemory:
    """The same memory with other tokens in one frame."""
    states = memory.states.clone()
    states[frame] += 1
    return replace(memory, states=states)


@pytest.mark.parametrize("decoder", ["temporal", "spatial"])
def test_a_query_looks_at_its_own_frame_s_tokens(decoder: str) -> None:
    """With attention between frames cut off, another token of one frame changes that frame's
    answers alone.
    """
    model, query = make_model(), make_query(0, WIDE, 4)
    layers = (
        model.temporal_decoder.layers if decoder == "temporal" else model.spatial_decoder.layers
    )
    for layer in layers:
        layer.frame_attention.attend_frames = lambda queries, positions: queries
    event = torch.randn(1, FRAMES, 16, generator=torch.Generator().manual_seed(5))

    def answer(memory: CostaMemory, cls: Tensor) -> Tensor:
        return (
            model.temporal_decoder(cls, memory)[0][-1, ..., None]
            if decoder == "temporal"
            else model.spatial_decoder(event, cls, memory)[0][-1]
        )

    with torch.no_grad():
        memory, cls = model.encode(query)
        before = answer(memory, cls)
        for frame in range(FRAMES):
            after = answer(changed_frame(memory, frame), cls)
            assert ((after - before).abs().amax(-1) > 1e-4)[0].tolist() == [
                place == frame for place in range(FRAMES)
            ]


def test_memory_holds_no_cls() -> None:
    memory, cls = make_model().encode(make_query(0, WIDE, 4))
    assert memory.states.shape == memory.positioned_states.shape == (FRAMES, 3 * 5 + 4, 16)
    assert cls.shape == (1, FRAMES, 16)


@pytest.mark.parametrize("temporal_fusion", [True, False])
def test_fusion_mixes_frames_by_its_temporal_layers_alone(temporal_fusion: bool) -> None:
    """With the 2-D network, which sees each frame for itself."""
    model, query = (
        make_model(backbones="2d", temporal_fusion=temporal_fusion),
        make_query(0, WIDE, 4),
    )
    other = query.appearance.clone()
    other[:, 1] = 255 - other[:, 1]
    with torch.no_grad():
        before, after = (
            model.encode(replace(query, appearance=pictures))[1][0, 0]
            for pictures in (query.appearance, other)
        )
    assert torch.allclose(before, after, atol=1e-6) != temporal_fusion


# What learns


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_gradients_reach_every_parameter_that_can_learn(changes: dict[str, Any]) -> None:
    """A softmax never sees what all of its logits share: the last bias of first and last, that of
    the box head's keys; and the bias before, where the same hidden units are active in all frames.
    """
    model, targets = (
        make_model(dropout=0.0, teacher_forcing_rate=1.0, **changes).train(),
        make_targets(3),
    )
    loss_of(model, model(together(three()), targets), targets).backward()
    should = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in should.items()
    }
    without = {"temporal_decoder.boundary_head.layers.1.bias"}
    if changes.get("box_head") == "attention":
        without.add("spatial_decoder.box_head.key.bias")
    assert {name for name, norm in norms.items() if norm < 1e-5} - {
        "temporal_decoder.boundary_head.layers.0.bias"
    } == without
    learning = {name.split(".")[2] for name in should if name.startswith("image_encoder.")}
    assert learning == (set() if changes.get("backbones") == "3d" else set(TRAINABLE_PREFIXES))


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_a_step_lowers_the_loss(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Costa(
        (3, 0, WORDS),
        CostaConfig(**{**TINY, "dropout": 0.0, "teacher_forcing_rate": 1.0, **changes}),
        AppearanceEncoder("tiny"),
    ).train()
    queries, targets = together(three()), make_targets(3)
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], 1e-3
    )
    losses = []
    for _ in range(4):
        loss = loss_of(model, model(queries, targets), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_frozen_image_encoder_has_no_gradient_and_never_changes() -> None:
    model, targets = make_model(train_image_encoder=False).train(), make_targets(3)
    before = {name: value.clone() for name, value in model.image_encoder.state_dict().items()}
    loss_of(model, model(together(three()), targets), targets).backward()
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in model.image_encoder.parameters()
    )
    assert not any(module.training for module in model.image_encoder.modules())
    for name, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.r3d is not None
    assert all(parameter.grad is not None for parameter in model.r3d.parameters())


def test_the_first_anchors_learn_and_later_ones_pass_no_gradient() -> None:
    """Of the positions that layers are given, and of the anchors that they move, the first layer's
    alone have one.
    """
    model = make_model(dropout=0.0).train()
    given: list[bool] = []
    for layer in model.spatial_decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: given.append(args[1].requires_grad))
    out = model(together(three()), make_targets(3))
    assert given == [True, False]
    out.boxes[0].sum().backward()
    anchor = model.spatial_decoder.initial_anchor.layers[0].weight.grad
    assert anchor is not None
    assert anchor.abs().max() > 0


def test_recomputed_layers_give_the_same_gradients_from_less() -> None:
    """In training, dropout and β included: the same gradients, and a fraction of what is kept for
    them.
    """
    model, queries, targets = make_model(), together(three()), make_targets(3)

    def gradients() -> tuple[list[Tensor], int]:
        kept: list[int] = []
        model.train().zero_grad()
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            out = model(queries, targets)
        loss_of(model, out, targets).backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ], sum(kept)

    whole, much = gradients()
    model.enable_activation_checkpointing()
    again, little = gradients()
    for ours, theirs in zip(again, whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert little < 0.6 * much


def test_a_text_encoder_that_trains_reads_tokens() -> None:
    text = TextEncoder("tiny")
    model, query = make_model(text_encoder=text), make_query(0, WIDE, 4)
    tokens, mask = text.tokenize(["the red circle spins."])
    inputs = replace(query, text=tokens[..., None], text_mask=mask)
    model.train()
    targets = make_targets(1)
    loss_of(model, model(inputs, targets), targets).backward()
    learnt = [
        parameter
        for parameter in text.roberta.encoder.parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    ]
    assert len(learnt) > 10
    model.eval()
    cached = Costa((3, 0, text.channels), model.config, model.image_encoder).eval()
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("text_encoder.")
    }
    cached.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(
            cached(replace(inputs, text=text(tokens, mask))).boxes, model(inputs).boxes
        )


# Configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_dim": 24, "num_heads": 16},
            "hidden_dim must be a multiple of 8 .* and of num_heads, not 24 with num_heads 16",
        ),
        ({"hidden_dim": 20, "num_heads": 2}, "hidden_dim must be a multiple of 8 .*, not 20 with num_heads 2"),
        ({"r3d_width": 12}, "r3d_width must be a multiple of 8 .*, not 12"),
        ({"connection": "mean"}, r"connection: .*'hadamard' \(got 'mean'\)"),
        ({"teacher_forcing_rate": 1.5}, "teacher_forcing_rate: .*less than or equal to 1"),
        ({"clips": 4}, "unknown key 'clips'; the keys are backbones, box_head"),
    ],
)
def test_a_bad_model_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(CostaConfig, changes, "model")


def test_at_the_papers_size_it_has_a_hundredth_more_parameters_than_the_paper_states() -> None:
    """235.0 M; by part as the model's file says."""
    with torch.device("meta"):
        model = Costa((2048, 0, 768), CostaConfig(), AppearanceEncoder("full"), TextEncoder("full"))
    count = Counter[str]()
    for name, parameter in model.named_parameters():
        count[
            next(
                (
                    part
                    for part in (
                        "r3d.lateral_connections",
                        "r3d",
                        "image_encoder",
                        "text_encoder",
                        "al_encoder",
                        "al_decoder",
                    )
                    if part in name
                ),
                "rest",
            )
        ] += parameter.numel()
    found = {part: round(number / 1e6, 1) for part, number in count.items()}
    expected = {
        "r3d": 33.2,
        "r3d.lateral_connections": 1.4,
        "image_encoder": 42.4,
        "text_encoder": 124.1,
        "al_encoder": 15.8,
        "al_decoder": 20.3,
        "rest": 0.4,
    }
    assert found == expected
    assert sum(count.values()) == pytest.approx(235.0e6, rel=0.011)
