"""Weights by source: what is loaded is named, reproducible and strict."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.devices import resolve_device
from pipeline.errors import InputError
from pipeline.weights.encoder_specs import ENCODERS
from pipeline.weights.load import build_encoder, compute_weights_digest, load_backbone, load_strict
from pipeline.weights.sources import (
    ENCODED_PRODUCTS,
    TINY_PRODUCTS,
    TINY_WEIGHTS_DIR,
    WeightSource,
    parse_source,
    slowfast_variant,
)


@pytest.mark.parametrize("product", TINY_PRODUCTS)
def test_random_weights_are_a_function_of_the_seed(product: str) -> None:
    first, same, other = (
        load_backbone(product, "tiny", source) for source in ("random:3", "random:3", "random:4")
    )
    assert first.digest == same.digest != other.digest
    for key, value in first.encoder.state_dict().items():
        assert torch.equal(value, same.encoder.state_dict()[key])


@pytest.mark.parametrize("product", TINY_PRODUCTS)
def test_random_weights_leave_the_global_generator_alone(product: str) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    load_backbone(product, "tiny", "random:5")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("product", TINY_PRODUCTS)
def test_the_shipped_weights_load_and_are_frozen(product: str) -> None:
    loaded = load_backbone(product, "tiny", "tiny")
    assert loaded.source == "tiny"
    assert (
        len(loaded.report.loaded_keys)
        == loaded.report.num_expected
        == len(loaded.encoder.state_dict())
    )
    assert loaded.digest == compute_weights_digest(loaded.encoder, product)
    assert not loaded.encoder.training
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert all(value.isfinite().all() for value in loaded.encoder.state_dict().values())


def test_the_shipped_weights_say_how_they_were_made() -> None:
    text = (TINY_WEIGHTS_DIR / "README.md").read_text()
    for messages in (
        "stvg-pretrain-tiny",
        "--seed 1",
        "--scenes 500",
        "Labels",
        "belong to no split",
    ):
        assert messages in text


UNKNOWN = [
    "",
    "imagenet",
    "random:",
    "random:-1",
    "random:1.5",
    "random:x",
    f"random:{1 << 63}",
    "random:" + 5000 * "1",
    "random:٣",
    "Tiny",
]


@pytest.mark.parametrize(
    "source",
    [
        *UNKNOWN,
        "torchvision",
        "torchvision:x",
        "mdetr:x",
        "hf:x",
        "ava",
        "ava:",
        "kinetics",
        "kinetics:",
    ],
)
def test_an_unknown_source_is_refused(source: str) -> None:
    message = (
        rf"weights '{source}' for motion: allowed are 'tiny' .*, 'ava:FILE', 'kinetics:FILE' and "
        rf"'random:SEED'"
    )
    with pytest.raises(InputError, match=message):
        load_backbone("motion", "tiny", source)


@pytest.mark.parametrize(
    "source", ["mdetr:x", "mdetr:x+hf:", "mdetr:+hf:y", "hf:", "torchvision", "ava:x"]
)
def test_an_unknown_source_of_text_is_refused(source: str) -> None:
    with pytest.raises(
        InputError,
        match=r"for text: allowed are 'tiny' .*, 'hf:DIR', 'mdetr:FILE\+hf:DIR' and 'random:SEED'",
    ):
        load_backbone("text", "full", source)


def test_no_shipped_weights_are_offered_for_swin() -> None:
    with pytest.raises(
        InputError,
        match="for swin: allowed are 'torchvision', 'torchvision:FILE' and 'random:SEED'",
    ):
        load_backbone("swin", "full", "ava:x")


@pytest.mark.parametrize(
    ("product", "text", "source"),
    [
        ("appearance", "torchvision", WeightSource("torchvision")),
        ("appearance", "torchvision:a:b.pth", WeightSource("torchvision", Path("a:b.pth"))),
        ("swin", "torchvision:~/c.pth", WeightSource("torchvision", Path.home() / "c.pth")),
        ("appearance", "mdetr:d+hf:e", WeightSource("mdetr", Path("d+hf:e"))),
        ("text", "mdetr:d+hf:~/e", WeightSource("mdetr", Path("d"), Path.home() / "e")),
        ("text", "mdetr:d+hf:e+hf:f", WeightSource("mdetr", Path("d+hf:e"), Path("f"))),
        ("text", "hf:/g", WeightSource("hf", Path("/g"))),
        ("motion", "kinetics:h", WeightSource("kinetics", Path("h"))),
        ("swin", "random:7", WeightSource("random", seed=7)),
    ],
)
def test_sources_are_parsed(product: str, text: str, source: WeightSource) -> None:
    assert parse_source(product, text) == source


def test_every_source_from_a_file_has_a_layout() -> None:
    forms = {
        (product, form.partition(":")[0])
        for product, spec in ENCODERS.items()
        for form in spec.source_forms
    }
    assert forms == {
        (product, kind) for product, spec in ENCODERS.items() for kind in spec.state_dict_layouts
    }
    assert set(ENCODERS) == set(ENCODED_PRODUCTS)


@pytest.mark.parametrize(
    ("source", "asked", "build"),
    [
        ("ava:x", None, "ava"),
        ("kinetics:x", None, "kinetics"),
        ("kinetics:x", "kinetics", "kinetics"),
        ("tiny", None, "ava"),
        ("random:0", None, "ava"),
        ("random:0", "kinetics", "kinetics"),
    ],
)
def test_slowfast_is_built_as_the_source_was(source: str, asked: str | None, build: str) -> None:
    assert slowfast_variant(parse_source("motion", source), asked) == build


@pytest.mark.parametrize(
    ("source", "asked", "own"),
    [("ava:x", "kinetics", "ava"), ("kinetics:x", "ava", "kinetics"), ("tiny", "kinetics", "ava")],
)
def test_slowfast_of_one_kind_with_weights_of_the_other_is_refused(
    source: str, asked: str, own: str
) -> None:
    kind = source.partition(":")[0]
    with pytest.raises(
        InputError,
        match=f"weights of kind '{kind}' are for SlowFast built for '{own}', not '{asked}': set "
        f"slowfast to {own}",
    ):
        load_backbone("motion", "tiny", source, asked)


@pytest.mark.parametrize("source", ["tiny", "random:0", "torchvision"])
def test_there_is_no_tiny_swin(source: str) -> None:
    with pytest.raises(
        InputError, match="there is no tiny swin: leave the product out, or use --backbones full"
    ):
        load_backbone("swin", "tiny", source)


def test_swin_is_drawn_by_its_seed() -> None:
    first, other = (load_backbone("swin", "full", source) for source in ("random:3", "random:4"))
    assert first.digest != other.digest
    assert first.report.loaded_keys == ()
    assert "swin weights random:3 (--backbones full), drawn from the seed: 1" in str(first.report)


def test_torchvisions_own_weights_are_full_size() -> None:
    with pytest.raises(
        InputError,
        match="torchvision's own weights are for --backbones full; the tiny backbones have",
    ):
        load_backbone("appearance", "tiny", "torchvision")


@pytest.mark.parametrize("product", ENCODED_PRODUCTS)
def test_the_shipped_weights_do_not_fit_full_backbones(product: str) -> None:
    with pytest.raises(
        InputError, match="shipped weights fit --backbones tiny only: give weights for the full"
    ):
        load_backbone(product, "full", "tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, r"missing \['0.bias'\], unexpected \[\], other shape \[\]"),
        ({"extra": torch.zeros(1)}, r"missing \[\], unexpected \['extra'\], other shape \[\]"),
        (
            {"1.weight": torch.zeros(9)},
            r"missing \[\], unexpected \[\], other shape \['1.weight'\]",
        ),
    ],
)
def test_what_does_not_fit_is_listed(change: dict[str, torch.Tensor | None], message: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = {
        key: value for key, value in {**module.state_dict(), **change}.items() if value is not None
    }
    with pytest.raises(InputError, match="some weights do not fit: " + message):
        load_strict(module, state, "some weights")


def test_what_fits_is_loaded() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_strict(target, source.state_dict(), "weights")
    assert torch.equal(target.weight, source.weight)


def test_the_digest_covers_names_shapes_and_values() -> None:
    encoder = build_encoder("appearance", "tiny")
    before = compute_weights_digest(encoder, "appearance")
    next(encoder.parameters()).data[0, 0, 0, 0] += 1
    assert compute_weights_digest(encoder, "appearance") != before


def test_slowfast_can_be_built_for_kinetics() -> None:
    clips = torch.zeros(1, 3, 8, 64, 64)
    with torch.no_grad():
        sides = [
            load_backbone("motion", "tiny", "random:0", kind).encoder(clips).shape[1:3]
            for kind in ("ava", "kinetics")
        ]
    assert sides == [(4, 4), (2, 2)]


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        InputError,
        match="device 'foo' is not available: allowed are auto, cpu, and cuda on a machine with a "
        "CUDA GPU",
    ):
        resolve_device("foo")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_that_holds_code_is_refused_as_that(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps({"model": {}, "args": Path("x")}, protocol=protocol))
    with pytest.raises(
        InputError,
        match=r"old.pth holds more than weights: it names pathlib\.\w+, and loading that could run "
        r"code",
    ):
        load_backbone("appearance", "tiny", f"torchvision:{path}")


def test_a_damaged_pickle_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4)[:-3])
    with pytest.raises(InputError, match=r"cut.pth is not a file of weights, or is damaged"):
        load_backbone("appearance", "tiny", f"torchvision:{path}")
