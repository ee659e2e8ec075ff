"""The floating point operations of a piece of work: what it must multiply and add, whatever computes it.

torch's own count takes every tap of a convolution for a product, also where it lies on padding, which no kernel needs to multiply; and
it counts the gradient of grouped weights as that of dense ones. Here a tap counts where it meets the input. Bytes are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from math import prod
from typing import Any

from torch import Size, ops
from torch.utils.flop_counter import FlopCounterMode


class _Untracked(nullcontext[None]):
    """Stands in for the tracker of modules, which cannot follow networks that learn in inference mode: all counts are of the whole."""

    parents = ("Global",)


def operations_of(work: Callable[[], object]) -> float:
    """Floating point operations of the matrix products, convolutions and attentions in it, backward with forward."""
    own = {ops.aten.convolution: _forward, ops.aten.convolution_backward: _backward, ops.aten.mkldnn_convolution: _of_onednn}
    counter = FlopCounterMode(display=False, custom_mapping=own)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with counter:
        work()
    return float(counter.get_total_flops())


def _forward(
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
    """Of `aten::convolution`: shapes `[n, channels, …]` and `[channels, channels of a group, …]` in the place of tensors."""
    return 2 * _products(seen, weight, out_shape, stride, padding, dilation, transposed)


def _of_onednn(
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
    return 2 * _products(seen, weight, out_shape, stride, padding, dilation, transposed=False)


def _backward(
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
    """Of `aten::convolution_backward`: the products of the forward pass once for each gradient that is `wanted` of (input, weight)."""
    return 2 * _products(seen, weight, gradient, stride, padding, dilation, transposed) * sum(wanted[:2])


def _products(
    seen: Size, weight: Size, made: Size, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool
) -> int:
    """Of a number of the input and one of the weight. A transposed convolution is one from its output to its input."""
    few, many = (seen, made) if transposed else (made, seen)
    axes = zip(many[2:], few[2:], weight[2:], stride, padding, dilation, strict=True)
    return seen[0] * weight[0] * weight[1] * prod(taps(*axis) for axis in axes)


@cache
def taps(inside: int, places: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many pairs of a place and a tap of the kernel meet one of `inside` cells, along one axis."""
    return sum(0 <= place * stride - padding + tap * dilation < inside for place in range(places) for tap in range(kernel))
