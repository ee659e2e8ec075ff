"""The motion stream is pytorchvideo's SlowFast before its pooling, both pathways averaged over
time.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pipeline.encoders.motion import (
    ALPHA,
    KINETICS_MEAN,
    KINETICS_STD,
    MotionEncoder,
    select_slow_frames,
)


def clips(encoder: MotionEncoder, side: int, count: int = 1) -> torch.Tensor:
    return (
        torch.rand(
            count, 3, encoder.num_frames, side, side, generator=torch.Generator().manual_seed(0)
        )
        * 255
    )


def test_full_equals_pytorchvideos_blocks_by_hand() -> None:
    """Side 64: the network before its head is fully convolutional. The dilations are written out
    from its AVA model.
    """
    ava = MotionEncoder("full", "ava").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorchvideo.models.slowfast import create_slowfast

        dilations = ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2))
        expected = create_slowfast(
            model_depth=50,
            stage_conv_b_dilations=(dilations, dilations),
            stage_spatial_strides=((1, 2, 2, 1), (1, 2, 2, 1)),
        ).eval()
    blocks = nn.ModuleList(list(expected.blocks)[:5])
    blocks.load_state_dict(ava.blocks.state_dict())
    pictures = clips(ava, 64)
    fast = (pictures / 255 - KINETICS_MEAN) / KINETICS_STD
    paths = [fast[:, :, [0, 4, 8, 13, 17, 22, 26, 31]], fast]
    with torch.inference_mode():
        for block in blocks:
            paths = block(paths)
        target = torch.cat([paths[0].mean(2), paths[1].mean(2)], 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(ava(pictures), target, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "cells"), [("ava", 16), ("kinetics", 8)])
def test_map_sizes(kind: str, cells: int) -> None:
    """On PyTorch's meta device: shapes without the seconds."""
    with torch.device("meta"), torch.inference_mode():
        encoder = MotionEncoder("full", kind).eval()
        assert (encoder.num_frames, encoder.square_side, encoder.channels) == (32, 256, 2304)
        assert encoder(torch.zeros(2, 3, 32, 256, 256)).shape == (2, cells, cells, 2304)


def test_tiny_map() -> None:
    encoder = MotionEncoder("tiny").eval()
    assert (encoder.square_side, encoder.num_frames, encoder.channels) == (128, 8, 384)
    with torch.inference_mode():
        assert encoder(clips(encoder, 128)).shape == (1, 8, 8, 384)


def test_the_input_is_not_modified() -> None:
    encoder = MotionEncoder("tiny").eval()
    given = clips(encoder, 64)
    before = given.clone()
    with torch.inference_mode():
        encoder(given)
    assert torch.equal(given, before)


def test_slow_frames_reach_from_the_first_to_the_last() -> None:
    assert (
        select_slow_frames(32).tolist()
        == torch.linspace(0, 31, 8).long().tolist()
        == [0, 4, 8, 13, 17, 22, 26, 31]
    )
    assert select_slow_frames(8).tolist() == [0, 7]
    assert ALPHA == 4


def test_a_batch_equals_its_clips_alone() -> None:
    encoder = MotionEncoder("tiny").eval()
    given = clips(encoder, 64, count=3)
    with torch.inference_mode():
        torch.testing.assert_close(
            encoder(given), torch.cat([encoder(clip[None]) for clip in given]), rtol=1e-4, atol=1e-5
        )
