"""Our attention is torch.nn.MultiheadAttention with the same weights (tolerance 1e-6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from grounding.modules.attention import Attention, PairedAttention, balance_text_attention

D, HEADS = 16, 4


@pytest.fixture
def attention_pair() -> tuple[Attention, nn.MultiheadAttention]:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(D, HEADS, batch_first=True).eval()
    nn.init.normal_(reference.in_proj_bias)
    nn.init.normal_(reference.out_proj.bias)
    attention = Attention(D, HEADS)
    attention.load_state_dict(reference.state_dict())
    return attention.eval(), reference


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query `[3, 5, d]`, key and value `[3, 7, d]`, and which keys count `[3, 7]`."""
    random = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(3, count, D, generator=random) for count in (5, 7, 7))
    mask = torch.rand(3, 7, generator=random) > 0.4
    mask[:, 2] = True
    return query, key, value, mask


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_torch_s(
    attention_pair: tuple[Attention, nn.MultiheadAttention],
    tokens: tuple[Tensor, ...],
    masked: bool,
) -> None:
    (attention, reference), (query, key, value, mask) = attention_pair, tokens
    expected, _ = reference(query, key, value, key_padding_mask=~mask if masked else None)
    torch.testing.assert_close(
        attention(query, key, value, mask if masked else None), expected, atol=1e-6, rtol=1e-5
    )


def test_a_query_that_is_the_key_is_projected_with_it(
    attention_pair: tuple[Attention, nn.MultiheadAttention], tokens: tuple[Tensor, ...]
) -> None:
    (attention, _), (_, key, value, mask) = attention_pair, tokens
    torch.testing.assert_close(
        attention(key, key, value, mask),
        attention(key.clone(), key, value, mask),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_its_weights_are_torch_s(
    attention_pair: tuple[Attention, nn.MultiheadAttention],
    tokens: tuple[Tensor, ...],
    masked: bool,
) -> None:
    (attention, reference), (query, key, value, mask) = attention_pair, tokens
    _, expected = reference(
        query, key, value, key_padding_mask=~mask if masked else None, need_weights=True
    )
    torch.testing.assert_close(
        attention.with_weights(query, key, value, mask if masked else None)[1],
        expected,
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0])
def test_the_scale_multiplies_the_logits_before_the_softmax(
    attention_pair: tuple[Attention, nn.MultiheadAttention],
    tokens: tuple[Tensor, ...],
    scale: float,
) -> None:
    (attention, _), (query, key, value, mask) = attention_pair, tokens
    wq, wk, _ = attention.in_proj_weight.chunk(3)
    bq, bk, _ = attention.in_proj_bias.chunk(3)
    q, k, width = query @ wq.T + bq, key @ wk.T + bk, D // HEADS
    expected = torch.zeros(3, 5, 7)
    for head in range(HEADS):
        columns = slice(head * width, (head + 1) * width)
        logits = scale * (q[..., columns] @ k[..., columns].transpose(1, 2)) / width**0.5
        logits[~mask[:, None].expand(-1, 5, -1)] = -torch.inf
        expected += logits.softmax(-1) / HEADS
    out, weights = attention.with_weights(query, key, value, mask, scale)
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out, attention(query, key, value, mask))


@pytest.mark.parametrize("masked", [False, True])
def test_a_query_alone_sees_what_it_sees_among_others(
    attention_pair: tuple[Attention, nn.MultiheadAttention],
    tokens: tuple[Tensor, ...],
    masked: bool,
) -> None:
    """Values, weights at a temperature, and gradients: alone it is computed in another order."""
    (attention, _), (query, key, value, mask) = attention_pair, tokens
    results = []
    for queries in (query, query[:, :1]):
        inputs = [tensor.clone().requires_grad_() for tensor in (queries, key, value)]
        out, weights = attention.with_weights(*inputs, mask if masked else None, 0.3)
        attention.zero_grad()
        (out[:, 0].square().sum() + weights[:, 0].square().sum()).backward()
        gradients = [
            inputs[0].grad[:, :1],
            inputs[1].grad,
            inputs[2].grad,
            *(parameter.grad.clone() for parameter in attention.parameters()),
        ]
        results.append(
            [
                out[:, :1],
                weights[:, :1],
                attention(queries, key, value, mask if masked else None)[:, :1],
                *gradients,
            ]
        )
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_masked_keys_weigh_nothing(
    attention_pair: tuple[Attention, nn.MultiheadAttention], tokens: tuple[Tensor, ...]
) -> None:
    (attention, _), (query, key, value, mask) = attention_pair, tokens
    _, weights = attention.with_weights(query, key, value, mask)
    assert (weights.transpose(1, 2)[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    changed = torch.where(mask[..., None], value, 1e6)
    torch.testing.assert_close(
        attention(query, key, changed, mask), attention(query, key, value, mask)
    )


def test_dropout_acts_in_training_only(tokens: tuple[Tensor, ...]) -> None:
    query, key, value, _ = tokens
    attention = Attention(D, HEADS, dropout=0.5)
    assert not torch.equal(attention(query, key, value), attention(query, key, value))
    attention.eval()
    assert torch.equal(attention(query, key, value), attention(query, key, value))


def test_a_new_one_starts_as_torch_s() -> None:
    torch.manual_seed(3)
    attention = Attention(D, HEADS)
    bound = (6 / (4 * D)) ** 0.5
    assert attention.in_proj_weight.abs().max() <= bound
    assert attention.in_proj_weight.abs().max() > 0.9 * bound
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()


def test_pairs_are_compared_part_by_part(tokens: tuple[Tensor, ...]) -> None:
    """In every head the logits are those of what with what and of where with where, together; keys
    that do not count have no weight.
    """
    torch.manual_seed(2)
    (queries, key, value, mask), paired = tokens, PairedAttention(D, HEADS)
    query = queries[:, :1]
    query_position, key_position = torch.randn_like(query), torch.randn_like(key)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2)

    logits = heads(paired.query_content(query)) @ heads(paired.key_content(key)).mT
    logits = (
        logits
        + heads(paired.query_position(query_position)) @ heads(paired.key_position(key_position)).mT
    ) / (2 * D // HEADS) ** 0.5
    weights = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    expected = paired.out((weights @ heads(paired.value(value))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(
        paired((query, query_position), (key, key_position), value, mask),
        expected,
        atol=1e-6,
        rtol=1e-5,
    )


def test_all_words_together_begin_as_loud_as_all_cells(tokens: tuple[Tensor, ...]) -> None:
    """Where nothing is preferred yet, half of the attention is the words', however few they are;
    what does not count stays unheard.
    """
    cells = torch.tensor([[True] * 5, [True] * 4 + [False]])
    words = torch.tensor([[True, True], [True, False]])
    logits = balance_text_attention(cells, words)
    shares = logits.softmax(-1)
    torch.testing.assert_close(shares[:, 5:].sum(-1), torch.full((2,), 0.5))
    assert (shares[:, :5] > 0).equal(cells)
    assert (shares[:, 5:] > 0).equal(words)
    attention = Attention(D, HEADS)
    with torch.no_grad():
        attention.in_proj_weight[: 2 * D] = 0  # queries and keys that say nothing
    _, _, value, _ = tokens
    value = value[:2]
    halves = (
        (value[0, :5].mean(0) + value[0, 5:].mean(0)) / 2,
        (value[1, :4].mean(0) + value[1, 5]) / 2,
    )
    plain = attention(value[:, :1], torch.stack(halves)[:, None], torch.stack(halves)[:, None])
    torch.testing.assert_close(
        attention(value[:, :1], value, value, logits), plain, atol=1e-6, rtol=1e-5
    )
