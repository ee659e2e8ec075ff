"""Text encoder: RoBERTa token states (transformers).

`full` is RoBERTa-base with 768 channels. `tiny` is the same class with 2 layers of 64 channels.
Both use the shipped byte-level BPE tokenizer. It encodes any string, but its small vocabulary was
trained on the sentences of `shapes`. It is suitable for `tiny` and for random weights only.
Published RoBERTa weights come with their own tokenizer. Therefore each encoder tokenizes its own
input (`encoder.tokenize(texts)`).
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
"""The shipped tokenizer."""
BOS = 0
"""RoBERTa's id of `<s>`."""
PAD = 1
"""RoBERTa's id of `<pad>`."""
EOS = 2
"""RoBERTa's id of `</s>`."""


class TextEncoder(nn.Module):
    """Encoder of token ids to token states.

    Args:
        size: `full` or `tiny`; ignored if an architecture is passed.
        architecture: Another RoBERTa architecture.

    Attributes:
        tokenizer: Tokenizer of the weights; None for the shipped one.
        architecture: As passed.
        channels: C, the channels of the states.
        roberta: The network.
    """

    tokenizer: HuggingFaceTokenizer | None = None

    def __init__(self, size: str = "full", architecture: RobertaArchitecture | None = None) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.architecture = architecture
        if architecture is None:
            config = RobertaConfig(**_get_config_values(size))
        else:
            config = RobertaConfig(**architecture.model_dump())
        self.channels: int = config.hidden_size
        self.roberta = RobertaModel(config, add_pooling_layer=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode sentences.

        Args:
            tokens: `[n, L]` int64, token ids.
            mask: `[n, L]` bool, True at tokens and False at padding.

        Returns:
            Token states `[n, L, C]`.
        """
        return self.roberta(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize sentences with the tokenizer that belongs to the weights.

        Args:
            texts: n sentences.

        Returns:
            Token ids `[n, L]` and mask `[n, L]`, the arguments of `forward`.
        """
        return tokenize(texts) if self.tokenizer is None else self.tokenizer(texts)

    def fingerprint(self) -> bytes:
        """Return the content that determines the outputs besides the parameters.

        Returns:
            Bytes of the tokenizer, and of the architecture if one was passed.
        """
        if self.tokenizer is None:
            content = TOKENIZER_FILE.read_bytes()
        else:
            content = self.tokenizer.fingerprint
        if self.architecture is None:
            return content
        return content + json.dumps(self.architecture.model_dump(), sort_keys=True).encode()


def _get_config_values(size: str) -> dict[str, Any]:
    """Return the configuration of RoBERTa-base, or of the small network of the same class."""
    values: dict[str, Any] = {
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": PAD,
        "layer_norm_eps": 1e-5,
    }
    if size == "full":
        return {"vocab_size": 50265, **values}

    tiny_values = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    return {"vocab_size": get_vocab_size(), **tiny_values, **values}


@lru_cache(maxsize=1)
def load_shipped_tokenizer() -> Any:
    """Load the shipped byte-level BPE tokenizer.

    A special token in a sentence, such as `<pad>`, is tokenized as plain text.

    Returns:
        A `tokenizers.Tokenizer`, cached.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
    tokenizer.encode_special_tokens = True
    return tokenizer


def get_vocab_size() -> int:
    """Return the vocabulary size of the shipped tokenizer."""
    return load_shipped_tokenizer().get_vocab_size()


def tokenize(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokenize sentences with the shipped tokenizer.

    Args:
        texts: n sentences. Sentences longer than `MAX_TOKENS` are cut.

    Returns:
        Token ids `[n, L]`, each row `<s> … </s>` and padding, and mask `[n, L]`, True at tokens.
    """
    tokenizer = load_shipped_tokenizer()
    token_ids = []
    for text in texts:
        inner_ids = tokenizer.encode(text).ids[: MAX_TOKENS - 2]
        token_ids.append([BOS, *inner_ids, EOS])

    # Pad to the longest sentence.
    max_length = max(len(row_ids) for row_ids in token_ids)
    tokens = torch.full((len(token_ids), max_length), PAD)
    for row, row_ids in enumerate(token_ids):
        tokens[row, : len(row_ids)] = torch.tensor(row_ids)
    return tokens, tokens != PAD


def train_tokenizer(sentences: list[str], path: Path, vocab_size: int = 600) -> None:
    """Train and save the shipped tokenizer.

    Its vocabulary holds RoBERTa's five special tokens, all 256 bytes, and learned merges.

    Args:
        sentences: Text to learn the merges from.
        path: File to write.
        vocab_size: Largest vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    # Sorted sentences make the result independent of their order.
    tokenizer.train_from_iterator(sorted(sentences), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
