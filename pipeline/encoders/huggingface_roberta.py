"""A Hugging Face RoBERTa folder: `config.json`, `model.safetensors` or `pytorch_model.bin`, and tokenizer files.

Only numbers and tables are read from it: no class that the folder names is imported, nothing is fetched.
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
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
MAX_TOKENS = 256
"""Longer sentences are cut."""


class RobertaArchitecture(BaseModel):
    """What of `config.json` decides the outputs of RoBERTa; the rest of the file is not read."""

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
    """The network that `folder/config.json` describes; an InputError where it is absent or not RoBERTa's."""
    _check_is_directory(folder)
    path = folder / "config.json"
    try:
        return RobertaArchitecture.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no config.json: name a Hugging Face RoBERTa folder"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise InputError(
            f"{path} does not describe a RoBERTa encoder: {format_first_error(error)}"
        ) from None


def find_weights_file(folder: Path) -> Path:
    """The file that holds the folder's weights: safetensors first."""
    _check_is_directory(folder)
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} has neither {' nor '.join(WEIGHTS_FILES)} (weights in several parts are not read: save them as one file)"
    )


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The folder's own tokenizer. A sentence that spells a special token, such as `<pad>`, is words like any other."""

    folder: Path
    tokenizer: Any
    fingerprint: bytes
    """Names and bytes of the files that define it."""
    max_tokens: int = MAX_TOKENS

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Sentences to padded ids `[n, L]` and mask `[n, L]`, each as `<s> … </s>`, cut at `max_tokens`."""
        made = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
            return_tensors="pt",
        )
        return made["input_ids"], made["attention_mask"].to(torch.bool)

    def adapt_to_model(
        self, vocab_size: int, pad_id: int, num_positions: int, exact_vocab: bool
    ) -> HuggingFaceTokenizer:
        """This tokenizer for a network with so many entries and positions, of which RoBERTa leaves the first `pad` + 1 unused.

        InputError where an id is not below `vocabulary` (with `exactly`, where its last one is unused too), or padding is not `pad`.
        """
        entries, own_pad = 1 + max(self.tokenizer.get_vocab().values()), self.tokenizer.pad_token_id
        if entries > vocab_size or (exact_vocab and entries != vocab_size):
            raise InputError(
                f"the tokenizer in {self.folder} has {entries} entries, the weights have {vocab_size}: "
                "name the folder of the tokenizer that the weights were trained with"
            )
        if own_pad != pad_id:
            raise InputError(
                f"the tokenizer in {self.folder} pads with id {own_pad}, the weights with {pad_id}: they do not belong together"
            )
        return replace(self, max_tokens=min(MAX_TOKENS, num_positions - pad_id - 1))


def read_tokenizer(folder: Path) -> HuggingFaceTokenizer:
    """The tokenizer that `folder` holds as `tokenizer.json`, or as `vocab.json` and `merges.txt`."""
    _check_is_directory(folder)
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= set(there):
        raise InputError(
            f"{folder} has no tokenizer: put RoBERTa's tokenizer.json there, or its vocab.json and merges.txt"
        )
    from transformers import RobertaTokenizerFast

    try:
        fingerprint = b"".join(
            name.encode() + b"\0" + (folder / name).read_bytes() + b"\0" for name in there
        )
        fast = RobertaTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, padding_side="right", truncation_side="right"
        )
        fast(["a"], split_special_tokens=True)
    except Exception as error:  # the parsers below raise whatever comes: a bare Exception from Rust, KeyError, TypeError …
        raise InputError(
            f"the tokenizer in {folder} cannot be read as RoBERTa's ({_format_error(error)})"
        ) from None
    return HuggingFaceTokenizer(folder, fast, fingerprint)


def _check_is_directory(folder: Path) -> None:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder} {problem}: hf: wants a Hugging Face RoBERTa folder, with config.json, weights and tokenizer files"
        )


def _format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
