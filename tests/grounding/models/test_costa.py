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


def collate(queries: list[ModelInputs]) -> ModelInputs:
    """Queries in one batch, padded with 9 rather than zeros: what masks and sizes hide must not
    matter.
    """

    def pad_and_stack(tensors: list[Tensor]) -> Tensor:
        shape = torch.tensor([tensor.shape for tensor in tensors]).amax(0).tolist()
        full = torch.full(
            (len(tensors), *shape[1:]),
            0 if tensors[0].dtype == torch.bool else 9,
            dtype=tensors[0].dtype,
        )
        for slot, tensor in zip(full, tensors, strict=True):
            slot[tuple(slice(side) for side in tensor.shape[1:])] = tensor[0]
        return full

    return ModelInputs(
        **{
            field.name: pad_and_stack([getattr(query, field.name) for query in queries])
            for field in fields(ModelInputs)
            if field.name != "video_indices"
        }
    )


def make_three_queries(frames: int = FRAMES) -> list[ModelInputs]:
    """Queries with pictures and sentences of different sizes."""
    return [
        make_query(seed, size, words, frames)
        for seed, size, words in ((0, WIDE, 4), (1, TALL, 7), (2, SMALL, 1))
    ]


def make_targets(count: int, inside: Tensor = INSIDE) -> Targets:
    """Boxes of all frames, and a span about the segment's middle."""
    random = torch.Generator().manual_seed(4)
    boxes = torch.rand(count, FRAMES, 4, generator=random) * 0.3 + 0.35
    box_mask, frames = torch.ones(count, FRAMES, dtype=torch.bool), inside.expand(count, FRAMES)
    return Targets(
        boxes,
        box_mask,
        torch.tensor([[0.2, 0.7]]).expand(count, 2),
        frames,
        frames,
        boxes,
        box_mask,
    )


def compute_loss(model: Costa, out: CostaOutputs, targets: Targets, **weights: Any) -> Tensor:
    return costa_loss(
        out, targets, CostaLossConfig(**weights), LossNormalizers.from_targets(targets)
    )["loss"]


@cache
def get_encoder(kind: str) -> AppearanceEncoder:
    return AppearanceEncoder(kind).eval().requires_grad_(False)


# The space-time encoder


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (95, 31), (7, 9)])
@pytest.mark.parametrize("kind", ["tiny", "full"])
@pytest.mark.parametrize("connection", ["sum", "concat", "hadamard"])
def test_both_networks_have_maps_of_one_size_after_every_stage_and_all_frames(
    size: tuple[int, int], kind: str, connection: Any
) -> None:
    """Odd sizes too; beside ResNet-101, whose stem pools, and the tiny one, whose does not."""
    image = get_encoder(kind)
    trunk = R3dTrunk(8, image.stage_channels, image.has_stem_pooling, connection)
    shapes: list[tuple[torch.Size, torch.Size, torch.Size]] = []
    for joint in trunk.lateral_connections:
        joint.register_forward_hook(
            lambda module, received, result: shapes.append(
                (received[0].shape, received[1].shape, result.shape)
            )
        )
    videos, image_features = torch.rand(2, 3, 3, *size), list[Tensor]()
    x = image.stem(videos.flatten(0, 1))
    for stage in image.stages:
        image_features.append(x := stage(x))
    y = trunk(videos.transpose(1, 2), image_features)
    for (video, image_shape, fused), width, channels in zip(
        shapes, (8, 16, 32, 64), image.stage_channels, strict=True
    ):
        assert video == fused == (2, width, 3, *image_shape[2:])
        assert image_shape[:2] == (6, channels)
    assert y.shape == (2, 3, *image_features[-1].shape[2:], 64)


def test_a_stage_is_the_sum_of_both_networks_normed() -> None:
    joint = LateralConnection(8, 3, "sum")
    video, image_features = torch.randn(2, 8, 5, 2, 3), torch.randn(10, 3, 2, 3)
    bring, layer_norm = joint.project_image, nn.functional.layer_norm
    assert bring is not None
    frames = video.transpose(1, 2).flatten(0, 1)
    expected = sum(
        layer_norm(event_part.permute(0, 2, 3, 1), [8])
        for event_part in (frames, bring(image_features))
    )
    torch.testing.assert_close(
        joint(video, image_features).permute(0, 2, 3, 4, 1).flatten(0, 1), expected
    )


