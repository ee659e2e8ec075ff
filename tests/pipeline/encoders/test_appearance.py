"""The appearance stream is torchvision's ResNet up to C5, with batch norms that do not move."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from pipeline.encoders.appearance import IMAGENET_MEAN, IMAGENET_STD, AppearanceEncoder

SIZES = [(64, 96), (65, 33), (31, 100)]


@pytest.fixture(scope="module")
def full_encoder() -> AppearanceEncoder:
    return AppearanceEncoder("full").eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 65, 33, generator=torch.Generator().manual_seed(0)) * 255


def test_full_equals_torchvisions_body(
    full_encoder: AppearanceEncoder, resnet: ResNet, images: torch.Tensor
) -> None:
    expected = resnet
    state = {
        key: value
        for key, value in expected.state_dict().items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }
    full_encoder.body.load_state_dict(state)
    normed = (images / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    stages = [
        getattr(expected, name)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    ]
    with torch.inference_mode():
        target = nn.Sequential(*stages)(normed).permute(0, 2, 3, 1)
        torch.testing.assert_close(full_encoder(images), target, rtol=1e-3, atol=1e-4)


def test_every_norm_of_full_is_frozen(full_encoder: AppearanceEncoder) -> None:
    norms = [module for module in full_encoder.modules() if "norm" in type(module).__name__.lower()]
    assert len(norms) == 104
    assert all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)


def test_frozen_norms_are_torchvisions_and_keep_what_is_kept_for_gradients_small(
    full_encoder: AppearanceEncoder, images: torch.Tensor
) -> None:
    """In float32 to the bit; among convolutions in bfloat16 torchvision's give float32."""
    current = next(norm for norm in full_encoder.modules() if isinstance(norm, FrozenBatchNorm2d))
    expected = FrozenBatchNorm2d(len(current.weight))
    for name, values in expected.state_dict().items():
        values.copy_(
            torch.rand(values.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5
        )
    fresh = type(current)(len(current.weight))
    fresh.load_state_dict(expected.state_dict())
    x = torch.randn(2, len(current.weight), 5, 4)
    assert torch.equal(fresh(x), expected(x))
    half = fresh(x.bfloat16())
    assert (half.dtype, expected(x.bfloat16()).dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(half.float(), expected(x), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert full_encoder(images).dtype == torch.bfloat16


def test_fresh_full_weights_stay_in_float16(images: torch.Tensor) -> None:
    """Frozen norms do not tame fresh weights: unscaled, 33 blocks reach 3e5."""
    with torch.inference_mode():
        maps = AppearanceEncoder("full").eval()(images)
    assert 0.01 < maps.std() < 10
    assert maps.abs().max() < 100


@pytest.mark.parametrize(("size", "stride", "channels"), [("full", 32, 2048), ("tiny", 16, 128)])
@pytest.mark.parametrize("shape", SIZES)
def test_a_map_has_a_cell_for_every_begun_stride(
    full_encoder: AppearanceEncoder, size: str, stride: int, channels: int, shape: tuple[int, int]
) -> None:
    encoder = full_encoder if size == "full" else AppearanceEncoder("tiny").eval()
    with torch.inference_mode():
        maps = encoder(torch.zeros(1, 3, *shape))
    assert maps.shape == (1, -(-shape[0] // stride), -(-shape[1] // stride), channels)
    assert (encoder.stride, encoder.channels) == (stride, channels)


def test_pictures_are_normalised_by_imagenets_statistics() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_a_batch_equals_its_pictures_alone(
    full_encoder: AppearanceEncoder, images: torch.Tensor, size: str
) -> None:
    encoder = full_encoder if size == "full" else AppearanceEncoder("tiny").eval()
    with torch.inference_mode():
        alone = torch.cat([encoder(picture[None]) for picture in images])
        torch.testing.assert_close(encoder(images), alone, rtol=1e-3, atol=1e-4)
