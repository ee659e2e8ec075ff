"""The feed-forward parts against torch's own layers (tolerance 1e-6)."""

from __future__ import annotations

import torch
from torch import nn

from grounding.modules.layers import MLP, FeedForward


def test_the_feed_forward_part_is_torch_s_encoder_layer_s() -> None:
    torch.manual_seed(0)
    reference = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = FeedForward(8, 16, 0.0)
    module.linear1.load_state_dict(reference.linear1.state_dict())
    module.linear2.load_state_dict(reference.linear2.state_dict())
    x = torch.randn(3, 5, 8)
    expected = reference.norm2(x + reference._ff_block(x))
    torch.testing.assert_close(module(x), expected, atol=1e-6, rtol=1e-5)


def test_the_feed_forward_part_drops_in_training_only() -> None:
    torch.manual_seed(0)
    module, x = FeedForward(8, 16, 0.5), torch.randn(4, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_an_mlp_has_relu_between_its_layers_and_none_after() -> None:
    torch.manual_seed(0)
    module = MLP(6, 5, 4, 3)
    reference = nn.Sequential(
        module.layers[0], nn.ReLU(), module.layers[1], nn.ReLU(), module.layers[2]
    )
    x = torch.randn(7, 2, 6)
    torch.testing.assert_close(module(x), reference(x))
    assert (module(x) < 0).any()


def test_an_mlp_of_two_widths_is_linear() -> None:
    module, x = MLP(6, 3), torch.randn(2, 6)
    torch.testing.assert_close(module(x), module.layers[0](x))
