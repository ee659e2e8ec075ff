"""Groups of parameters and their rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.training.optimizer import build_optimizer
from pipeline.config import validate


class Trainable(nn.Module):
    """A network with encoders that train, but for the first layer of one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.image_encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.text_encoder = nn.Linear(2, 2)
        self.image_encoder[0].requires_grad_(False)


def recipe(**changes: Any) -> CsdvlTrainConfig:
    return validate(
        CsdvlTrainConfig, {"lr": 1.0, "lr_image": 0.1, "lr_text": 0.2, **changes}, "test"
    )


def test_encoders_have_rates_of_their_own() -> None:
    model = Trainable()
    groups = build_optimizer(model, recipe(weight_decay=0.5), 100)[0].param_groups
    assert [group["initial_lr"] for group in groups] == [1.0, 0.1, 0.2]
    assert [group["weight_decay"] for group in groups] == [0.5] * 3
    expected = [model.head, model.image_encoder[1], model.text_encoder]
    assert [list(map(id, group["params"])) for group in groups] == [
        list(map(id, part.parameters())) for part in expected
    ]


def test_a_network_on_cached_features_is_one_group() -> None:
    optimiser, schedule = build_optimizer(nn.Linear(2, 2), recipe(), 100)
    assert len(optimiser.param_groups) == 1
    assert schedule.get_last_lr() == [1.0]


@pytest.mark.parametrize(
    ("name", "kind", "after"), [("adam", torch.optim.Adam, 0.9), ("adamw", torch.optim.AdamW, 0.95)]
)
def test_adam_takes_the_decay_for_a_gradient_and_adamw_lessens_the_weight_by_it(
    name: str, kind: type, after: float
) -> None:
    """A weight 1 without a gradient of its own, decay ½, rate .1: Adam's first step is the rate
    whatever the gradient's size, here that of the decay; AdamW takes .1·½ of the weight.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimiser, _ = build_optimizer(model, recipe(lr=0.1, weight_decay=0.5, optimizer=name), 100)
    assert type(optimiser) is kind
    model.weight.grad = torch.zeros(1, 1)
    optimiser.step()
    assert model.weight.item() == pytest.approx(after, rel=1e-5)


def rates(steps: int, **changes: Any) -> list[list[float]]:
    """The rates of heads, image and text encoder at every step, and after the last."""
    optimiser, schedule = build_optimizer(Trainable(), recipe(**changes), steps)
    rows = []
    for _ in range(steps + 1):
        rows.append([group["lr"] for group in optimiser.param_groups])
        optimiser.step()
        schedule.step()
    return [list(column) for column in zip(*rows, strict=True)]


def test_the_text_encoder_warms_up_for_one_percent_then_falls_to_nothing() -> None:
    """Of 200 steps two: half, whole, whole; then a line that reaches 0 at step 200. The others are
    constant.
    """
    head, image, text = rates(200)
    assert head == [1.0] * 201
    assert image == [0.1] * 201
    assert text[:3] == pytest.approx([0.1, 0.2, 0.2])
    assert text[2:] == pytest.approx([0.2 * (200 - step) / 198 for step in range(2, 201)])
    assert text[-1] == 0


def test_one_cycle_is_of_the_heads_alone() -> None:
    """Of 40 steps two warm up (5 %), then half a cosine."""
    head, image, _ = rates(40, schedule="one-cycle")
    assert head[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert head[21] == pytest.approx(0.5)
    assert head[40] == pytest.approx(0)
    assert image == [0.1] * 41
