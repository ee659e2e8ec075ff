"""An encoder made quick computes what it did, and its digest stays that of the weights that were
loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders.appearance import AppearanceEncoder
from pipeline.encoders.motion import MotionEncoder
from pipeline.encoders.optimize import OneDnnConv, optimize_for_inference
from pipeline.encoders.swin import SwinEncoder
from pipeline.encoders.text import TextEncoder
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.shard_task import get_backbone, get_encoder
from pipeline.weights.load import compute_weights_digest, load_backbone

KINDS = [
    ("appearance", "tiny"),
    ("appearance", "full"),
    ("motion", "tiny"),
    ("motion", "full"),
    ("motion", "kinetics"),
]
CONVOLUTIONS = {"appearance": nn.Conv2d, "motion": nn.Conv3d}


def encoder_with_statistics(product: str, kind: str) -> nn.Module:
    """Every norm has scales (small ones at blocks' ends), shifts and statistics of its own."""
    size = "tiny" if kind == "tiny" else "full"
    encoder = (
        AppearanceEncoder(size)
        if product == "appearance"
        else MotionEncoder(size, "ava" if kind != "kinetics" else kind)
    )
    generator = torch.Generator().manual_seed(3)
    for name, norm in encoder.named_modules():
        if isinstance(getattr(norm, "running_var", None), Tensor):
            scale = 0.3 if name.endswith(("bn3", "norm_c")) else 1.0
            for values, low, high in (
                (norm.weight, 0.8, 1.2),
                (norm.bias, -0.2, 0.2),
                (norm.running_mean, -0.2, 0.2),
            ):
                values.data.uniform_(low * scale, high * scale, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return encoder.eval()


def given(encoder: nn.Module, count: int = 2) -> Tensor:
    shape = (3, encoder.num_frames, 64, 64) if isinstance(encoder, MotionEncoder) else (3, 65, 33)
    return torch.randint(
        0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def near(maps: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("product", "kind"), KINDS)
def test_maps_are_what_they_were_to_rounding(product: str, kind: str) -> None:
    encoder = encoder_with_statistics(product, kind)
    quick = optimize_for_inference(deepcopy(encoder))
    with torch.inference_mode():
        expected = encoder(given(encoder))
        near(quick(given(encoder)), expected)
    assert expected.std() > 0.01
    assert not [module for module in quick.modules() if "norm" in type(module).__name__.lower()]
    assert not [module for module in quick.modules() if isinstance(module, CONVOLUTIONS[product])]


@pytest.mark.parametrize("product", CONVOLUTIONS)
def test_a_batch_equals_its_parts_alone_and_the_input_is_not_modified(product: str) -> None:
    quick = optimize_for_inference(encoder_with_statistics(product, "tiny"))
    inputs = given(quick, 3)
    with torch.inference_mode():
        near(quick(inputs), torch.cat([quick(item[None]) for item in inputs]))
    assert torch.equal(inputs, given(quick, 3))


def test_a_second_time_changes_nothing() -> None:
    quick = optimize_for_inference(encoder_with_statistics("motion", "tiny"))
    before, maps = list(quick.modules()), quick(given(quick))
    assert optimize_for_inference(quick) is quick
    assert list(quick.modules()) == before
    assert torch.equal(quick(given(quick)), maps)


def test_without_onednn_norms_are_folded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    encoder = encoder_with_statistics("appearance", "tiny")
    quick = optimize_for_inference(deepcopy(encoder))
    assert not [
        module for module in quick.modules() if isinstance(module, OneDnnConv | nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        near(quick(given(encoder)), encoder(given(encoder)))


def test_an_encoder_that_has_no_batch_norms_stays_as_it_is() -> None:
    for encoder in (TextEncoder("tiny"), SwinEncoder()):
        modules, before = (
            list(encoder.modules()),
            {name: (value.clone(), value.stride()) for name, value in encoder.state_dict().items()},
        )
        assert list(optimize_for_inference(encoder).modules()) == modules
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, before[name][0])
            assert value.stride() == before[name][1]


def test_the_digest_is_that_of_the_weights_as_they_were_loaded() -> None:
    config = ExtractConfig.model_validate(
        {"backbones": "tiny", "weights": "random:5", "device": "cpu"}
    )
    for product in CONVOLUTIONS:
        loaded = load_backbone(product, "tiny", "random:5")
        quick = get_encoder(product, config)
        assert (
            get_backbone(product, config).digest
            == loaded.digest
            == compute_weights_digest(loaded.encoder, product)
        )
        with torch.inference_mode():
            near(quick(given(quick)), loaded.encoder(given(quick)))
