"""Files that are not what they should be: none is run, none is taken for another, each is named
with its fault.
"""

from __future__ import annotations

import os
import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.motion import MotionEncoder
from pipeline.errors import InputError
from pipeline.weights.checkpoint_files import (
    LoadReport,
    load_strict,
    read_pickle,
    read_state_dict,
)
from pipeline.weights.encoder_specs import ENCODERS
from pipeline.weights.load import load_backbone

KINDS = ("torchvision", "mdetr", "ava", "kinetics", "hf")


class Runs:
    """Its pickle makes a folder when it is loaded by Python's own rules."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


class Unknown:
    pass


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    """What a `torchvision:FILE` for the tiny network holds."""
    return {
        name.removeprefix("body."): value
        for name, value in AppearanceEncoder("tiny").state_dict().items()
    }


@pytest.fixture
def load_content(tmp_path: Path) -> Callable[[Any], Any]:
    """Save a content and load it as the tiny network's weights."""

    def load(content: Any) -> Any:
        torch.save(content, tmp_path / "net.pth")
        return load_backbone("appearance", "tiny", f"torchvision:{tmp_path / 'net.pth'}")

    return load


def test_what_fits_is_loaded_and_told(
    load_content: Callable[[Any], Any], state_dict: dict[str, Tensor]
) -> None:
    head = {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    loaded = load_content(state_dict | head)
    counters = [name for name in state_dict if name.endswith("num_batches_tracked")]
    assert set(loaded.report.ignored_keys) == {*head, *counters}
    assert set(loaded.report.loaded_keys) == set(state_dict) - set(counters)
    for name in loaded.report.loaded_keys:
        assert torch.equal(loaded.encoder.state_dict()[f"body.{name}"], state_dict[name])
    count, left = len(state_dict) - len(counters), sorted([*head, *counters])
    assert str(loaded.report).endswith(
        f"net.pth (--backbones tiny): loaded {count} of {count}, none missing, none unexpected; "
        f"{len(left)} left over, as documented: {', '.join(left[:5])} and {len(left) - 5} more"
    )
    assert all(name in loaded.report.format_keys() for name in state_dict | head)


def test_half_precision_is_widened(
    load_content: Callable[[Any], Any], state_dict: dict[str, Tensor]
) -> None:
    loaded = load_content(
        {
            name: value.half() if value.is_floating_point() else value
            for name, value in state_dict.items()
        }
    ).encoder
    assert loaded.dtype == torch.float32
    assert torch.equal(
        loaded.state_dict()["body.conv1.weight"], state_dict["conv1.weight"].half().float()
    )


def test_a_missing_key(load_content: Callable[[Any], Any], state_dict: dict[str, Tensor]) -> None:
    del state_dict["layer1.0.conv1.weight"]
    with pytest.raises(
        InputError, match=r"missing \['layer1.0.conv1.weight'\], unexpected \[\], other shape \[\]"
    ):
        load_content(state_dict)


def test_an_extra_key(load_content: Callable[[Any], Any], state_dict: dict[str, Tensor]) -> None:
    with pytest.raises(
        InputError, match=r"missing \[\], unexpected \['layer5.weight'\], other shape \[\]"
    ):
        load_content(state_dict | {"layer5.weight": torch.zeros(1)})


def test_another_shape(load_content: Callable[[Any], Any], state_dict: dict[str, Tensor]) -> None:
    message = r"other shape \['bn1.bias'\] \(bn1.bias: \[7\] for \[64\]\)"
    with pytest.raises(InputError, match=message):
        load_content(state_dict | {"bn1.bias": torch.zeros(7)})


def test_another_architecture(load_content: Callable[[Any], Any]) -> None:
    message = (
        r"do not fit: missing \['layer1.0.downsample.* unexpected \['layer1.1.* and \d+ more, "
        r"other shape .* and \d+ more"
    )
    with pytest.raises(InputError, match=message):
        load_content(resnet18(weights=None).state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(
    load_content: Callable[[Any], Any], state_dict: dict[str, Tensor], value: float
) -> None:
    state_dict["conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"are damaged: not finite \['conv1.weight'\]"):
        load_content(state_dict)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "does not hold a state dict, which maps names to tensors, but a list"),
        ({}, "does not hold a state dict"),
        (torch.zeros(3), "does not hold a state dict, which maps names to tensors, but a Tensor"),
        ({"a": 1}, "does not hold a state dict: entry 'a' is a int, not a plain tensor"),
        ({1: torch.zeros(1)}, "does not hold a state dict: entry 1 is a Tensor"),
        ({"a": torch.eye(2).to_sparse()}, "entry 'a' is a Tensor, not a plain tensor"),
        ({"a": torch.zeros(2, device="meta")}, "entry 'a' is a Tensor, not a plain tensor"),
    ],
)
def test_what_is_not_a_state_dict(
    load_content: Callable[[Any], Any], content: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_content(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, kind: str, form: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    content = {"model_state": {}, "model": {}, "args": Runs(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        InputError,
        match=r"evil.pth (holds more than weights: it names \w+\.mkdir, .* was not loaded|is not a "
        r"file of weights)",
    ):
        read_state_dict(kind, path)
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists(), "this pickle must be one that runs code"


def test_what_a_pickle_names_is_told(tmp_path: Path) -> None:
    torch.save({"model": Runs(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(
        InputError,
        match=r"holds more than weights: it names \w+\.mkdir, .* so it was not loaded; save its "
        r"state dict alone",
    ):
        read_state_dict("mdetr", tmp_path / "evil.pth")


def test_settings_are_let_through_for_mdetr_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(
        {
            "model": {"a": torch.ones(1)},
            "model_state": {"blocks.a": torch.ones(1)},
            "args": Namespace(lr=1),
        },
        path,
    )
    assert read_state_dict("mdetr", path) == {"a": torch.ones(1)}
    for kind in set(KINDS) - {"mdetr"}:
        with pytest.raises(InputError, match=r"it names argparse\.Namespace"):
            read_state_dict(kind, path)
    torch.save({"model": {"a": torch.ones(1)}, "args": Namespace(thing=Unknown())}, path)
    with pytest.raises(InputError, match=r"it names \S*Unknown"):
        read_state_dict("mdetr", path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file(
    tmp_path: Path, state_dict: dict[str, Tensor], zipped: bool, share: float
) -> None:
    path = tmp_path / "net.pth"
    torch.save(state_dict, path, _use_new_zipfile_serialization=zipped)
    complete = path.read_bytes()
    path.write_bytes(complete[: int(share * len(complete))])
    with pytest.raises(InputError, match=r"net\.pth is not a file of weights, or is damaged"):
        read_state_dict("torchvision", path)


def test_a_flipped_bit(tmp_path: Path, state_dict: dict[str, Tensor]) -> None:
    path = tmp_path / "net.pth"
    torch.save(state_dict, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"net.pth is damaged: the checksum of its part net/data/\d+ is wrong"
    ):
        read_state_dict("torchvision", path)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404</html>",
        b"PK\x03\x04 not a zip",
        bytes(range(256)) * 40,
        b"\x80\x02.",
        b"version https://git-lfs",
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.pth is not a file of weights, or is damaged"):
        read_pickle(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_a_file_that_is_absent_or_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"weights file .*{name} does not exist"):
        read_state_dict("hf", tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"weights file .*{name} is not a file"):
        read_state_dict("hf", tmp_path / name)


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(
        InputError, match=r"model\.safetensors is not a safetensors file, or is damaged"
    ):
        read_state_dict("hf", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "mdetr",
            r"is not an MDETR checkpoint: it has no model_ema or model \(it holds state_dict, "
            r"epoch\)",
        ),
        (
            "ava",
            r"is not a checkpoint of pytorchvideo's model zoo: it has no model_state \(it "
            r"holds state_dict, epoch\)",
        ),
        ("kinetics", r"it has no model_state"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path: Path, kind: str, message: str) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "net.pth")
    with pytest.raises(InputError, match=message):
        read_state_dict(kind, tmp_path / "net.pth")
    torch.save(torch.zeros(1), tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"\(it holds none\)"):
        read_state_dict(kind, tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("kind", "true", "prefix"), [("ava", "kinetics", ""), ("kinetics", "ava", "model.")]
)
def test_one_slowfast_is_not_taken_for_the_other(
    tmp_path: Path, kind: str, true: str, prefix: str
) -> None:
    """At full size their shapes are the same; only the names tell."""
    state = {
        prefix + name: value for name, value in MotionEncoder("tiny", true).state_dict().items()
    }
    path = tmp_path / "net.pyth"
    torch.save({"model_state": state}, path)
    with pytest.raises(
        InputError,
        match=rf"holds a network of kind '{true}', not '{kind}', by its names .* write "
        rf"{true}:{re.escape(str(path))}",
    ):
        load_backbone("motion", "tiny", f"{kind}:{path}")
    assert load_backbone("motion", "tiny", f"{true}:{path}").encoder.variant == true


def test_an_mdetr_without_the_part_that_is_asked_for(tmp_path: Path) -> None:
    torch.save(
        {
            "model": {
                "transformer.decoder.norm.bias": torch.zeros(2),
                "extra.weight": torch.zeros(2),
            }
        },
        tmp_path / "mdetr.pth",
    )
    message = (
        r"missing \['backbone.0.body.bn1.bias', .* and \d+ more, unexpected \['extra.weight'\], "
        r"other shape \[\]"
    )
    with pytest.raises(InputError, match=message):
        load_backbone("appearance", "tiny", f"mdetr:{tmp_path / 'mdetr.pth'}")


def test_names_of_a_layout_are_the_files() -> None:
    module = torch.nn.ModuleDict({"body": torch.nn.Linear(1, 1)})
    state = {
        "backbone.0.body.weight": torch.full((1, 1), 3.0),
        "backbone.0.body.bias": torch.zeros(1),
        "class_embed.bias": torch.zeros(1),
    }
    report = load_strict(module, state, "it", ENCODERS["appearance"].state_dict_layouts["mdetr"])
    names = ("backbone.0.body.bias", "backbone.0.body.weight")
    assert report == LoadReport("it", 2, names, ignored_keys=("class_embed.bias",))
    assert module["body"].weight.item() == 3
