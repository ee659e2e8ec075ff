"""The libraries' own networks, with statistics and scales that a wrong normalisation would show,
and a small tokenizer folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet, resnet101

SENTENCES = [
    "the red circle moves to the left.",
    "a man in red opens the door",
    "what spins?",
    "ein Hund läuft – 犬が走る 🐕",
]


def with_statistics(model: nn.Module, last: str) -> nn.Module:
    """The model in eval mode, every batch norm with scales (small ones at blocks' ends), shifts and
    running statistics of its own.
    """
    generator = torch.Generator().manual_seed(3)
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            scale = 0.3 if name.endswith(last) else 1.0
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.weight.data.uniform_(0.8 * scale, 1.2 * scale, generator=generator)
            norm.bias.data.uniform_(-0.2, 0.2, generator=generator)
            norm.running_mean.uniform_(-0.2, 0.2, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def resnet() -> ResNet:
    """torchvision's ResNet-101."""
    model = resnet101(weights=None)
    with_statistics(model, "bn3")
    return model


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., None]:
    """Train a byte-level BPE of `entries` entries and write RoBERTa's `vocab.json` and `merges.txt`
    into a folder.
    """

    def save(folder: Path, entries: int = 300) -> None:
        from tokenizers import ByteLevelBPETokenizer

        folder.mkdir(parents=True, exist_ok=True)
        result = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        words = [f"{number * 7919:x}" for number in range(500)]
        result.train_from_iterator(
            [*SENTENCES, *words] * 2,
            vocab_size=entries,
            min_frequency=1,
            special_tokens=special,
            show_progress=False,
        )
        assert result.get_vocab_size() == entries
        result.save_model(str(folder))

    return save


@pytest.fixture(scope="session")
def slowfast() -> Callable[[str], nn.Module]:
    """pytorchvideo's SlowFast R50 8x8 for `ava` (with its detection head) or `kinetics`."""
    import warnings

    def build(kind: str) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorchvideo.models.hub import slowfast as zoo
        result: nn.Module = zoo.slowfast_r50_detection() if kind == "ava" else zoo.slowfast_r50()
        return with_statistics(result, "norm_c")

    return build