def test_the_hadamard_product_and_the_concatenation_are_of_plain_features() -> None:
    video, image_features = torch.randn(2, 8, 5, 2, 3), torch.randn(10, 3, 2, 3)
    product, chain = LateralConnection(8, 3, "hadamard"), LateralConnection(8, 3, "concat")
    assert product.project_image is not None
    assert chain.project_image is not None
    assert chain.reduce is not None
    torch.testing.assert_close(
        product(video, image_features),
        video * product.project_image(image_features).unflatten(0, (2, 5)).transpose(1, 2),
    )
    concatenated = torch.cat(
        [video, chain.project_image(image_features).unflatten(0, (2, 5)).transpose(1, 2)], 1
    )
    torch.testing.assert_close(chain(video, image_features), chain.reduce(concatenated))


def test_the_trunk_sees_motion_and_the_2_d_network_does_not() -> None:
    """Another second frame changes the first one's maps, but not those of the 2-D network alone."""
    query = make_query(0, WIDE, 4)
    changed = query.appearance.clone()
    changed[:, 1] = 255 - changed[:, 1]
    for backbones, event_mask in (("both", True), ("3d", True), ("2d", False)):
        model = make_model(backbones=backbones)
        with torch.no_grad():
            before, after = (
                model.encode_images(pictures, query.map_size)[0][0, 0]
                for pictures in (query.appearance, changed)
            )
        assert torch.allclose(before, after, atol=1e-6) != event_mask


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
        full = model.encode_images(pictures, sizes)[0]
        monkeypatch.setattr(grounding.models.costa, "MAX_CONVOLUTION_PIXELS", 1)
        torch.testing.assert_close(
            model.encode_images(pictures, sizes)[0], full, atol=1e-4, rtol=1e-4
        )


# Shapes, and a batch is its queries


@pytest.mark.parametrize("box_head", ["mlp", "attention"])
def test_outputs_have_their_shapes_and_ranges(box_head: str) -> None:
    with torch.no_grad():
        out = make_model(box_head=box_head)(collate(make_three_queries()))
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
    out = make_model()(collate(make_three_queries()))
    for index, prediction in enumerate(out.span_predictions()):
        np.testing.assert_allclose(
            prediction.start, out.start_logits[-1, index].detach().softmax(-1), rtol=1e-5
        )
        np.testing.assert_allclose(
            prediction.end, out.end_logits[-1, index].detach().softmax(-1), rtol=1e-5
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
    model, queries = make_model(**changes), make_three_queries(frames)
    with torch.no_grad():
        batch, single_outputs = model(collate(queries)), [model(query) for query in queries]
    for index, single_output in enumerate(single_outputs):
        for name in ("boxes", "start_logits", "end_logits"):
            torch.testing.assert_close(
                getattr(batch, name)[:, index],
                getattr(single_output, name)[:, 0],
                atol=1e-5,
                rtol=1e-5,
            )
        for name in ("encoder_presence_logits", "decoder_presence_logits", "event_mask"):
            torch.testing.assert_close(
                getattr(batch, name)[index], getattr(single_output, name)[0], atol=1e-5, rtol=1e-5
            )
        rows, columns = model.encode_images(queries[index].appearance, queries[index].map_size)[1][
            0
        ].tolist()
        for name in ("box_attention", "temporal_attention"):
            query_weights = getattr(batch, name)[:, index].unflatten(-1, (4, 5))
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
    names = (
        "boxes",
        "start_logits",
        "end_logits",
        "encoder_presence_logits",
        "decoder_presence_logits",
    )
    assert_sharing_changes_nothing(
        make_model(), make_three_queries(), collate, names, tolerance=1e-4
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
    result = most_likely_span(first, last)  # products: [1, 1] .11 beats [3, 3] .06 and [1, 2] .05
    assert result.int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]]


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
    event_mask, cls = (
        torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool),
        torch.randn(3, FRAMES, 16),
    )
    event = model.event_token
    assert event is not None
    event_parts = [
        model.embed_event(event_mask, cls, sinusoidal_time(positions, 16)) for positions in tau
    ]
    for event_part, positions in zip(event_parts, tau, strict=True):
        torch.testing.assert_close(
            event_part[event_mask], event.weight[1] + sinusoidal_time(positions, 16)[event_mask]
        )
        torch.testing.assert_close(
            event_part[~event_mask], event.weight[0].expand(int((~event_mask).sum()), -1)
        )
    assert not torch.allclose(event_parts[0][event_mask], event_parts[1][event_mask])


def test_without_entanglement_spatial_queries_begin_as_cls() -> None:
    model, cls = make_model(entangled_queries=False), torch.randn(1, FRAMES, 16)
    assert model.event_token is None
    assert torch.equal(
        model.embed_event(torch.ones(1, FRAMES, dtype=torch.bool), cls, torch.randn(1, FRAMES, 16)),
        cls,
    )


