"""The table of encoders: constructors of the networks, and the files of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.encoders.huggingface_roberta import read_architecture, read_tokenizer
from pipeline.encoders.motion import MotionEncoder
from pipeline.encoders.text import TextEncoder
from pipeline.errors import InputError
from pipeline.weights.checkpoint_files import BATCH_NORM_COUNTERS, MDETR_HEADS, StateDictLayout


@dataclass(frozen=True)
class EncoderOptions:
    """Settings of a network, before any weights are loaded.

    Attributes:
        size: `full` or `tiny`.
        slowfast: build of SlowFast, `ava` or `kinetics`.
        architecture_dir: Hugging Face directory whose `config.json` sets the text network's
            architecture; it takes precedence over `size`.
        tokenizer_dir: Hugging Face directory with the text network's tokenizer.
    """

    size: str
    slowfast: str = "ava"
    architecture_dir: Path | None = None
    tokenizer_dir: Path | None = None


@dataclass(frozen=True)
class EncoderSpec:
    """A network whose outputs are stored, and the files its weights may come from.

    Attributes:
        name: name of the product that the network computes, and of the shipped weights' file.
        build: constructor of the network; its weights are PyTorch's initial ones.
        source_forms: forms that `--weights` accepts, in addition to `tiny` and `random:SEED`.
        state_dict_layouts: position of the parameters in a file, by the kind of the file.
        has_tiny_size: a tiny network exists, and its weights are shipped.
        has_slowfast_builds: the network is built for AVA or for Kinetics.
        torchvision_weights: torchvision's name of the weights that the source `torchvision` loads.
    """

    name: str
    build: Callable[[EncoderOptions], nn.Module]
    source_forms: tuple[str, ...]
    state_dict_layouts: Mapping[str, StateDictLayout]
    has_tiny_size: bool = True
    has_slowfast_builds: bool = False
    torchvision_weights: str | None = None


def _build_appearance_encoder(options: EncoderOptions) -> nn.Module:
    """Return ResNet-101, or its tiny variant. Its module is slow to import: it has torchvision."""
    from pipeline.encoders.appearance import AppearanceEncoder

    return AppearanceEncoder(options.size)


def _build_motion_encoder(options: EncoderOptions) -> nn.Module:
    """Return SlowFast, or its tiny variant."""
    return MotionEncoder(options.size, options.slowfast)


def _build_swin_encoder(options: EncoderOptions) -> nn.Module:
    """Return Video Swin-T. Its module is slow to import: it has torchvision."""
    from pipeline.encoders.swin import SwinEncoder

    return SwinEncoder()


def _build_text_encoder(options: EncoderOptions) -> nn.Module:
    """Return RoBERTa, of the given size or as its directory describes it, with its tokenizer."""
    if options.tokenizer_dir is None:
        return TextEncoder(options.size)

    # A directory without an architecture only provides the tokenizer.
    architecture_dir = options.architecture_dir
    try:
        architecture = None if architecture_dir is None else read_architecture(architecture_dir)
        encoder = TextEncoder(options.size, architecture)
    except (ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{options.tokenizer_dir / 'config.json'} describes a network that cannot be built: "
            f"{error}"
        ) from None

    config = encoder.roberta.config
    tokenizer = read_tokenizer(options.tokenizer_dir)
    encoder.tokenizer = tokenizer.adapt_to_model(
        config.vocab_size,
        config.pad_token_id,
        config.max_position_embeddings,
        architecture_dir is None,
    )
    return encoder


APPEARANCE = EncoderSpec(
    name="appearance",
    build=_build_appearance_encoder,
    source_forms=("torchvision", "torchvision:FILE", "mdetr:FILE"),
    state_dict_layouts={
        "torchvision": StateDictLayout(
            ("",),
            "body.",
            rf"fc\.(weight|bias)|{BATCH_NORM_COUNTERS}",
        ),
        "mdetr": StateDictLayout(
            ("backbone.0.body.",),
            "body.",
            rf"transformer\..*|{MDETR_HEADS}|{BATCH_NORM_COUNTERS}",
        ),
    },
    # MDETR and the peers start from these first ImageNet weights of ResNet-101.
    # Name a file to use the second ones.
    torchvision_weights="ResNet101_Weights.IMAGENET1K_V1",
)

MOTION = EncoderSpec(
    name="motion",
    build=_build_motion_encoder,
    source_forms=("ava:FILE", "kinetics:FILE"),
    state_dict_layouts={
        "ava": StateDictLayout(
            ("model.blocks.",),
            "blocks.",
            rf"detection_head\..*|{BATCH_NORM_COUNTERS}",
        ),
        "kinetics": StateDictLayout(
            ("blocks.",),
            "blocks.",
            rf"blocks\.6\..*|{BATCH_NORM_COUNTERS}",
        ),
    },
    has_slowfast_builds=True,
)

TEXT = EncoderSpec(
    name="text",
    build=_build_text_encoder,
    source_forms=("hf:DIR", "mdetr:FILE+hf:DIR"),
    state_dict_layouts={
        "hf": StateDictLayout(
            ("roberta.", ""),
            "roberta.",
            r"(roberta\.)?(pooler\..*|embeddings\.(position_ids|token_type_ids))"
            r"|(lm_head|classifier|qa_outputs)\..*",
        ),
        "mdetr": StateDictLayout(
            ("transformer.text_encoder.",),
            "roberta.",
            r"transformer\.text_encoder\.(pooler\..*|embeddings\.position_ids)"
            rf"|transformer\.(?!text_encoder\.).*|backbone\..*|{MDETR_HEADS}",
        ),
    },
)

SWIN = EncoderSpec(
    name="swin",
    build=_build_swin_encoder,
    source_forms=("torchvision", "torchvision:FILE"),
    state_dict_layouts={"torchvision": StateDictLayout(("",), "body.", r"head\.(weight|bias)")},
    has_tiny_size=False,
    torchvision_weights="Swin3D_T_Weights.KINETICS400_V1",
)

ENCODERS = {spec.name: spec for spec in (APPEARANCE, MOTION, TEXT, SWIN)}
"""Every encoder, by the name of its product."""
