"""torchvision's own weights come from torch hub's cache, and only as the whole files they should
be.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torchvision.models import ResNet101_Weights
from torchvision.models.video import Swin3D_T_Weights, swin3d_t

from pipeline.errors import InputError
from pipeline.weights import torch_hub
from pipeline.weights.load import load_backbone
from pipeline.weights.torch_hub import get_torchvision_file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def publish(monkeypatch: pytest.MonkeyPatch, product: str, content: bytes) -> str:
    """Let `content` be what torchvision publishes for a product; returns its file name."""
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(
        torch_hub.TORCHVISION_WEIGHTS,
        product,
        SimpleNamespace(url=f"https://example.org/models/{name}"),
    )
    return name


def test_which_weights_they_are() -> None:
    assert torch_hub.TORCHVISION_WEIGHTS == {
        "appearance": ResNet101_Weights.IMAGENET1K_V1,
        "swin": Swin3D_T_Weights.KINETICS400_V1,
    }


@pytest.mark.parametrize(
    ("product", "name"),
    [("appearance", "resnet101-63fe2227.pth"), ("swin", "swin3d_t-7615ae03.pth")],
)
def test_where_to_put_an_absent_file_is_told(cache: Path, product: str, name: str) -> None:
    message = (
        rf"cannot be fetched \(.*no network.*\): put https://\S+/{name} at {cache / name}, or give "
        rf"the file: {product}=torchvision:FILE"
    )
    with pytest.raises(InputError, match=message):
        load_backbone(product, "full", "torchvision")


def test_a_whole_cached_file_is_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = swin3d_t(weights=None)
    torch.save(expected.state_dict(), tmp_path / "made.pth")
    name = publish(monkeypatch, "swin", (tmp_path / "made.pth").read_bytes())
    cache.mkdir(parents=True)
    (tmp_path / "made.pth").rename(cache / name)
    loaded = load_backbone("swin", "full", "torchvision")
    assert loaded.source == "torchvision"
    assert torch.equal(loaded.encoder.state_dict()["body.norm.weight"], expected.norm.weight)
    assert loaded.digest == load_backbone("swin", "full", f"torchvision:{cache / name}").digest


def test_an_absent_file_is_fetched_into_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(monkeypatch, "appearance", b"weights")

    def fetch(url: str, target: str, digest: str, progress: bool) -> None:
        assert (url, digest) == (f"https://example.org/models/{name}", name[4:12])
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert get_torchvision_file("appearance") == cache / name


def test_a_damaged_cached_file_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = publish(monkeypatch, "appearance", b"weights")
    cache.mkdir(parents=True)
    (cache / name).write_bytes(b"weight")
    with pytest.raises(
        InputError,
        match=rf"{name} is damaged or another file: its SHA-256 begins with \w{{8}}, not "
        rf"{name[4:12]}; delete it",
    ):
        get_torchvision_file("appearance")
