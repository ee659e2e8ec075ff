"""Reading of a Hugging Face RoBERTa folder.

The folder holds `config.json`, `model.safetensors` or `pytorch_model.bin`, and tokenizer files.
Only numbers and tables are read: no class named in the folder is imported, and nothing is
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.errors import InputError
from pipeline.validation import format_first_error

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights file, by preference."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
MAX_TOKENS = 256
"""Largest number of tokens; longer sentences are cut."""


class RobertaArchitecture(BaseModel):
    """The part of `config.json` that determines RoBERTa's outputs. The rest is not read.

    Fields have the names of Hugging Face's `RobertaConfig`.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_type: Literal["roberta"] = Field(exclude=True)
    is_decoder: Literal[False] = Field(default=False, exclude=True)
    position_embedding_type: Literal["absolute"] = Field(default="absolute", exclude=True)
    vocab_size: int = Field(ge=4)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    hidden_act: str = "gelu"
    max_position_embeddings: int = Field(ge=4)
    type_vocab_size: int = Field(default=1, ge=1)
    layer_norm_eps: float = Field(gt=0)
    pad_token_id: int = Field(default=1, ge=0)


def read_architecture(folder: Path) -> RobertaArchitecture:
    """Read the architecture that `config.json` describes.

    Args:
        folder: Hugging Face RoBERTa folder.

    Returns:
        The architecture.

    Raises:
        InputError: The file is absent or unreadable, or describes another network.
    """
    _check_is_directory(folder)
    path = folder / "config.json"
    try:
        return RobertaArchitecture.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        message = f"{folder} has no config.json: give a Hugging Face RoBERTa folder"
        raise InputError(message) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        reason = format_first_error(error)
        raise InputError(f"{path} does not describe a RoBERTa encoder: {reason}") from None


def find_weights_file(folder: Path) -> Path:
    """Find the weights file of a folder, safetensors first.

    Args:
        folder: Hugging Face RoBERTa folder.

    Returns:
        Path of the file.

    Raises:
        InputError: The folder has no weights file.
    """
    _check_is_directory(folder)
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} has neither {' nor '.join(WEIGHTS_FILES)} "
        "(sharded weights are not supported: save them as one file)"
    )


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """Tokenizer of a Hugging Face folder.

    A special token in a sentence, such as `<pad>`, is tokenized as plain text.

    Attributes:
        folder: Folder that it was read from.
        tokenizer: `RobertaTokenizerFast` of transformers.
        fingerprint: Names and bytes of the files that define it.
        max_tokens: Largest number of tokens of a sentence.
    """

    folder: Path
    tokenizer: Any
    fingerprint: bytes
    max_tokens: int = MAX_TOKENS

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize sentences.

        Args:
            texts: n sentences. Sentences longer than `max_tokens` are cut.

        Returns:
            Token ids `[n, L]`, each row `<s> … </s>` and padding, and mask `[n, L]`, True at
            tokens.
        """
        encoding = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
            return_tensors="pt",
        )
        return encoding["input_ids"], encoding["attention_mask"].to(torch.bool)

    def adapt_to_model(
        self, vocab_size: int, pad_id: int, num_positions: int, exact_vocab: bool
    ) -> HuggingFaceTokenizer:
        """Check the tokenizer against a network and limit its sentences to the network's positions.

        Args:
            vocab_size: Embeddings of the network.
            pad_id: The network's id of padding.
            num_positions: Position embeddings. RoBERTa does not use the first `pad_id` + 1.
            exact_vocab: True if the tokenizer must use all embeddings.

        Returns:
            The adapted tokenizer.

        Raises:
            InputError: The vocabulary or the id of padding does not fit the network.
        """
        num_entries = 1 + max(self.tokenizer.get_vocab().values())
        if num_entries > vocab_size or (exact_vocab and num_entries != vocab_size):
            raise InputError(
                f"the tokenizer in {self.folder} has {num_entries} entries, "
                f"the weights have {vocab_size}: "
                "give the folder of the tokenizer that the weights were trained with"
            )

        own_pad_id = self.tokenizer.pad_token_id
        if own_pad_id != pad_id:
            raise InputError(
                f"the tokenizer in {self.folder} pads with id {own_pad_id}, "
                f"the weights with {pad_id}: they do not belong together"
            )
        return replace(self, max_tokens=min(MAX_TOKENS, num_positions - pad_id - 1))


def read_tokenizer(folder: Path) -> HuggingFaceTokenizer:
    """Read the tokenizer of a folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Args:
        folder: Hugging Face RoBERTa folder.

    Returns:
        The tokenizer.

    Raises:
        InputError: The folder has no tokenizer, or it cannot be read as RoBERTa's.
    """
    _check_is_directory(folder)
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise InputError(
            f"{folder} has no tokenizer: "
            "put RoBERTa's tokenizer.json there, or its vocab.json and merges.txt"
        )
    from transformers import RobertaTokenizerFast

    try:
        # The fingerprint covers names and contents, so that no two sets of files share one.
        parts = []
        for name in names:
            parts.append(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
        fingerprint = b"".join(parts)

        tokenizer = RobertaTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, padding_side="right", truncation_side="right"
        )

        # Some defects only show when a sentence is tokenized.
        tokenizer(["a"], split_special_tokens=True)
    except Exception as error:  # the parsers raise anything: bare Exception from Rust, KeyError, …
        raise InputError(
            f"the tokenizer in {folder} cannot be read as RoBERTa's ({_format_error(error)})"
        ) from None
    return HuggingFaceTokenizer(folder, tokenizer, fingerprint)


def _check_is_directory(folder: Path) -> None:
    """Raise an InputError unless the path is a folder."""
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder} {problem}: hf: expects a Hugging Face RoBERTa folder, "
            "with config.json, weights and tokenizer files"
        )


def _format_error(error: Exception) -> str:
    """Return type and message of an error in one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
