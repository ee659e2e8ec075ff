"""The text stream is transformers' RoBERTa; the shipped tokenizer encodes whatever a person may
write.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RobertaModel

from pipeline.encoders.text import (
    BOS,
    EOS,
    MAX_TOKENS,
    PAD,
    TOKENIZER_FILE,
    TextEncoder,
    get_vocab_size,
    load_shipped_tokenizer,
    tokenize,
)

SENTENCES = ["the red circle moves to the left.", "what spins?", "", "ein Hund läuft – 犬が走る 🐕"]


@pytest.fixture(scope="module")
def tiny_encoder() -> TextEncoder:
    return TextEncoder("tiny").eval()


def test_states_equal_transformers(tiny_encoder: TextEncoder) -> None:
    expected = RobertaModel(tiny_encoder.roberta.config, add_pooling_layer=False).eval()
    expected.load_state_dict(tiny_encoder.roberta.state_dict())
    tokens, mask = tokenize(SENTENCES)
    with torch.inference_mode():
        target = expected(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(tiny_encoder(tokens, mask)[mask], target[mask])


def test_an_encoder_without_its_own_tokenizer_takes_the_shipped_one(
    tiny_encoder: TextEncoder,
) -> None:
    assert all(
        torch.equal(current, shipped)
        for current, shipped in zip(
            tiny_encoder.tokenize(SENTENCES), tokenize(SENTENCES), strict=True
        )
    )
    assert tiny_encoder.fingerprint() == TOKENIZER_FILE.read_bytes()


def test_padding_does_not_change_states(tiny_encoder: TextEncoder) -> None:
    tokens, mask = tokenize(SENTENCES)
    with torch.inference_mode():
        together = tiny_encoder(tokens, mask)
        for row, text in enumerate(SENTENCES):
            alone = tiny_encoder(*tokenize([text]))[0]
            torch.testing.assert_close(together[row, mask[row]], alone, rtol=1e-4, atol=1e-5)


def test_full_is_roberta_base() -> None:
    with torch.device("meta"):
        encoder = TextEncoder("full")
    assert (
        encoder.channels,
        encoder.roberta.config.vocab_size,
        encoder.roberta.config.num_hidden_layers,
    ) == (768, 50265, 12)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 124_055_040


@given(st.text())
@settings(max_examples=200)
def test_any_string_encodes_and_is_read_back(text: str) -> None:
    """One leading space is the tokenizer's own; no token is padding, so the mask is one run."""
    tokens, mask = tokenize([text])
    assert tokens[0, 0] == BOS
    assert mask.all()
    if tokens.shape[1] < MAX_TOKENS:
        assert tokens[0, -1] == EOS
        assert load_shipped_tokenizer().decode(tokens[0, 1:-1].tolist()).removeprefix(
            " "
        ) == text.removeprefix(" ")


@pytest.mark.parametrize("text", ["<pad>", "a <s> b </s> c", "<mask><unk>"])
def test_a_spelled_special_token_is_words(text: str) -> None:
    tokens, mask = tokenize([text])
    assert mask.all()
    assert min(tokens[0, 1:-1].tolist()) > 4
    assert load_shipped_tokenizer().decode(tokens[0, 1:-1].tolist()).strip() == text


def test_long_texts_are_cut() -> None:
    tokens, mask = tokenize(["ü" * 1000, "short"])
    assert tokens.shape == (2, MAX_TOKENS)
    assert (tokens[0, 0], tokens[0, -1]) == (BOS, EOS)
    assert mask[0].all()
    assert not mask[1, 20:].any()


def test_padding_is_robertas() -> None:
    tokens, mask = tokenize(["a", "a much longer sentence"])
    assert (tokens[0, ~mask[0]] == PAD).all()
    assert (BOS, PAD, EOS) == (0, 1, 2)


def test_every_id_is_in_the_tiny_vocabulary(tiny_encoder: TextEncoder) -> None:
    assert get_vocab_size() == tiny_encoder.roberta.config.vocab_size
