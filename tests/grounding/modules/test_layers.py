"""The feed-forward parts against torch's own layers (tolerance 1e-6)."""

from __future__ import annotations

import torch
from torch import nn

from grounding.modules.layers import MLP, FeedForward


def test_the_feed_forward_part_is_torch_s_encoder_layer_s() -> None:
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ours = FeedForward(8, 16, 0.0)
    ours.linear1.load_state_dict(reference.linear1.state_dict())
    ours.linear2.load_state_dict(reference.linear2.state_dict())
    x = torch.randn(3, 5, 8)
    expected = reference.norm2(x + reference._ff_block(x))
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


def test_the_feed_forward_part_drops_in_training_only() -> None:
    torch.manual_seed(0)
    ours, x = FeedForward(8, 16, 0.5), torch.randn(4, 8)
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))


def test_an_mlp_has_relu_between_its_layers_and_none_after() -> None:
    torch.manual_seed(0)
    ours = MLP(6, 5, 4, 3)
    reference = nn.Sequential(ours.layers[0], nn.ReLU(), ours.layers[1], nn.ReLU(), ours.layers[2])
    x = torch.randn(7, 2, 6)
    torch.testing.assert_close(ours(x), reference(x))
    assert (ours(x) < 0).any()


def test_an_mlp_of_two_widths_is_linear() -> None:
    ours, x = MLP(6, 3), torch.randn(2, 6)
    torch.testing.assert_close(ours(x), ours.layers[0](x))
