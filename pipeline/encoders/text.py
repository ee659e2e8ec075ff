"""Text: RoBERTa token states (transformers).

`full` is RoBERTa-base (768 channels), `tiny` the same class with 2 layers of 64 channels. Both take tokens from
the byte-level BPE that is shipped here: any string encodes, but it is a small vocabulary made from the sentences
of `shapes`, right for `tiny` and for random weights only. Real RoBERTa weights bring their own tokenizer: so an
encoder is asked to tokenize (`encoder.tokenize(texts)`), and each knows how.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.huggingface_roberta import (
    MAX_TOKENS,
    HuggingFaceTokenizer,
    RobertaArchitecture,
)

TOKENIZER_FILE = Path(__file__).parent / "tiny" / "tokenizer.json"
BOS, PAD, EOS = 0, 1, 2
"""RoBERTa's ids of `<s>`, `<pad>` and `</s>`."""


class TextEncoder(nn.Module):
    """Token ids to token states. `channels` is C.

    `shape` describes another RoBERTa than the `size`'s; a `tokenizer` that is set replaces the shipped one.
    """

    tokenizer: HuggingFaceTokenizer | None = None

    def __init__(self, size: str = "full", architecture: RobertaArchitecture | None = None) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.architecture = architecture
        config = RobertaConfig(
            **(_get_config_values(size) if architecture is None else architecture.model_dump())
        )
        self.channels: int = config.hidden_size
        self.roberta = RobertaModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Ids `[n, L]` and mask `[n, L]` (True at tokens) → states `[n, L, C]`."""
        return self.roberta(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Sentences to what `forward` takes, by the tokenizer that belongs to the weights."""
        return tokenize(texts) if self.tokenizer is None else self.tokenizer(texts)

    def fingerprint(self) -> bytes:
        """What decides the outputs beside the parameters: the tokenizer, and the settings that a folder brought."""
        content = (
            TOKENIZER_FILE.read_bytes() if self.tokenizer is None else self.tokenizer.fingerprint
        )
        return (
            content
            if self.architecture is None
            else content + json.dumps(self.architecture.model_dump(), sort_keys=True).encode()
        )


def _get_config_values(size: str) -> dict[str, Any]:
    """RoBERTa-base, or the small network of the same class."""
    shared = {
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": PAD,
        "layer_norm_eps": 1e-5,
    }
    if size == "full":
        return {"vocab_size": 50265, **shared}
    small = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    return {"vocab_size": get_vocab_size(), **small, **shared}


@lru_cache(maxsize=1)
def load_shipped_tokenizer() -> Any:
    """The shipped byte-level BPE. A sentence that spells a special token, such as `<pad>`, is words like any other."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(TOKENIZER_FILE))
    made.encode_special_tokens = True
    return made


def get_vocab_size() -> int:
    return load_shipped_tokenizer().get_vocab_size()


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Sentences to padded ids `[n, L]` and mask `[n, L]`, each as `<s> … </s>`, cut at `MAX_TOKENS`."""
    ids = [
        [BOS, *load_shipped_tokenizer().encode(text).ids[: MAX_TOKENS - 2], EOS] for text in texts
    ]
    length = max(len(row) for row in ids)
    tokens = torch.full((len(ids), length), PAD)
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = torch.tensor(own)
    return tokens, tokens != PAD


def train_tokenizer(sentences: list[str], path: Path, vocab_size: int = 600) -> None:
    """Make the shipped tokenizer: RoBERTa's five special tokens, all 256 bytes, and merges learned from `sentences`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(sorted(sentences), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
