"""Files of published weights, read safely (weights only) and loaded strictly: a report names every key.

Each format is written down once in `pipeline.weights.encoder_specs`: where a network's parameters stand among the file's names, and which
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

MAX_LISTED_NAMES = 5
"""Names of a list that a message shows."""
BATCH_NORM_COUNTERS = r".*\.num_batches_tracked"
"""Counters of batch norms, which only training reads."""
MDETR_HEADS = r"((bbox|class|isfinal|query|qa)_embed|input_proj|contrastive(_align)?_projection_(image|text)|answer(_\w+)?_head)\..*"


@dataclass(frozen=True)
class StateDictLayout:
    """A network in a file: `prefixes` of its names there (the first that occurs counts), and `leftovers`, a pattern of other known names.

    `inside` is the prefix of the same names in the encoder.
    """

    prefixes: tuple[str, ...] = ("",)
    encoder_prefix: str = ""
    ignored_pattern: str = r"(?!)"


@dataclass(frozen=True)
class LoadReport:
    """What became of every name: `loaded` of `wanted` and, in the file, documented `leftovers`.

    Nothing is ever missing or unexpected in one: that is an error.
    """

    description: str
    num_expected: int
    loaded_keys: tuple[str, ...]
    ignored_keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.loaded_keys:
            return f"{self.description}: {self.num_expected} parameters"
        line = f"{self.description}: loaded {len(self.loaded_keys)} of {self.num_expected}, none missing, none unexpected"
        return line + (
            f"; {len(self.ignored_keys)} left over, as documented: {format_names(self.ignored_keys)}"
            if self.ignored_keys
            else ""
        )

    def format_keys(self) -> str:
        """All names, for the log."""
        return f"{self.description}: loaded {', '.join(self.loaded_keys) or 'none'}; left over {', '.join(self.ignored_keys) or 'none'}"


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    description: str,
    layout: StateDictLayout | None = None,
) -> LoadReport:
    """Load every parameter of `module` from `state`, whose names follow `layout` (by default the module's own).

    Raises InputError that lists what is missing, unexpected, of another shape, or not finite. Names that are
    documented leftovers are neither wanted in the module nor unexpected in the state.
    """
    layout = layout or StateDictLayout()
    prefix = next(
        (prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in state)),
        layout.prefixes[0],
    )
    left = re.compile(layout.ignored_pattern)
    own = {
        prefix + key.removeprefix(layout.encoder_prefix): (key, value)
        for key, value in module.state_dict().items()
    }
    own = {name: entry for name, entry in own.items() if not left.fullmatch(name)}
    leftovers = sorted(name for name in state if left.fullmatch(name))
    missing, unexpected = (
        sorted(own.keys() - state.keys()),
        sorted(state.keys() - own.keys() - set(leftovers)),
    )
    common = sorted(own.keys() & state.keys())
    misshapen = [name for name in common if own[name][1].shape != state[name].shape]
    if missing or unexpected or misshapen:
        shapes = [
            f"{name}: {list(state[name].shape)} for {list(own[name][1].shape)}"
            for name in misshapen[:MAX_LISTED_NAMES]
        ]
        raise InputError(
            f"{description} do not fit: missing {_format_name_list(missing)}, unexpected {_format_name_list(unexpected)}, other shape {_format_name_list(misshapen)}"
            + (f" ({'; '.join(shapes)})" if shapes else "")
        )
    broken = [
        name
        for name in common
        if state[name].is_floating_point() and not state[name].isfinite().all()
    ]
    if broken:
        raise InputError(f"{description} are damaged: not finite {_format_name_list(broken)}")
    module.load_state_dict({own[name][0]: state[name] for name in common}, strict=False)
    return LoadReport(description, len(own), tuple(common), ignored_keys=tuple(leftovers))


def format_names(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return (", ".join(names[:MAX_LISTED_NAMES]) or "none") + more


def _format_name_list(names: list[str]) -> str:
    """`['a', 'b']`, cut after the first names with the number of the others."""
    return str(names[:MAX_LISTED_NAMES]) + (
        f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    )


def read_state_dict(kind: str, path: Path) -> dict[str, Tensor]:
    """The parameters in a file of one kind (`torchvision`, `mdetr`, `ava`, `kinetics`, `hf`), by the file's own names.

    Of MDETR's checkpoint the averaged weights (`model_ema`) where it has them. Raises InputError.
    """
    if path.suffix == ".safetensors":
        return _validate_state_dict(_read_safetensors(path), path)
    content = read_pickle(path, *([argparse.Namespace] if kind == "mdetr" else []))
    if kind == "mdetr":
        content = _get_entry(content, ("model_ema", "model"), "an MDETR checkpoint", path)
    if kind in ("ava", "kinetics"):
        content = _get_entry(
            content, ("model_state",), "a checkpoint of pytorchvideo's model zoo", path
        )
    state = _validate_state_dict(content, path)
    for wrong, true, prefix in (
        ("ava", "kinetics", "blocks."),
        ("kinetics", "ava", "model.blocks."),
    ):
        if kind == wrong and any(name.startswith(prefix) for name in state):
            raise InputError(
                f"{path} holds a network of kind {true!r}, not {wrong!r}, by its names ({format_names(state)}): write {true}:{path}"
            )
    return state


def read_pickle(path: Path, *allowed_classes: Callable[..., Any]) -> Any:
    """What a `.pth`, `.pyth` or `.bin` file holds, unpickled with tensors and plain values (and `allowed` classes) only.

    Tensors of a zip file are mapped, not read: an optimiser's state beside the weights costs no memory. Its
    checksums are compared first, which torch does not do.
    """
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        damaged = zipfile.ZipFile(path).testzip() if zipped else None
        if damaged is None:
            with (
                warnings.catch_warnings(action="ignore"),
                torch.serialization.safe_globals(list(allowed_classes)),
            ):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = found[1] if found else _find_pickle_global(path)
        if named is None:
            raise InputError(
                f"{path} is not a file of weights, or is damaged: it cannot be unpickled"
            ) from None
        raise InputError(
            f"{path} holds more than weights: it names {named}, and loading that could run code, so it was not loaded;"
            " save its state dict alone"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle or zip can raise anything
        raise InputError(
            f"{path} is not a file of weights, or is damaged ({type(error).__name__})"
        ) from None
    raise InputError(f"{path} is damaged: the checksum of its part {damaged} is wrong")


def _find_pickle_global(path: Path) -> str | None:
    """The first class or function that a plain pickle names, read without running it: torch refuses newer ones unread."""
    words: list[str] = []
    try:
        with path.open("rb") as file:
            for code, value, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "STACK_GLOBAL"):
                    return (
                        str(value).replace(" ", ".")
                        if code.name == "GLOBAL"
                        else ".".join(words[-2:])
                    )
                if isinstance(value, str):
                    words.append(value)
    except Exception:  # a damaged pickle can raise anything
        return None
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_is_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged ({error})") from None


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"weights file {path} {'is not a file' if path.exists() else 'does not exist'}"
        )


def _get_entry(content: Any, names: tuple[str, ...], what: str, path: Path) -> Any:
    """The first of the entries `names` that a checkpoint has and that is not None."""
    held = content if isinstance(content, Mapping) else {}
    for name in names:
        if held.get(name) is not None:
            return held[name]
    raise InputError(
        f"{path} is not {what}: it has no {' or '.join(names)} (it holds {format_names(str(key) for key in held)})"
    )


def _validate_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The content as a state dict: names to plain tensors on the CPU."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{path} does not hold a state dict, which maps names to tensors, but a {type(content).__name__}"
        )
    for name, value in content.items():
        if (
            not isinstance(name, str)
            or not isinstance(value, Tensor)
            or value.layout != torch.strided
            or value.device.type != "cpu"
        ):
            raise InputError(
                f"{path} does not hold a state dict: entry {name!r} is a {type(value).__name__}, not a plain tensor"
            )
    return dict(content)
