"""Operation counts, against convolutions of ones, whose outputs sum up the products."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.flops import count_flops, count_taps
from pipeline.encoders.optimize import OneDnnConv

CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1-D": (nn.Conv1d(3, 4, 5, padding=4), (2, 3, 7)),
    "2-D, without padding": (nn.Conv2d(3, 5, 3), (2, 3, 6, 7)),
    "2-D, stride and padding": (
        nn.Conv2d(3, 4, (3, 7), stride=(2, 3), padding=(1, 3)),
        (2, 3, 9, 8),
    ),
    "2-D, dilation": (nn.Conv2d(2, 4, 3, padding=2, dilation=2), (1, 2, 5, 6)),
    "2-D, groups": (nn.Conv2d(6, 4, 3, padding="same", groups=2), (3, 6, 5, 5)),
    "2-D, one channel a group": (nn.Conv2d(4, 4, 5, padding=2, groups=4), (1, 4, 3, 4)),
    "3-D": (
        nn.Conv3d(2, 3, (3, 1, 7), stride=(1, 2, 2), padding=(1, 0, 3), dilation=(2, 1, 1)),
        (1, 2, 5, 4, 9),
    ),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 4, 5),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("first", [True, False], ids=["first layer", "later layer"])
def test_operations_of_a_convolution_are_those_on_its_input_forward_and_backward(
    name: str, first: bool
) -> None:
    layer, shape = CONVOLUTIONS[name]
    for parameter in layer.parameters():
        nn.init.ones_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    inputs = torch.ones(shape, requires_grad=not first)
    outputs: list[Any] = []
    forward = count_flops(lambda: outputs.append(layer(inputs)))
    assert forward == 2 * outputs[0].sum()
    layer.zero_grad()
    backward = count_flops(lambda: outputs[0].sum().backward())
    gradient_sum = sum(
        tensor.grad.sum()
        for tensor in (layer.weight, inputs)
        if isinstance(tensor, torch.Tensor) and tensor.grad is not None
    )
    assert backward == 2 * gradient_sum == (2 if first else 4) * outputs[0].sum()


@pytest.mark.parametrize("name", ["2-D, stride and padding", "2-D, one channel a group", "3-D"])
def test_those_of_a_frozen_convolution_are_the_same(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    optimized = OneDnnConv(copy.deepcopy(layer))  # type: ignore[arg-type]
    assert count_flops(lambda: optimized(torch.ones(shape))) == count_flops(
        lambda: layer(torch.ones(shape))
    )


def test_taps_are_those_that_a_loop_meets() -> None:
    for input_size, kernel, stride, padding, dilation in product(
        (1, 4, 7), (1, 2, 3), (1, 2), (0, 1, 3), (1, 2)
    ):
        output_size = (input_size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        padded = [*[0] * padding, *[1] * input_size, *[0] * padding]
        expected = sum(
            padded[begin + tap * dilation]
            for begin in range(0, len(padded), stride)[: max(output_size, 0)]
            for tap in range(kernel)
        )
        assert (
            count_taps(input_size, max(output_size, 0), kernel, stride, padding, dilation)
            == expected
        )


def test_operations_of_a_product_are_counted_forward_and_backward() -> None:
    left, right = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    assert count_flops(lambda: (left @ right).sum().backward()) == 3 * 2 * 3 * 4 * 5


def test_operations_of_a_network_that_learns_are_counted_in_inference_mode() -> None:
    layer = nn.Sequential(
        nn.Linear(3, 4), nn.Unflatten(0, (1, 1, 2)), nn.Conv2d(1, 1, 3, padding=1)
    )
    with torch.inference_mode():
        assert count_flops(lambda: layer(torch.ones(2, 3))) == 2 * 2 * 3 * 4 + 2 * count_taps(
            2, 2, 3, 1, 1, 1
        ) * count_taps(4, 4, 3, 1, 1, 1)
