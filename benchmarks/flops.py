"""The floating point operations of a piece of work: what it must multiply and add, whatever
computes it.

torch's own count takes every tap of a convolution for a product, also where it lies on padding,
which no kernel needs to multiply; and it counts the gradient of grouped weights as that of dense
ones. Here a tap counts where it meets the input. Bytes are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from math import prod
from typing import Any

from torch import Size, ops
from torch.utils.flop_counter import FlopCounterMode


class _NoModuleTracker(nullcontext[None]):
    """Stands in for the tracker of modules, which cannot follow networks that learn in inference
    mode: all counts are of the whole.
    """

    parents = ("Global",)


def count_flops(function: Callable[[], object]) -> float:
    """Floating point operations of the matrix products, convolutions and attentions in it, backward
    with forward.
    """
    own = {
        ops.aten.convolution: _conv_flops,
        ops.aten.convolution_backward: _conv_backward_flops,
        ops.aten.mkldnn_convolution: _onednn_conv_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=own)
    counter.mod_tracker = _NoModuleTracker()  # type: ignore[assignment]
    with counter:
        function()
    return float(counter.get_total_flops())


def _conv_flops(
    seen: Size,
    weight: Size,
    bias: Size | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *more: Any,
    out_shape: Size,
) -> int:
    """Of `aten::convolution`: shapes `[n, channels, …]` and `[channels, channels of a group, …]` in
    the place of tensors.
    """
    return 2 * _count_products(seen, weight, out_shape, stride, padding, dilation, transposed)


def _onednn_conv_flops(
    seen: Size,
    weight: Size,
    bias: Size | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *more: Any,
    out_shape: Size,
) -> int:
    """Of `aten::mkldnn_convolution`."""
    return 2 * _count_products(seen, weight, out_shape, stride, padding, dilation, transposed=False)


def _conv_backward_flops(
    gradient: Size,
    seen: Size,
    weight: Size,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    out_shape: Any,
) -> int:
    """Of `aten::convolution_backward`: the products of the forward pass once for each gradient that
    is `wanted` of (input, weight).
    """
    return (
        2
        * _count_products(seen, weight, gradient, stride, padding, dilation, transposed)
        * sum(wanted[:2])
    )


def _count_products(
    seen: Size,
    weight: Size,
    made: Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> int:
    """Of a number of the input and one of the weight. A transposed convolution is one from its
    output to its input.
    """
    few, many = (seen, made) if transposed else (made, seen)
    axes = zip(many[2:], few[2:], weight[2:], stride, padding, dilation, strict=True)
    return seen[0] * weight[0] * weight[1] * prod(count_taps(*axis) for axis in axes)


@cache
def count_taps(
    input_size: int, output_size: int, kernel_size: int, stride: int, padding: int, dilation: int
) -> int:
    """How many pairs of a place and a tap of the kernel meet one of `inside` cells, along one axis."""
    return sum(
        0 <= place * stride - padding + tap * dilation < input_size
        for place in range(output_size)
        for tap in range(kernel_size)
    )
