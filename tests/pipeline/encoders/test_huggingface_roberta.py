"""A Hugging Face folder that is not RoBERTa's, not whole, or not the weights' own, is refused with
the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from pipeline.encoders.huggingface_roberta import (
    find_weights_file,
    read_architecture,
    read_tokenizer,
)
from pipeline.encoders.text import TextEncoder, get_vocab_size
from pipeline.errors import InputError
from pipeline.weights.load import load_backbone

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


@pytest.fixture
def roberta_dir(tmp_path: Path, save_tokenizer: Callable[..., None]) -> Path:
    save_tokenizer(tmp_path / "roberta")
    RobertaModel(RobertaConfig(vocab_size=300, pad_token_id=1, **SMALL)).save_pretrained(
        tmp_path / "roberta"
    )
    return tmp_path / "roberta"


def load(folder: Path) -> Any:
    return load_backbone("text", "full", f"hf:{folder}")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_roberta_bases_config_is_understood(tmp_path: Path) -> None:
    """As its file has been since 2019, `TextEncoder("full")` is the same network."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,'
        ' "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,'
        ' "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,'
        ' "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265}'
    )
    with torch.device("meta"):
        messages, own = TextEncoder("full", read_architecture(tmp_path)), TextEncoder("full")
    assert messages.roberta.config.to_dict() == own.roberta.config.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model_type": "bert"},
            r"config.json does not describe a RoBERTa encoder: model_type: .*'roberta' \(got 'bert'\)",
        ),
        ({"is_decoder": True}, "does not describe a RoBERTa encoder: is_decoder"),
        (
            {"position_embedding_type": "relative_key"},
            "does not describe a RoBERTa encoder: position_embedding_type",
        ),
        ({"hidden_size": "wide"}, "does not describe a RoBERTa encoder: hidden_size"),
        ({"num_hidden_layers": 0}, "does not describe a RoBERTa encoder: num_hidden_layers"),
        ({"hidden_size": 33}, "config.json describes a network that cannot be built: .*33"),
        ({"hidden_act": "magic"}, "config.json describes a network that cannot be built: .*magic"),
        ({"num_hidden_layers": 2}, r"do not fit: missing \['encoder.layer.1.*unexpected \[\]"),
        (
            {"vocab_size": 299},
            "the tokenizer in .* has 300 entries, the weights have 299: give the folder of the tokenizer",
        ),
        ({"pad_token_id": 2}, "pads with id 1, the weights with 2: they do not belong together"),
    ],
)
def test_a_config_that_does_not_fit(
    roberta_dir: Path, values: dict[str, Any], message: str
) -> None:
    load(roberta_dir)
    change(roberta_dir, **values)
    with pytest.raises(InputError, match=message):
        load(roberta_dir)


def test_a_config_that_is_not_json(roberta_dir: Path) -> None:
    (roberta_dir / "config.json").write_text("{")
    with pytest.raises(
        InputError, match=r"config\.json does not describe a RoBERTa encoder: Invalid JSON"
    ):
        load(roberta_dir)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json: give a Hugging Face RoBERTa folder"),
        ("model.safetensors", "has neither model.safetensors nor pytorch_model.bin"),
        (
            "merges.txt",
            "has no tokenizer: put RoBERTa's tokenizer.json there, or its vocab.json and merges.txt",
        ),
        ("vocab.json", "has no tokenizer"),
    ],
)
def test_a_part_that_is_absent(roberta_dir: Path, name: str, message: str) -> None:
    (roberta_dir / name).unlink()
    with pytest.raises(InputError, match=message):
        load(roberta_dir)


def test_a_folder_that_is_absent_or_a_file(tmp_path: Path) -> None:
    for read in (read_architecture, find_weights_file, read_tokenizer):
        with pytest.raises(
            InputError, match="nothing does not exist: hf: expects a Hugging Face RoBERTa folder"
        ):
            read(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder: hf: expects"):
        load(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Magic"}}'])
def test_a_tokenizer_that_cannot_be_read(roberta_dir: Path, content: str) -> None:
    (roberta_dir / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"the tokenizer in .*roberta cannot be read as RoBERTa's"):
        load(roberta_dir)


def test_a_spelled_special_token_is_words(roberta_dir: Path) -> None:
    tokens, mask = load(roberta_dir).encoder.tokenize(["a <pad> </s> <mask>", "a"])
    assert min(tokens[0, 1:-1].tolist()) > 4
    assert mask.sum(1).tolist() == [tokens.shape[1], 3]


def test_mdetrs_text_weights_want_exactly_their_tokenizer(
    roberta_dir: Path, tmp_path: Path
) -> None:
    """The folder's has 300 entries: too few to be the one that MDETR was trained with."""
    torch.save({"model": {"transformer.text_encoder.a": torch.zeros(1)}}, tmp_path / "mdetr.pth")
    with pytest.raises(
        InputError,
        match=rf"has 300 entries, the weights have {get_vocab_size()}: give the folder of the tokenizer",
    ):
        load_backbone("text", "tiny", f"mdetr:{tmp_path / 'mdetr.pth'}+hf:{roberta_dir}")
