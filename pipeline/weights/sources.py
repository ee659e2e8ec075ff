"""Grammar of `--weights`: the source of each product's weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.weights.encoder_specs import ENCODERS

TINY_WEIGHTS_DIR = Path(__file__).parents[1] / "encoders" / "tiny"
"""Directory of the shipped weights of the tiny encoders."""
TINY_PRODUCTS = tuple(spec.name for spec in ENCODERS.values() if spec.has_tiny_size)
"""Products with a tiny encoder."""
ENCODED_PRODUCTS = tuple(ENCODERS)
"""Products computed by an encoder."""
TOKENIZER_SEPARATOR = "+hf:"
"""Text between the checkpoint and the tokenizer's directory in `mdetr:FILE+hf:DIR`."""


@dataclass(frozen=True)
class WeightSource:
    """A parsed source of weights.

    Attributes:
        kind: the word before the colon, for example `mdetr`.
        path: the file or directory of the weights, where the source names one.
        tokenizer_dir: the Hugging Face directory of the tokenizer, where the source names one.
        seed: the seed of `random:SEED`.
    """

    kind: str
    path: Path | None = None
    tokenizer_dir: Path | None = None
    seed: int = 0


def parse_source(product: str, weights: str) -> WeightSource:
    """Parse a source of weights, such as `mdetr:FILE+hf:DIR`.

    Args:
        product: name of a product with an encoder.
        weights: the source as the settings give it.

    Returns:
        The parts of the source; `~` in paths is expanded.

    Raises:
        InputError: the product does not accept this form. The message names the accepted forms.
    """
    encoder = ENCODERS[product]
    kind, _, argument = weights.partition(":")

    # Sources without an argument.
    if weights == "tiny":
        return WeightSource(weights)
    if weights == "torchvision" and weights in encoder.source_forms:
        return WeightSource(weights)

    if kind == "random" and _is_seed(argument):
        return WeightSource(kind, seed=int(argument))

    # Sources that name a file or directory, and possibly a tokenizer.
    forms_by_kind = {form.partition(":")[0]: form for form in encoder.source_forms if ":" in form}
    if kind in forms_by_kind:
        if TOKENIZER_SEPARATOR in forms_by_kind[kind]:
            path, _, tokenizer_dir = argument.rpartition(TOKENIZER_SEPARATOR)
            if path and tokenizer_dir:
                return WeightSource(kind, _expand_path(path), _expand_path(tokenizer_dir))
        elif argument:
            return WeightSource(kind, _expand_path(argument))

    accepted = [f"'{form}'" for form in encoder.source_forms]
    if encoder.has_tiny_size:
        accepted.insert(0, "'tiny' (with --backbones tiny)")
    raise InputError(
        f"weights {weights!r} for {product}: allowed are {', '.join(accepted)} "
        "and 'random:SEED' (for example random:0)"
    )


def _is_seed(text: str) -> bool:
    """Return True for ASCII digits of a number below 2⁶³."""
    # The length is checked first: converting thousands of digits is slow and raises ValueError.
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 1 << 63


def _expand_path(text: str) -> Path:
    """Return a path with `~` expanded."""
    return Path(os.path.expanduser(text))


def absolute_source(weights: str) -> str:
    """Make the paths of a source absolute, for a process with another working directory.

    Args:
        weights: a source of weights.

    Returns:
        The same source with absolute paths.
    """
    kind, colon, argument = weights.partition(":")
    if not colon or kind == "random":
        return weights
    paths = [
        os.path.abspath(os.path.expanduser(path)) for path in argument.split(TOKENIZER_SEPARATOR)
    ]
    return f"{kind}:{TOKENIZER_SEPARATOR.join(paths)}"


def slowfast_variant(source: WeightSource, requested_variant: str | None = None) -> str:
    """Choose the build of SlowFast for a source of weights.

    Args:
        source: the source of the weights.
        requested_variant: the build in the settings, `ava` or `kinetics`; None for the source's.

    Returns:
        The build that the weights were trained with. Random weights fit any build, so for them the
        requested one, by default `ava`.

    Raises:
        InputError: the weights were trained with another build than the requested one.
    """
    trained_variant = None
    if source.kind in ("ava", "kinetics"):
        trained_variant = source.kind
    elif source.kind == "tiny":
        trained_variant = "ava"

    if trained_variant is None:
        return requested_variant or "ava"
    if requested_variant not in (None, trained_variant):
        raise InputError(
            f"weights of kind {source.kind!r} are for SlowFast built for {trained_variant!r}, "
            f"not {requested_variant!r}: set slowfast to {trained_variant}"
        )
    return trained_variant
