"""Video Swin-T is torchvision's network up to its last norm, with a map for every frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.video import Swin3D_T_Weights, SwinTransformer3d, swin3d_t

from pipeline.encoders.swin import WINDOW_FRAMES, SwinEncoder, split_frame_windows


@pytest.fixture(scope="module")
def torchvision_swin() -> SwinTransformer3d:
    torch.manual_seed(0)
    return swin3d_t(weights=None).eval()


@pytest.fixture(scope="module")
def encoder(torchvision_swin: SwinTransformer3d) -> SwinEncoder:
    return filled(SwinEncoder(), torchvision_swin)


def filled(encoder: SwinEncoder, theirs: SwinTransformer3d) -> SwinEncoder:
    encoder.body.load_state_dict(
        {key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    )
    return encoder.eval()


def frames(count: int, height: int = 70, width: int = 100, clips: int = 1) -> Tensor:
    return (
        torch.rand(clips, 3, count, height, width, generator=torch.Generator().manual_seed(1)) * 255
    )


def their_maps(model: SwinTransformer3d, pictures: Tensor) -> Tensor:
    """The library's forward before its pooling and head, with its own channel statistics."""
    preset = Swin3D_T_Weights.KINETICS400_V1.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preset.mean, preset.std))
    return model.norm(
        model.features(model.pos_drop(model.patch_embed((pictures / 255 - mean) / std)))
    )


def test_at_the_librarys_stride_it_is_the_librarys_network(
    torchvision_swin: SwinTransformer3d,
) -> None:
    with torch.inference_mode():
        expected = their_maps(torchvision_swin, frames(10))
        maps = filled(SwinEncoder(time_stride=2), torchvision_swin)(frames(10))
    assert expected.shape == (1, 5, 3, 4, 768)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_at_stride_one_it_is_the_librarys_network_with_that_stride(encoder: SwinEncoder) -> None:
    """Its patches set one frame apart, its input longer by a copy of the last frame."""
    model = swin3d_t(weights=None).eval()
    model.load_state_dict({**model.state_dict(), **encoder.body.state_dict()})
    model.patch_embed.proj.stride = model.patch_embed.tuple_patch_size = (1, 4, 4)
    pictures = frames(9)
    with torch.inference_mode():
        expected = their_maps(model, torch.cat([pictures, pictures[:, :, -1:]], 2))
        assert expected.shape[1] == 9
        torch.testing.assert_close(encoder(pictures), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("size", [(64, 96), (33, 31)])
def test_every_frame_has_a_map_with_a_cell_for_every_begun_stride(
    encoder: SwinEncoder, count: int, size: tuple[int, int]
) -> None:
    with torch.inference_mode():
        maps = encoder(frames(count, *size))
    assert maps.shape == (
        1,
        count,
        -(-size[0] // encoder.stride),
        -(-size[1] // encoder.stride),
        encoder.channels,
    )


def test_a_batch_equals_its_windows_alone(encoder: SwinEncoder) -> None:
    given = frames(4, clips=2)
    with torch.inference_mode():
        alone = torch.cat([encoder(window[None]) for window in given])
        torch.testing.assert_close(encoder(given), alone, rtol=1e-4, atol=1e-5)


def test_the_input_is_not_modified(encoder: SwinEncoder) -> None:
    given = frames(3)
    before = given.clone()
    with torch.inference_mode():
        encoder(given)
    assert torch.equal(given, before)


@pytest.mark.parametrize(
    ("count", "lengths"), [(0, []), (1, [1]), (16, [16]), (17, [16, 1]), (40, [16, 16, 8])]
)
def test_windows_follow_each_other_and_hold_every_frame_once(
    count: int, lengths: list[int]
) -> None:
    windows = split_frame_windows(count)
    assert [len(window) for window in windows] == lengths
    assert [frame for window in windows for frame in window] == list(range(count))
    assert WINDOW_FRAMES == 16
