"""Checkpointed layers: equal outputs, gradients, random numbers and names, less stored memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from grounding.modules.activation_checkpointing import (
    CheckpointedLayer,
    checkpoint_layers,
    enable_activation_checkpointing,
)
from grounding.modules.layers import EncoderLayer


class Stack(nn.Module):
    """Encoder layers with dropout, and a sequence of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(16, 2, 32, 0.3) for _ in range(2))
        self.blocks = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions=None, mask=None)
        return self.blocks(x)


@pytest.fixture
def stack() -> Stack:
    torch.manual_seed(0)
    return Stack()


def run_step(model: nn.Module) -> tuple[list[Tensor], int]:
    """Output, gradients and the next random number of one step, and the bytes kept for backward."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.randn(3, 50, 16))

    output.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [output, *gradients, torch.rand(1)], sum(sizes.values())


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_a_step_is_equal_to_the_bit_and_keeps_less(
    stack: Stack, container: type[nn.ModuleList | nn.Sequential]
) -> None:
    checkpointed = copy.deepcopy(stack)
    checkpoint_layers(checkpointed, container)

    expected, stored = run_step(stack)
    result, stored_checkpointed = run_step(checkpointed)

    torch.testing.assert_close(result, expected, atol=0, rtol=0)
    if container is nn.ModuleList:
        assert stored_checkpointed < 0.6 * stored


def test_names_and_classes_stay(stack: Stack) -> None:
    parameters = list(dict(stack.named_parameters()))
    keys = list(stack.state_dict())
    checkpoint_layers(stack)

    assert list(dict(stack.named_parameters())) == parameters
    assert list(stack.state_dict()) == keys
    for layer in stack.layers:
        assert isinstance(layer, EncoderLayer)
        assert isinstance(layer, CheckpointedLayer)
    assert not isinstance(stack.blocks[0], CheckpointedLayer)


def test_other_instances_of_a_class_are_not_checkpointed(stack: Stack) -> None:
    other = copy.deepcopy(stack)
    checkpoint_layers(stack)

    assert type(other.layers[0]) is EncoderLayer
    assert isinstance(copy.deepcopy(stack).layers[0], CheckpointedLayer)


def test_a_second_call_changes_nothing(stack: Stack) -> None:
    checkpoint_layers(stack)
    classes = [type(layer) for layer in stack.layers]
    checkpoint_layers(stack)

    assert [type(layer) for layer in stack.layers] == classes


def test_a_model_may_choose_its_layers() -> None:
    class Chooser(Stack):
        def enable_activation_checkpointing(self) -> None:
            checkpoint_layers(self, nn.Sequential)

    model = Chooser()
    enable_activation_checkpointing(model)

    assert isinstance(model.blocks[0], CheckpointedLayer)
    assert not isinstance(model.layers[0], CheckpointedLayer)
