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
def assert_sharing_changes_nothing() -> Callable[..., None]:
    return _assert_sharing_changes_nothing


def _assert_sharing_changes_nothing(
    model: nn.Module,
    queries: list[ModelInputs],
    collate: Callable[[list[ModelInputs]], ModelInputs],
    names: tuple[str, ...],
    tolerance: float = 1e-5,
) -> None:
    """Two sentences about one video and one about another, of three queries: the outputs of these
    names, and what parameters are taught by them, are those of three videos.
    """
    first_query, same_video_query, separate_query = queries
    separate = collate(
        [
            first_query,
            replace(same_video_query, **{name: getattr(first_query, name) for name in OF_VIDEOS}),
            separate_query,
        ]
    )
    shared_inputs = {name: getattr(separate, name)[[0, 2]] for name in OF_VIDEOS}
    outputs, gradients = [], []
    for inputs in (
        replace(separate, **shared_inputs, video_indices=torch.tensor([0, 0, 1])),
        separate,
    ):
        out = model(inputs)
        outputs.append({name: getattr(out, name) for name in names})
        sum(
            tensor.triu().float().square().mean()
            for tensor in outputs[-1].values()
            if tensor.requires_grad
        ).backward()  # type: ignore[union-attr]
        gradients.append(
            {
                name: tensor.grad
                for name, tensor in model.named_parameters()
                if tensor.grad is not None
            }
        )
        model.zero_grad()
    for name in names:
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-5, rtol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("project_") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], atol=tolerance, rtol=10 * tolerance
        )
