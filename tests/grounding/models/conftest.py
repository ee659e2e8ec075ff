"""What every system is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from grounding.structures.inputs import ModelInputs

OF_VIDEOS = ("appearance", "map_size", "motion", "picture_in_square")


@pytest.fixture
def shared_is_apart() -> Callable[..., None]:
    return assert_shared_is_apart


def assert_shared_is_apart(
    model: nn.Module,
    queries: list[ModelInputs],
    together: Callable[[list[ModelInputs]], ModelInputs],
    names: tuple[str, ...],
    tolerance: float = 1e-5,
) -> None:
    """Two sentences about one video and one about another, of three queries: the outputs of these
    names, and what parameters are taught by them, are those of three videos.
    """
    first, other, alone = queries
    apart = together(
        [first, replace(other, **{name: getattr(first, name) for name in OF_VIDEOS}), alone]
    )
    once = {name: getattr(apart, name)[[0, 2]] for name in OF_VIDEOS}
    answers, taught = [], []
    for inputs in (replace(apart, **once, video_indices=torch.tensor([0, 0, 1])), apart):
        out = model(inputs)
        answers.append({name: getattr(out, name) for name in names})
        sum(
            own.triu().float().square().mean() for own in answers[-1].values() if own.requires_grad
        ).backward()  # type: ignore[union-attr]
        taught.append(
            {name: own.grad for name, own in model.named_parameters() if own.grad is not None}
        )
        model.zero_grad()
    for name in names:
        torch.testing.assert_close(answers[0][name], answers[1][name], atol=1e-5, rtol=1e-5)
    assert taught[0].keys() == taught[1].keys()
    assert any(name.startswith("project_") for name in taught[0])
    for name, learned in taught[0].items():
        torch.testing.assert_close(learned, taught[1][name], atol=tolerance, rtol=10 * tolerance)