@pytest.mark.parametrize(("beta", "uses_truth"), [(0.0, False), (1.0, True)])
def test_in_training_beta_says_how_often_the_span_is_the_true_one(
    beta: float, uses_truth: bool
) -> None:
    model, queries = (
        make_model(teacher_forcing_rate=beta, dropout=0.0).train(),
        collate(make_three_queries()),
    )
    with torch.no_grad():
        out = model(queries, make_targets(3))
    predicted = most_likely_span(out.start_logits[-1], out.end_logits[-1])
    assert torch.equal(out.event_mask, INSIDE.bool().expand(3, -1) if uses_truth else predicted)
    assert not torch.equal(predicted, INSIDE.bool().expand(3, -1))


def test_beta_is_drawn_for_every_query_by_torch_s_generator() -> None:
    """Nine of ten on the whole; the same draw for the same seed."""
    model = make_model(teacher_forcing_rate=0.9).train()
    first, last = torch.zeros(2000, FRAMES), torch.zeros(2000, FRAMES)
    first[:, 0], last[:, 0] = 9, 9
    targets = make_targets(2000)
    torch.manual_seed(3)
    event_mask = model.select_span(first, last, targets)
    uses_truth = (event_mask == INSIDE.bool()).all(1)
    assert float(uses_truth.float().mean()) == pytest.approx(0.9, abs=0.03)
    assert (event_mask[~uses_truth] == torch.tensor([True, False, False, False])).all()
    torch.manual_seed(3)
    assert torch.equal(model.select_span(first, last, targets), event_mask)


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_predictions_need_no_truth(beta: float) -> None:
    """Told the truth or not, they are the same."""
    model, queries = make_model(teacher_forcing_rate=beta), collate(make_three_queries())
    with torch.no_grad():
        event_mask, without_truth = model(queries, make_targets(3)), model(queries)
    for field in fields(CostaOutputs):
        assert torch.equal(getattr(event_mask, field.name), getattr(without_truth, field.name))
    assert torch.equal(
        without_truth.event_mask,
        most_likely_span(without_truth.start_logits[-1], without_truth.end_logits[-1]),
    )


@pytest.mark.parametrize("entangled", [True, False])
def test_boxes_know_the_span_where_decoding_is_entangled(entangled: bool) -> None:
    """Another true span moves them, and nothing of when."""
    model, queries = (
        make_model(entangled_queries=entangled, teacher_forcing_rate=1.0, dropout=0.0).train(),
        collate(make_three_queries()),
    )
    with torch.no_grad():
        positions, changed = (
            model(queries, make_targets(3, inside)) for inside in (INSIDE, 1 - INSIDE)
        )
    assert torch.allclose(positions.boxes, changed.boxes, atol=1e-6) != entangled
    for name in (
        "start_logits",
        "end_logits",
        "encoder_presence_logits",
        "decoder_presence_logits",
    ):
        assert torch.equal(getattr(positions, name), getattr(changed, name))


# Decoders


@pytest.mark.parametrize("box_head", ["mlp", "attention"])
def test_anchors_move_layer_by_layer(box_head: str) -> None:
    """Each layer is given the anchors that the last one left, at first those of [CLS]."""
    model = make_model(box_head=box_head)
    received: list[Tensor] = []
    for layer in model.spatial_decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: received.append(args[1]))
    with torch.no_grad():
        query = collate(make_three_queries())
        out = model(query)
        cls = model.encode(query)[1]
        first = model.spatial_decoder.initial_anchor(cls).sigmoid()
    for anchors, positions in zip((first, *out.boxes[:-1]), received, strict=True):
        torch.testing.assert_close(sinusoidal_box(anchors, 8), positions)
    assert (out.boxes[1] - out.boxes[0]).abs().max() > 1e-3


