"""Files of published weights, read safely (weights only) and loaded strictly: a report names every key.

Each format is written down once in `LAYOUTS`: where a network's parameters stand among the file's names, and which
other names are known leftovers. Anything else that is missing, unexpected or of another shape is an error.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError

SHOWN = 5
"""Names of a list that a message shows."""
COUNTERS = r".*\.num_batches_tracked"
"""Counters of batch norms, which only training reads."""
MDETR_HEADS = r"((bbox|class|isfinal|query|qa)_embed|input_proj|contrastive(_align)?_projection_(image|text)|answer(_\w+)?_head)\..*"


@dataclass(frozen=True)
class Layout:
    """A network in a file: `prefixes` of its names there (the first that occurs counts), and `leftovers`, a pattern of other known names.

    `inside` is the prefix of the same names in the encoder.
    """

    prefixes: tuple[str, ...] = ("",)
    inside: str = ""
    leftovers: str = r"(?!)"


LAYOUTS: dict[tuple[str, str], Layout] = {
    ("appearance", "torchvision"): Layout(("",), "body.", rf"fc\.(weight|bias)|{COUNTERS}"),
    ("appearance", "mdetr"): Layout(("backbone.0.body.",), "body.", rf"transformer\..*|{MDETR_HEADS}|{COUNTERS}"),
    ("motion", "ava"): Layout(("model.blocks.",), "blocks.", rf"detection_head\..*|{COUNTERS}"),
    ("motion", "kinetics"): Layout(("blocks.",), "blocks.", rf"blocks\.6\..*|{COUNTERS}"),
    ("text", "hf"): Layout(
        ("roberta.", ""),
        "roberta.",
        r"(roberta\.)?(pooler\..*|embeddings\.(position_ids|token_type_ids))|(lm_head|classifier|qa_outputs)\..*",
    ),
    ("text", "mdetr"): Layout(
        ("transformer.text_encoder.",),
        "roberta.",
        rf"transformer\.text_encoder\.(pooler\..*|embeddings\.position_ids)|transformer\.(?!text_encoder\.).*|backbone\..*|{MDETR_HEADS}",
    ),
    ("swin", "torchvision"): Layout(("",), "body.", r"head\.(weight|bias)"),
}


@dataclass(frozen=True)
class LoadReport:
    """What became of every name: `loaded` of `wanted` and, in the file, documented `leftovers`.

    Nothing is ever missing or unexpected in one: that is an error.
    """

    what: str
    wanted: int
    loaded: tuple[str, ...]
    leftovers: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.loaded:
            return f"{self.what}: {self.wanted} parameters"
        line = f"{self.what}: loaded {len(self.loaded)} of {self.wanted}, none missing, none unexpected"
        return line + (f"; {len(self.leftovers)} left over, as documented: {some(self.leftovers)}" if self.leftovers else "")

    def every_key(self) -> str:
        """All names, for the log."""
        return f"{self.what}: loaded {', '.join(self.loaded) or 'none'}; left over {', '.join(self.leftovers) or 'none'}"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str, layout: Layout | None = None) -> LoadReport:
    """Load every parameter of `module` from `state`, whose names follow `layout` (by default the module's own).

    Raises InputError that lists what is missing, unexpected, of another shape, or not finite. Names that are
    documented leftovers are neither wanted in the module nor unexpected in the state.
    """
    layout = layout or Layout()
    prefix = next((prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in state)), layout.prefixes[0])
    left = re.compile(layout.leftovers)
    own = {prefix + key.removeprefix(layout.inside): (key, value) for key, value in module.state_dict().items()}
    own = {name: entry for name, entry in own.items() if not left.fullmatch(name)}
    leftovers = sorted(name for name in state if left.fullmatch(name))
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - set(leftovers))
    common = sorted(own.keys() & state.keys())
    misshapen = [name for name in common if own[name][1].shape != state[name].shape]
    if missing or unexpected or misshapen:
        shapes = [f"{name}: {list(state[name].shape)} for {list(own[name][1].shape)}" for name in misshapen[:SHOWN]]
        raise InputError(
            f"{what} do not fit: missing {_counted(missing)}, unexpected {_counted(unexpected)}, other shape {_counted(misshapen)}"
            + (f" ({'; '.join(shapes)})" if shapes else "")
        )
    broken = [name for name in common if state[name].is_floating_point() and not state[name].isfinite().all()]
    if broken:
        raise InputError(f"{what} are damaged: not finite {_counted(broken)}")
    module.load_state_dict({own[name][0]: state[name] for name in common}, strict=False)
    return LoadReport(what, len(own), tuple(common), leftovers=tuple(leftovers))


def some(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more


def _counted(names: list[str]) -> str:
    """`['a', 'b']`, cut after the first names with the number of the others."""
    return str(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_state(kind: str, path: Path) -> dict[str, Tensor]:
    """The parameters in a file of one kind (`torchvision`, `mdetr`, `ava`, `kinetics`, `hf`), by the file's own names.

    Of MDETR's checkpoint the averaged weights (`model_ema`) where it has them. Raises InputError.
    """
    if path.suffix == ".safetensors":
        return _tensors(_safetensors(path), path)
    content = read_pickle(path, *([argparse.Namespace] if kind == "mdetr" else []))
    if kind == "mdetr":
        content = _entry(content, ("model_ema", "model"), "an MDETR checkpoint", path)
    if kind in ("ava", "kinetics"):
        content = _entry(content, ("model_state",), "a checkpoint of pytorchvideo's model zoo", path)
    state = _tensors(content, path)
    for wrong, true, prefix in (("ava", "kinetics", "blocks."), ("kinetics", "ava", "model.blocks.")):
        if kind == wrong and any(name.startswith(prefix) for name in state):
            raise InputError(f"{path} holds a network of kind {true!r}, not {wrong!r}, by its names ({some(state)}): write {true}:{path}")
    return state


def read_pickle(path: Path, *allowed: Callable[..., Any]) -> Any:
    """What a `.pth`, `.pyth` or `.bin` file holds, unpickled with tensors and plain values (and `allowed` classes) only.

    Tensors of a zip file are mapped, not read: an optimiser's state beside the weights costs no memory. Its
    checksums are compared first, which torch does not do.
    """
    _need_file(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        damaged = zipfile.ZipFile(path).testzip() if zipped else None
        if damaged is None:
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(allowed)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = found[1] if found else _named_in(path)
        if named is None:
            raise InputError(f"{path} is not a file of weights, or is damaged: it cannot be unpickled") from None
        raise InputError(
            f"{path} holds more than weights: it names {named}, and loading that could run code, so it was not loaded;"
            " save its state dict alone"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle or zip can raise anything
        raise InputError(f"{path} is not a file of weights, or is damaged ({type(error).__name__})") from None
    raise InputError(f"{path} is damaged: the checksum of its part {damaged} is wrong")


def _named_in(path: Path) -> str | None:
    """The first class or function that a plain pickle names, read without running it: torch refuses newer ones unread."""
    words: list[str] = []
    try:
        with path.open("rb") as file:
            for code, value, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "STACK_GLOBAL"):
                    return str(value).replace(" ", ".") if code.name == "GLOBAL" else ".".join(words[-2:])
                if isinstance(value, str):
                    words.append(value)
    except Exception:  # a damaged pickle can raise anything
        return None
    return None


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _need_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged ({error})") from None


def _need_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"weights file {path} {'is not a file' if path.exists() else 'does not exist'}")


def _entry(content: Any, names: tuple[str, ...], what: str, path: Path) -> Any:
    """The first of the entries `names` that a checkpoint has and that is not None."""
    held = content if isinstance(content, Mapping) else {}
    for name in names:
        if held.get(name) is not None:
            return held[name]
    raise InputError(f"{path} is not {what}: it has no {' or '.join(names)} (it holds {some(str(key) for key in held)})")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The content as a state dict: names to plain tensors on the CPU."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} does not hold a state dict, which maps names to tensors, but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise InputError(f"{path} does not hold a state dict: entry {name!r} is a {type(value).__name__}, not a plain tensor")
    return dict(content)
