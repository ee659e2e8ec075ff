"""CSDVL with MDETR's weights: it gives what MDETR's formula gives, and every name of the file is
accounted for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grounding.models.csdvl import Csdvl, CsdvlConfig, TokenGeometry
from grounding.structures.inputs import ModelInputs
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.mdetr_weights import build_static_stream, initialize_from_mdetr
from grounding.systems.provenance import read_provenance
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.errors import InputError
from pipeline.features.reduction import Projection, fit_pca, load_mdetr_projection
from pipeline.weights.checkpoint_files import LoadReport

GOLDEN = json.loads(Path(__file__).with_name("golden_mdetr.json").read_text(encoding="utf-8"))
"""Names of MDETR's ResNet-101 checkpoint, `*` for a layer's number: how many layers, and the shape.
Of its backbone the first block.
"""
LEFT_OVER = re.compile(r"(backbone|transformer\.text_encoder|class_embed)\..*")
HEADS, FRAMES, CLIPS, MOTION = 8, 2, 2, 5
Load = Callable[..., LoadReport]


@dataclass(frozen=True)
class Size:
    """A network whose widths are MDETR's divided by `by`."""

    by: int
    layers: int

    @property
    def dims(self) -> tuple[int, int, int]:
        return 2048 // self.by, MOTION, 768 // self.by

    def state(self, seed: int = 0) -> dict[str, Tensor]:
        """Random weights under all names; a single number each for those that are left over."""
        random = torch.Generator().manual_seed(seed)
        state = {}
        for template, (count, shape) in GOLDEN.items():
            sides = [side // self.by if side >= 256 else side for side in shape]
            for number in range(min(count, self.layers)):
                name = template.replace("*", str(number))
                values = torch.randn([1] if LEFT_OVER.fullmatch(name) else sides, generator=random)
                scale = (
                    0.3
                    if values.dim() == 1
                    else 1.5 / math.sqrt(values[0].numel())
                    if name != "query_embed.weight"
                    else 1.0
                )
                if "resizer.fc" in name:  # so small that the norm after it shows its epsilon
                    scale *= 1e-3
                is_norm = "norm" in name and name.endswith("weight")
                state[name] = is_norm + scale * values
        return state

    def model(self, dims: tuple[int, int, int] | None = None, **changes: Any) -> Csdvl:
        small = {
            "proposal_map_channels": 4,
            "proposal_map_kernel": 3,
            "proposal_map_layers": 1,
            "num_frames": FRAMES,
            "num_clips": CLIPS,
            "collaboration": "none",
        }
        widths = {
            "hidden_dim": 256 // self.by,
            "ffn_dim": 2048 // self.by,
            "num_heads": HEADS,
            "num_layers": self.layers,
        }
        torch.manual_seed(1)
        return Csdvl(dims or self.dims, CsdvlConfig(**{**small, **widths, **changes})).eval()

    def inputs(self, seed: int = 2) -> ModelInputs:
        """Two queries whose maps and sentences differ in size; 9 where there is only padding."""
        random = torch.Generator().manual_seed(seed)
        appearance = torch.randn(2, FRAMES, 4, 5, self.dims[0], generator=random)
        appearance[1, :, 3:], appearance[1, :, :, 2:] = 9, 9
        text = torch.randn(2, 4, self.dims[2], generator=random)
        text[0, 3:] = 9
        return ModelInputs(
            appearance=appearance,
            map_size=torch.tensor([[4, 5], [3, 2]]),
            frame_positions=torch.tensor([[0.2, 0.7], [0.1, 0.9]]),
            motion=torch.randn(2, CLIPS, 4, 4, MOTION, generator=random),
            picture_in_square=torch.tensor([[0, 0.1, 1, 0.9], [1 / 6, 0, 5 / 6, 1]]),
            text=text,
            text_mask=torch.tensor([[True] * 3 + [False], [True] * 4]),
        )


SMALL, REAL = Size(8, 2), Size(1, 6)


@pytest.fixture
def load_mdetr(tmp_path: Path) -> Load:
    """Save a state as MDETR saves its averaged weights, and initialize a model from it."""

    def load(
        model: Csdvl, state: Mapping[str, Tensor], basis: Projection | None = None
    ) -> LoadReport:
        other = {name: torch.zeros_like(value) for name, value in state.items()}
        torch.save(
            {"model": other, "model_ema": dict(state), "epoch": 39, "args": Namespace(nheads=8)},
            tmp_path / "mdetr.pth",
        )
        return initialize_from_mdetr(model, tmp_path / "mdetr.pth", basis)

    return load


class Reference:
    """MDETR's transformer for its first query alone, from its published formulas, on `torch.nn`
    attention.
    """

    def __init__(self, state: Mapping[str, Tensor], layers: int) -> None:
        self.state, self.layers = state, layers

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps
        )

    def attend(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        attention = nn.MultiheadAttention(query.shape[-1], HEADS, batch_first=True)
        attention.load_state_dict(
            {
                key.removeprefix(f"{name}."): part
                for key, part in self.state.items()
                if key.startswith(f"{name}.")
            }
        )
        return attention.eval()(query, key, value, key_padding_mask=padding)[0]

    def feed(self, layer: str, norm: str, x: Tensor) -> Tensor:
        return self.norm(
            f"{layer}.{norm}",
            x + self.linear(f"{layer}.linear2", self.linear(f"{layer}.linear1", x).relu()),
        )

    @staticmethod
    def positions(padding: Tensor, d: int) -> Tensor:
        """Padding `[n, H, W]` → `[n, H·W, d]`: count the cells that are picture, down and across,
        and scale the counts to 2π.
        """
        parts = []
        for axis in (1, 2):
            count = (~padding).cumsum(axis).float()
            angle = count / (count.amax(axis, keepdim=True) + 1e-6) * 2 * math.pi
            part = torch.zeros(*padding.shape, d // 2)
            for pair in range(d // 4):
                slow = angle / 10000 ** (4 * pair / d)
                part[..., 2 * pair], part[..., 2 * pair + 1] = slow.sin(), slow.cos()
            parts.append(part)
        return torch.cat(parts, -1).flatten(1, 2)

    @torch.no_grad()
    def __call__(
        self, maps: Tensor, padding: Tensor, words: Tensor, word_padding: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the memory `[n, H·W + L, d]`, the decoder's normed outputs after each layer
        `[layers, n, d]`, and their boxes.

        Inputs are maps `[n, C, H, W]` and words `[n, L, C_t]`; masks are True at padding.
        """
        visual = (
            functional.conv2d(maps, self.state["input_proj.weight"], self.state["input_proj.bias"])
            .flatten(2)
            .transpose(1, 2)
        )
        text = self.norm(
            "transformer.resizer.layer_norm", self.linear("transformer.resizer.fc", words), 1e-12
        )
        memory, hidden = (
            torch.cat([visual, text], 1),
            torch.cat([padding.flatten(1), word_padding], 1),
        )
        at = torch.cat([self.positions(padding, visual.shape[-1]), torch.zeros_like(text)], 1)
        for layer in (f"transformer.encoder.layers.{number}" for number in range(self.layers)):
            memory = self.norm(
                f"{layer}.norm1",
                memory
                + self.attend(f"{layer}.self_attn", memory + at, memory + at, memory, hidden),
            )
            memory = self.feed(layer, "norm2", memory)
        asked = self.state["query_embed.weight"][:1].expand(len(memory), 1, -1)
        query, outputs = torch.zeros_like(asked), []
        for layer in (f"transformer.decoder.layers.{number}" for number in range(self.layers)):
            query = self.norm(
                f"{layer}.norm1",
                query + self.attend(f"{layer}.self_attn", query + asked, query + asked, query),
            )
            recorded = self.attend(
                f"{layer}.cross_attn_image", query + asked, memory + at, memory, hidden
            )
            query = self.feed(layer, "norm4", self.norm(f"{layer}.norm3", query + recorded))
            outputs.append(self.norm("transformer.decoder.norm", query)[:, 0])
        out = torch.stack(outputs)
        box = self.linear(
            "bbox_embed.layers.1", self.linear("bbox_embed.layers.0", out).relu()
        ).relu()
        return memory, out, self.linear("bbox_embed.layers.2", box).sigmoid()


def reference_of(
    state: Mapping[str, Tensor], layers: int, inputs: ModelInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """MDETR's answers for every frame of a batch, frame by frame of its first query, then of its
    second.
    """
    rows, columns = inputs.appearance.shape[2:4]
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    padding = torch.stack(
        [(row >= size[0]) | (column >= size[1]) for size in inputs.map_size]
    ).repeat_interleave(FRAMES, 0)
    words, word_padding = (
        part.repeat_interleave(FRAMES, 0) for part in (inputs.text, ~inputs.text_mask)
    )
    return Reference(state, layers)(
        inputs.appearance.flatten(0, 1).permute(0, 3, 1, 2), padding, words, word_padding
    )


@torch.no_grad()
def answers_of(model: Csdvl, inputs: ModelInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Our memory with the mask of its tokens, the decoder's normed outputs after each layer, boxes:
    shapes as the reference's.
    """
    outputs: list[Tensor] = []
    hook = model.decoder_norm.register_forward_hook(lambda module, args, out: outputs.append(out))
    boxes = model(inputs).boxes.flatten(1, 2)
    hook.remove()
    memory = model.encode(
        inputs,
        model.project_text(inputs.text),
        TokenGeometry.from_inputs(inputs, model.object_query.numel(), True),
    )
    return memory.states, memory.mask, torch.stack(outputs[: len(boxes)]), boxes


@pytest.mark.parametrize("size", [SMALL, REAL], ids=["small", "real"])
def test_it_gives_what_mdetr_gives(load_mdetr: Load, size: Size) -> None:
    state, model, inputs = size.state(), size.model(), size.inputs()
    load_mdetr(model, state)
    memory, mask, queries, boxes = answers_of(model, inputs)
    true_memory, true_queries, true_boxes = reference_of(state, size.layers, inputs)
    torch.testing.assert_close(memory[mask], true_memory[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(queries, true_queries, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(boxes, true_boxes, atol=1e-5, rtol=0)
    assert boxes.std(1).min() > 1e-3, "frames must differ, or the equality says little"


def test_every_key_is_accounted_for(load_mdetr: Load) -> None:
    state, model = REAL.state(), REAL.model(collaboration="full")
    report = load_mdetr(model, state)
    left = {name for name in state if LEFT_OVER.fullmatch(name)}
    assert set(report.loaded_keys) == set(state) - left
    assert set(report.ignored_keys) == left
    assert len(report.loaded_keys) == report.num_expected == 6 * 12 + 6 * 18 + 15
    scratch = "clip_head, collaboration, dynamic_layers, frame_head, project_motion, proposal_head"
    expected = (
        rf"static stream from MDETR's \S+mdetr.pth \(from scratch: {scratch}\): "
        rf"loaded 195 of 195, none missing, none unexpected; \d+ left"
    )
    assert re.match(expected, str(report))


def test_only_the_static_stream_changes(load_mdetr: Load) -> None:
    state, model, before = SMALL.state(), SMALL.model(), SMALL.model()
    load_mdetr(model, state)
    own = {id(parameter) for parameter in build_static_stream(model).parameters()}
    assert len(own) == 2 * 12 + 2 * 18 + 15
    for (name, parameter), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old) == (id(parameter) not in own), name
    assert torch.equal(model.object_query, state["query_embed.weight"][0])
    assert torch.equal(model.project_appearance.weight, state["input_proj.weight"][:, :, 0, 0])


def test_leftovers_of_mdetr_for_other_tasks(load_mdetr: Load) -> None:
    heads = (
        "isfinal_embed.weight",
        "contrastive_align_projection_image.bias",
        "qa_embed.weight",
        "answer_rel_head.bias",
    )
    report = load_mdetr(SMALL.model(), SMALL.state() | {name: torch.zeros(1) for name in heads})
    assert set(heads) <= set(report.ignored_keys)


def test_another_box_head_stays_as_it_is(load_mdetr: Load) -> None:
    model, before = SMALL.model(box_head="attention"), SMALL.model(box_head="attention")
    report = load_mdetr(model, SMALL.state())
    assert {name for name in report.ignored_keys if name.startswith("bbox_embed.")} == {
        f"bbox_embed.layers.{number}.{part}" for number in range(3) for part in ("weight", "bias")
    }
    assert "from scratch: box_head, clip_head" in report.description
    for old, new in zip(before.box_head.parameters(), model.box_head.parameters(), strict=True):
        assert torch.equal(old, new)


def broken(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["transformer.decoder.norm.weight"][3] = float("nan")
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("bbox_embed.layers.2.bias"),
            r"missing \['bbox_embed.layers.2.bias'\], unexpected \[\]",
        ),
        (lambda state: state.pop("query_embed.weight"), r"missing \['query_embed.weight'\]"),
        (lambda state: state.pop("input_proj.bias"), r"missing \['input_proj.bias'\]"),
        (
            lambda state: state.update({"transformer.CLS.weight": torch.zeros(1)}),
            r"missing \[\], unexpected \['transformer.CLS.weight'\]",
        ),
        (
            lambda state: state.update({"transformer.encoder.norm.bias": torch.zeros(1)}),
            r"unexpected \['transformer.encoder.norm.bias'\]",
        ),
        (
            lambda state: state.update({"query_embed.weight": torch.zeros(())}),
            r"query_embed.weight: \[\] for \[32\]",
        ),
        (
            lambda state: state.update({"input_proj.weight": torch.zeros(32, 256, 3, 3)}),
            r"input_proj.weight: \[32, 256, 3, 3\] for \[32, 256\]",
        ),
        (
            lambda state: state.update({"transformer.resizer.fc.weight": torch.zeros(32, 7)}),
            r"fc.weight: \[32, 7\] for \[32, 96\]",
        ),
        (broken, r"are damaged: not finite \['transformer.decoder.norm.weight'\]"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(
    load_mdetr: Load, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    state, model = SMALL.state(), SMALL.model()
    change(state)
    with pytest.raises(InputError, match=message):
        load_mdetr(model, state)
    for old, new in zip(SMALL.model().parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_another_network(load_mdetr: Load) -> None:
    with pytest.raises(
        InputError,
        match=r"static stream from MDETR's .* do not fit: missing \['bbox_embed.* "
        r"unexpected \['layer1.weight'\]",
    ):
        load_mdetr(SMALL.model(), {"layer1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_layers": 1},
            "the model's num_layers=1 do not fit MDETR's weights: set "
            "model.num_layers=2, or init_from=null",
        ),
        (
            {"num_layers": 3, "ffn_dim": 24},
            "the model's ffn_dim=24, num_layers=3 do not fit MDETR's weights: set "
            "model.ffn_dim=256, model.num_layers=2, or",
        ),
        (
            {"hidden_dim": 64, "num_heads": 4},
            "the model's hidden_dim=64, num_heads=4 do not fit MDETR's weights: set "
            "model.hidden_dim=32, model.num_heads=8, or",
        ),
        (
            {"streams": "dynamic"},
            "a model of streams=dynamic has no static stream: set model.streams=both, "
            "or init_from=null",
        ),
    ],
)
def test_a_model_that_does_not_fit(load_mdetr: Load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"init_from \S+mdetr\.pth: {message}"):
        load_mdetr(SMALL.model(**changes), SMALL.state())


def reduced(inputs: ModelInputs, basis: Projection) -> ModelInputs:
    """Return the inputs of a store reduced with the basis, before rounding to half precision."""
    flat = inputs.appearance.flatten(0, 3).numpy()
    return replace(
        inputs,
        appearance=torch.from_numpy(basis.project(flat)).reshape(*inputs.appearance.shape[:4], -1),
    )


def test_a_store_reduced_by_mdetr_itself(load_mdetr: Load, tmp_path: Path) -> None:
    state, inputs, d = SMALL.state(), SMALL.inputs(), 32
    load_mdetr(complete := SMALL.model(), state)
    basis = load_mdetr_projection(tmp_path / "mdetr.pth")
    load_mdetr(model := SMALL.model((d, *SMALL.dims[1:])), state, basis)
    torch.testing.assert_close(model.project_appearance.weight, torch.eye(d), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.project_appearance.bias, torch.zeros(d), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        model(reduced(inputs, basis)).boxes, complete(inputs).boxes, atol=1e-5, rtol=0
    )


def test_a_store_reduced_to_principal_components(load_mdetr: Load) -> None:
    """Maps that vary in no more directions than were kept lose nothing."""
    state, inputs, kept = SMALL.state(), SMALL.inputs(), 6
    random = np.random.default_rng(0)
    spread, middle = (
        random.standard_normal((kept, SMALL.dims[0])),
        random.standard_normal(SMALL.dims[0]),
    )
    cells = (
        random.standard_normal((inputs.appearance[..., 0].numel(), kept)) @ spread + middle
    ).astype(np.float32)
    inputs.appearance = torch.from_numpy(cells).reshape(inputs.appearance.shape)
    basis = fit_pca(cells, kept)
    load_mdetr(complete := SMALL.model(), state)
    load_mdetr(model := SMALL.model((kept, *SMALL.dims[1:])), state, basis)
    small = reduced(inputs, basis).appearance
    torch.testing.assert_close(
        model.project_appearance(small),
        complete.project_appearance(inputs.appearance),
        atol=1e-4,
        rtol=1e-4,
    )


def test_features_of_another_backbone(load_mdetr: Load) -> None:
    message = (
        r"MDETR reads maps of 256 channels, and the store's backbone gives 6: "
        r"extract them with --backbones full and --weights"
    )
    with pytest.raises(InputError, match=message):
        load_mdetr(SMALL.model((6, *SMALL.dims[1:])), SMALL.state())
    basis = Projection(
        np.zeros(6, np.float32), np.ones((32, 6), np.float32), np.zeros(32, np.float32), "pca:32"
    )
    with pytest.raises(InputError, match=message):
        load_mdetr(SMALL.model((32, *SMALL.dims[1:])), SMALL.state(), basis)


def test_a_run_that_starts_from_it_says_so(
    load_mdetr: Load, shapes_store: Path, tmp_path: Path
) -> None:
    """Two warnings, for the store's features come from no MDETR; the file's digest, which a resumed
    run keeps without the file.
    """
    random, state = torch.Generator().manual_seed(3), SMALL.state()
    state["input_proj.weight"] = torch.randn(32, 6, 1, 1, generator=random)
    state["transformer.resizer.fc.weight"] = torch.randn(32, 7, generator=random)
    file, said = tmp_path / "mdetr.pth", list[str]()
    load_mdetr(SMALL.model((6, 5, 7)), state)
    small = {
        "hidden_dim": 32,
        "ffn_dim": 256,
        "num_heads": HEADS,
        "num_layers": 2,
        "num_frames": 4,
        "num_clips": 4,
        "proposal_map_channels": 4,
        "proposal_map_kernel": 3,
        "proposal_map_layers": 1,
    }
    values = {
        "model": small,
        "init_from": file,
        "batch": 4,
        "max_steps": 1,
        "lr_schedule_steps": 2,
        "device": "cpu",
    }
    config = CsdvlTrainConfig.model_validate(values)
    prepare_run_dir(shapes_store, tmp_path / "run", config)
    train(shapes_store, tmp_path / "run", config, warn=said.append)
    assert [line.split()[4] for line in said] == ["appearance", "text"]
    assert all(
        "of MDETR's own encoder, and this run's come from 'an unknown source'" in line
        for line in said
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_provenance(tmp_path / "run")["initialised"] == digest
    file.unlink()
    longer = config.model_copy(update={"max_steps": 2})
    prepare_run_dir(shapes_store, tmp_path / "run", longer, resume=True)
    train(shapes_store, tmp_path / "run", longer, warn=said.append)
    assert len(said) == 2
    assert read_provenance(tmp_path / "run")["initialised"] == digest
