"""The grammar of `--weights`: where the weights of each product come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError

TINY_WEIGHTS_DIR = Path(__file__).parents[1] / "encoders" / "tiny"


CSDVL_PRODUCTS = ("appearance", "motion", "text")
"""What CSDVL reads."""


ENCODED_PRODUCTS = (*CSDVL_PRODUCTS, "swin")
"""Every product that a network makes."""


SOURCE_FORMS = {
    "appearance": ("torchvision", "torchvision:FILE", "mdetr:FILE"),
    "motion": ("ava:FILE", "kinetics:FILE"),
    "text": ("hf:DIR", "mdetr:FILE+hf:DIR"),
    "swin": ("torchvision", "torchvision:FILE"),
}
"""What a product's weights may be read from, beside `tiny` and `random:SEED`."""


@dataclass(frozen=True)
class WeightSource:
    """A parsed source: its `kind` (the word before the colon), the file or folder it names, the tokenizer's folder, the seed."""

    kind: str
    path: Path | None = None
    tokenizer_dir: Path | None = None
    seed: int = 0


def parse_source(product: str, weights: str) -> WeightSource:
    """`"mdetr:FILE+hf:DIR"` → its parts; the InputError for another form names what `product` allows."""
    kind, _, rest = weights.partition(":")
    if weights == "tiny" or (weights == "torchvision" and weights in SOURCE_FORMS[product]):
        return WeightSource(weights)
    if (
        kind == "random"
        and rest.isascii()
        and rest.isdecimal()
        and len(rest) < 20
        and int(rest) < 1 << 63
    ):
        return WeightSource(kind, seed=int(rest))
    forms = {form.partition(":")[0]: form for form in SOURCE_FORMS[product] if ":" in form}
    if kind in forms:
        file, tokenizer = rest, None
        if "+hf:" in forms[kind]:
            file, _, tokenizer = rest.rpartition("+hf:")
        if file and tokenizer != "":
            return WeightSource(
                kind,
                Path(os.path.expanduser(file)),
                Path(os.path.expanduser(tokenizer)) if tokenizer else None,
            )
    shipped = [] if product == "swin" else ["'tiny' (with --backbones tiny)"]
    named = ", ".join([*shipped, *(f"'{form}'" for form in SOURCE_FORMS[product])])
    raise InputError(
        f"weights {weights!r} for {product}: allowed are {named} and 'random:SEED' (for example random:0)"
    )


def absolute_source(weights: str) -> str:
    """The source with absolute paths, for a process that runs in another folder."""
    kind, colon, rest = weights.partition(":")
    if not colon or kind == "random":
        return weights
    paths = [os.path.abspath(os.path.expanduser(path)) for path in rest.split("+hf:")]
    return f"{kind}:{'+hf:'.join(paths)}"


def slowfast_variant(source: WeightSource, requested_variant: str | None = None) -> str:
    """How the motion network is built: as the weights were trained, or as asked where they do not say."""
    own = (
        source.kind
        if source.kind in ("ava", "kinetics")
        else "ava"
        if source.kind == "tiny"
        else None
    )
    if own is not None and requested_variant not in (None, own):
        raise InputError(
            f"weights of kind {source.kind!r} are for SlowFast built for {own!r}, not {requested_variant!r}: set slowfast to {own}"
        )
    return own or requested_variant or "ava"