def test_without_a_move_anchors_stay() -> None:
    model = make_model()
    move = model.spatial_decoder.anchor_update
    assert move is not None
    for parameter in move.layers[-1].parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        query = collate(make_three_queries())
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

    def prediction(memory: CostaMemory, cls: Tensor) -> Tensor:
        return (
            model.temporal_decoder(cls, memory)[0][-1, ..., None]
            if decoder == "temporal"
            else model.spatial_decoder(event, cls, memory)[0][-1]
        )

    with torch.no_grad():
        memory, cls = model.encode(query)
        before = prediction(memory, cls)
        for frame in range(FRAMES):
            after = prediction(changed_frame(memory, frame), cls)
            assert ((after - before).abs().amax(-1) > 1e-4)[0].tolist() == [
                slot == frame for slot in range(FRAMES)
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
    changed = query.appearance.clone()
    changed[:, 1] = 255 - changed[:, 1]
    with torch.no_grad():
        before, after = (
            model.encode(replace(query, appearance=pictures))[1][0, 0]
            for pictures in (query.appearance, changed)
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
    compute_loss(model, model(collate(make_three_queries()), targets), targets).backward()
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    norms = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in trainable.items()
    }
    untrained = {"temporal_decoder.boundary_head.layers.1.bias"}
    if changes.get("box_head") == "attention":
        untrained.add("spatial_decoder.box_head.key.bias")
    assert {name for name, norm in norms.items() if norm < 1e-5} - {
        "temporal_decoder.boundary_head.layers.0.bias"
    } == untrained
    learning = {name.split(".")[2] for name in trainable if name.startswith("image_encoder.")}
    assert learning == (set() if changes.get("backbones") == "3d" else set(TRAINABLE_PREFIXES))


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_a_step_lowers_the_loss(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Costa(
        (3, 0, WORDS),
        CostaConfig(**{**TINY, "dropout": 0.0, "teacher_forcing_rate": 1.0, **changes}),
        AppearanceEncoder("tiny"),
    ).train()
    queries, targets = collate(make_three_queries()), make_targets(3)
    optimiser = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], 1e-3
    )
    losses = []
    for _ in range(4):
        loss = compute_loss(model, model(queries, targets), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_frozen_image_encoder_has_no_gradient_and_never_changes() -> None:
    model, targets = make_model(train_image_encoder=False).train(), make_targets(3)
    before = {name: tensor.clone() for name, tensor in model.image_encoder.state_dict().items()}
    compute_loss(model, model(collate(make_three_queries()), targets), targets).backward()
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in model.image_encoder.parameters()
    )
    assert not any(module.training for module in model.image_encoder.modules())
    for name, tensor in model.image_encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.r3d is not None
    assert all(parameter.grad is not None for parameter in model.r3d.parameters())


def test_the_first_anchors_learn_and_later_ones_pass_no_gradient() -> None:
    """Of the positions that layers are given, and of the anchors that they move, the first layer's
    alone have one.
    """
    model = make_model(dropout=0.0).train()
    received: list[bool] = []
    for layer in model.spatial_decoder.layers:
        layer.register_forward_pre_hook(lambda module, args: received.append(args[1].requires_grad))
    out = model(collate(make_three_queries()), make_targets(3))
    assert received == [True, False]
    out.boxes[0].sum().backward()
    anchor = model.spatial_decoder.initial_anchor.layers[0].weight.grad
    assert anchor is not None
    assert anchor.abs().max() > 0


def test_recomputed_layers_give_the_same_gradients_from_less() -> None:
    """In training, dropout and β included: the same gradients, and a fraction of what is kept for
    them.
    """
    model, queries, targets = make_model(), collate(make_three_queries()), make_targets(3)

    def gradients() -> tuple[list[Tensor], int]:
        saved_bytes: list[int] = []
        model.train().zero_grad()
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved_bytes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            out = model(queries, targets)
        compute_loss(model, out, targets).backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ], sum(saved_bytes)

    full, bytes_stored = gradients()
    model.enable_activation_checkpointing()
    recomputed, bytes_recomputed = gradients()
    for recomputed_gradient, stored_gradient in zip(recomputed, full, strict=True):
        torch.testing.assert_close(recomputed_gradient, stored_gradient)
    assert bytes_recomputed < 0.6 * bytes_stored


def test_a_text_encoder_that_trains_reads_tokens() -> None:
    text = TextEncoder("tiny")
    model, query = make_model(text_encoder=text), make_query(0, WIDE, 4)
    tokens, mask = text.tokenize(["the red circle spins."])
    inputs = replace(query, text=tokens[..., None], text_mask=mask)
    model.train()
    targets = make_targets(1)
    compute_loss(model, model(inputs, targets), targets).backward()
    trained = [
        parameter
        for parameter in text.roberta.encoder.parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    ]
    assert len(trained) > 10
    model.eval()
    cached = Costa((3, 0, text.channels), model.config, model.image_encoder).eval()
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
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
        (
            {"hidden_dim": 20, "num_heads": 2},
            "hidden_dim must be a multiple of 8 .*, not 20 with num_heads 2",
        ),
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
                    event_part
                    for event_part in (
                        "r3d.lateral_connections",
                        "r3d",
                        "image_encoder",
                        "text_encoder",
                        "al_encoder",
                        "al_decoder",
                    )
                    if event_part in name
                ),
                "rest",
            )
        ] += parameter.numel()
    result = {event_part: round(index / 1e6, 1) for event_part, index in count.items()}
    expected = {
        "r3d": 33.2,
        "r3d.lateral_connections": 1.4,
        "image_encoder": 42.4,
        "text_encoder": 124.1,
        "al_encoder": 15.8,
        "al_decoder": 20.3,
        "rest": 0.4,
    }
    assert result == expected
    assert sum(count.values()) == pytest.approx(235.0e6, rel=0.011)
