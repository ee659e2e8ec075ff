"""Number of floating point operations that a computation needs, whatever kernel computes it.

torch's own counter has two differences. It counts every tap of a convolution, including taps on
padding, which no kernel has to multiply. It counts the weight gradient of a grouped convolution as
a dense one. Here a tap counts only if it meets the input. Bytes are not counted.
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
    """Replacement of the module tracker, which fails for trainable networks in inference mode.

    All operations count for the root module.
    """

    parents = ("Global",)


def count_flops(function: Callable[[], object]) -> float:
    """Count the operations of matrix products, convolutions and attention, forward and backward.

    Args:
        function: Computation to run under the counter.

    Returns:
        Number of floating point operations.
    """
    conv_formulas = {
        ops.aten.convolution: _conv_flops,
        ops.aten.convolution_backward: _conv_backward_flops,
        ops.aten.mkldnn_convolution: _onednn_conv_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=conv_formulas)
    counter.mod_tracker = _NoModuleTracker()  # type: ignore[assignment]

    with counter:
        function()

    return float(counter.get_total_flops())


def _conv_flops(
    inputs: Size,
    weight: Size,
    bias: Size | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *other_args: Any,
    out_shape: Size,
) -> int:
    """Count `aten::convolution`.

    Tensors are given as shapes: inputs `[N, C, …]`, weight `[C_out, C_in per group, …]`.
    """
    return 2 * _count_products(inputs, weight, out_shape, stride, padding, dilation, transposed)


def _onednn_conv_flops(
    inputs: Size,
    weight: Size,
    bias: Size | None,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    *other_args: Any,
    out_shape: Size,
) -> int:
    """Count `aten::mkldnn_convolution`."""
    products = _count_products(
        inputs, weight, out_shape, stride, padding, dilation, transposed=False
    )
    return 2 * products


def _conv_backward_flops(  # noqa: PLR0913  (torch's signature)
    gradient: Size,
    inputs: Size,
    weight: Size,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out_shape: Any,
) -> int:
    """Count `aten::convolution_backward`.

    Each gradient of input and weight that `output_mask` requests takes the forward products once.
    """
    products = _count_products(inputs, weight, gradient, stride, padding, dilation, transposed)
    num_gradients = sum(output_mask[:2])
    return 2 * products * num_gradients


def _count_products(
    inputs: Size,
    weight: Size,
    outputs: Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
) -> int:
    """Count the products of an input value and a weight.

    A transposed convolution is a convolution from its output to its input.
    """
    conv_inputs, conv_outputs = inputs, outputs
    if transposed:
        conv_inputs, conv_outputs = outputs, inputs

    axes = zip(
        conv_inputs[2:], conv_outputs[2:], weight[2:], stride, padding, dilation, strict=True
    )
    taps = prod(count_taps(*axis) for axis in axes)
    return inputs[0] * weight[0] * weight[1] * taps


@cache
def count_taps(
    input_size: int, output_size: int, kernel_size: int, stride: int, padding: int, dilation: int
) -> int:
    """Count the pairs of an output position and a kernel tap that meet the input, along one axis.

    Args:
        input_size: Cells of the input along the axis.
        output_size: Positions of the output along the axis.
        kernel_size: Taps of the kernel.
        stride: Cells between two positions.
        padding: Cells of padding before the input.
        dilation: Cells between two taps.

    Returns:
        Number of pairs that do not lie on padding.
    """
    count = 0
    for position in range(output_size):
        for tap in range(kernel_size):
            cell = position * stride - padding + tap * dilation
            count += 0 <= cell < input_size

    return count
