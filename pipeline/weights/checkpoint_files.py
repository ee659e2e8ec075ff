"""Files of published weights: safe reading and strict loading.

Reading unpickles tensors and plain values only. Loading accepts no missing, unexpected or misshapen
parameter, except for the names that a format's `StateDictLayout` lists as ignored.
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
"""Number of names of a list that a message shows."""
BATCH_NORM_COUNTERS = r".*\.num_batches_tracked"
"""Pattern of the counters of batch norms, which only training reads."""
MDETR_HEADS = (
    r"((bbox|class|isfinal|query|qa)_embed|input_proj"
    r"|contrastive(_align)?_projection_(image|text)|answer(_\w+)?_head)\..*"
)
"""Pattern of the parameters of MDETR's heads."""
SLOWFAST_PREFIXES = {"ava": "model.blocks.", "kinetics": "blocks."}
"""Prefix of the parameters in a SlowFast checkpoint, by its kind."""


@dataclass(frozen=True)
class StateDictLayout:
    """The names of a network's parameters in a file.

    Attributes:
        prefixes: possible prefixes of the names in the file; the first that occurs is used.
        encoder_prefix: prefix of the same names in the encoder.
        ignored_pattern: pattern of other known names in the file; the default matches none.
    """

    prefixes: tuple[str, ...] = ("",)
    encoder_prefix: str = ""
    ignored_pattern: str = r"(?!)"


@dataclass(frozen=True)
class LoadReport:
    """The names that were loaded from a file, and those that were ignored.

    Attributes:
        description: the weights in words, for messages.
        num_expected: number of parameters of the network.
        loaded_keys: names in the file that were loaded.
        ignored_keys: names in the file that the layout lists as ignored.
    """

    description: str
    num_expected: int
    loaded_keys: tuple[str, ...]
    ignored_keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.loaded_keys:
            return f"{self.description}: {self.num_expected} parameters"
        line = (
            f"{self.description}: loaded {len(self.loaded_keys)} of {self.num_expected}, "
            "none missing, none unexpected"
        )
        if self.ignored_keys:
            ignored = format_names(self.ignored_keys)
            line += f"; {len(self.ignored_keys)} left over, as documented: {ignored}"
        return line

    def format_keys(self) -> str:
        """Return all names in one line, for the log."""
        loaded = ", ".join(self.loaded_keys) or "none"
        ignored = ", ".join(self.ignored_keys) or "none"
        return f"{self.description}: loaded {loaded}; left over {ignored}"


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    description: str,
    layout: StateDictLayout | None = None,
) -> LoadReport:
    """Load every parameter of a module from a state dict.

    Args:
        module: the network; its parameters are overwritten.
        state: the parameters by name.
        description: the weights in words, for messages.
        layout: the names in `state`; None for the module's own. Parameters of the module whose
            names the layout ignores are not loaded either.

    Returns:
        The loaded and the ignored names.

    Raises:
        InputError: a parameter is missing, unexpected, misshapen or not finite. Nothing was loaded.
    """
    layout = layout or StateDictLayout()
    ignored_pattern = re.compile(layout.ignored_pattern)
    expected = _collect_expected(module, state, layout, ignored_pattern)
    ignored = sorted(name for name in state if ignored_pattern.fullmatch(name))

    # Compare the names.
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys() - set(ignored))
    common = sorted(expected.keys() & state.keys())

    # Compare the shapes.
    misshapen = []
    for name in common:
        _, parameter = expected[name]
        if parameter.shape != state[name].shape:
            misshapen.append(name)

    if missing or unexpected or misshapen:
        message = (
            f"{description} do not fit: missing {_format_name_list(missing)}, "
            f"unexpected {_format_name_list(unexpected)}, "
            f"other shape {_format_name_list(misshapen)}"
        )
        if misshapen:
            shapes = []
            for name in misshapen[:MAX_LISTED_NAMES]:
                _, parameter = expected[name]
                shapes.append(f"{name}: {list(state[name].shape)} for {list(parameter.shape)}")
            message += f" ({'; '.join(shapes)})"
        raise InputError(message)

    not_finite = [name for name in common if not _is_finite(state[name])]
    if not_finite:
        raise InputError(f"{description} are damaged: not finite {_format_name_list(not_finite)}")

    renamed_state = {}
    for name in common:
        key, _ = expected[name]
        renamed_state[key] = state[name]
    module.load_state_dict(renamed_state, strict=False)
    return LoadReport(description, len(expected), tuple(common), ignored_keys=tuple(ignored))


def _collect_expected(
    module: nn.Module,
    state: Mapping[str, Tensor],
    layout: StateDictLayout,
    ignored_pattern: re.Pattern[str],
) -> dict[str, tuple[str, Tensor]]:
    """Return the module's parameters, with their keys there, by their names in the file."""
    # A file may have the names with or without a prefix: the first prefix that occurs counts.
    file_prefix = layout.prefixes[0]
    for prefix in layout.prefixes:
        if any(name.startswith(prefix) for name in state):
            file_prefix = prefix
            break

    expected = {}
    for key, parameter in module.state_dict().items():
        name = file_prefix + key.removeprefix(layout.encoder_prefix)
        if not ignored_pattern.fullmatch(name):
            expected[name] = (key, parameter)
    return expected


def _is_finite(values: Tensor) -> bool:
    """Return False for floating-point values that are infinite or not a number."""
    return not values.is_floating_point() or bool(values.isfinite().all())


def format_names(names: Iterable[str]) -> str:
    """Join the first names of a list, for a message.

    Args:
        names: the names.

    Returns:
        The first `MAX_LISTED_NAMES` names, and the number of the others.
    """
    names = list(names)
    return (", ".join(names[:MAX_LISTED_NAMES]) or "none") + _format_remainder(names)


def _format_name_list(names: list[str]) -> str:
    """Return `['a', 'b']`, cut after the first names, and the number of the others."""
    return str(names[:MAX_LISTED_NAMES]) + _format_remainder(names)


def _format_remainder(names: list[str]) -> str:
    """Return the number of names that are not listed, in words."""
    num_unlisted = len(names) - MAX_LISTED_NAMES
    return f" and {num_unlisted} more" if num_unlisted > 0 else ""


def read_state_dict(kind: str, path: Path) -> dict[str, Tensor]:
    """Read the parameters in a file.

    Args:
        kind: kind of the file: `torchvision`, `mdetr`, `ava`, `kinetics` or `hf`.
        path: the file. A `.safetensors` file is read as one, whatever the kind.

    Returns:
        The parameters by the file's own names. MDETR's averaged weights (`model_ema`) take
        precedence over the others.

    Raises:
        InputError: the file cannot be read, is damaged, or is of another kind.
    """
    if path.suffix == ".safetensors":
        return _validate_state_dict(_read_safetensors(path), path)

    # MDETR's checkpoints hold the command's arguments, too.
    if kind == "mdetr":
        content = read_pickle(path, argparse.Namespace)
        content = _get_entry(content, ("model_ema", "model"), "an MDETR checkpoint", path)
    else:
        content = read_pickle(path)
    if kind in SLOWFAST_PREFIXES:
        description = "a checkpoint of pytorchvideo's model zoo"
        content = _get_entry(content, ("model_state",), description, path)

    state = _validate_state_dict(content, path)
    if kind in SLOWFAST_PREFIXES:
        _check_slowfast_kind(kind, state, path)
    return state


def _check_slowfast_kind(kind: str, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise InputError if the names are those of the other build of SlowFast."""
    for other_kind, prefix in SLOWFAST_PREFIXES.items():
        if other_kind != kind and any(name.startswith(prefix) for name in state):
            raise InputError(
                f"{path} holds a network of kind {other_kind!r}, not {kind!r}, by its names "
                f"({format_names(state)}): write {other_kind}:{path}"
            )


def read_pickle(path: Path, *allowed_classes: Callable[..., Any]) -> Any:
    """Unpickle a `.pth`, `.pyth` or `.bin` file without running its code.

    Tensors of a zip file are memory-mapped, so that an optimizer's state beside the weights takes
    no memory. The zip file's checksums are compared first, because torch does not compare them.

    Args:
        path: the file.
        allowed_classes: classes to accept in addition to tensors and plain values.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        InputError: the file cannot be read, is damaged, or holds other classes.
    """
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        damaged_member = zipfile.ZipFile(path).testzip() if is_zip else None
        if damaged_member is None:
            with (
                warnings.catch_warnings(action="ignore"),
                torch.serialization.safe_globals(list(allowed_classes)),
            ):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise _build_unpickling_error(path, error) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle or zip can raise anything
        raise InputError(
            f"{path} is not a file of weights, or is damaged ({type(error).__name__})"
        ) from None
    raise InputError(f"{path} is damaged: the checksum of its part {damaged_member} is wrong")


def _build_unpickling_error(path: Path, error: pickle.UnpicklingError) -> InputError:
    """Return the error for a file that torch refuses to unpickle."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    refused_name = match[1] if match else _find_pickle_global(path)
    if refused_name is None:
        return InputError(f"{path} is not a file of weights, or is damaged: it cannot be unpickled")
    return InputError(
        f"{path} holds more than weights: it names {refused_name}, and loading that could run "
        "code, so it was not loaded; save its state dict alone"
    )


def _find_pickle_global(path: Path) -> str | None:
    """Return the first class or function in a plain pickle, without running it.

    torch refuses newer pickles before it reads the name.
    """
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(value).replace(" ", ".")
                # STACK_GLOBAL takes module and name from the stack: the last two strings.
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(value, str):
                    strings.append(value)
    except Exception:  # a damaged pickle can raise anything
        return None
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_is_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged ({error})") from None


def _check_is_file(path: Path) -> None:
    """Raise InputError if a path is no file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"weights file {path} {problem}")


def _get_entry(content: Any, names: tuple[str, ...], description: str, path: Path) -> Any:
    """Return the first of the named entries that a checkpoint has and that is not None."""
    entries = content if isinstance(content, Mapping) else {}
    for name in names:
        if entries.get(name) is not None:
            return entries[name]
    keys = format_names(str(key) for key in entries)
    raise InputError(
        f"{path} is not {description}: it has no {' or '.join(names)} (it holds {keys})"
    )


def _validate_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the content as a state dict of dense CPU tensors, or raise InputError."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{path} does not hold a state dict, which maps names to tensors, "
            f"but a {type(content).__name__}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not _is_plain_tensor(value):
            raise InputError(
                f"{path} does not hold a state dict: entry {name!r} is a {type(value).__name__}, "
                "not a plain tensor"
            )
    return dict(content)


def _is_plain_tensor(value: object) -> bool:
    """Return True for a dense tensor on the CPU; sparse and meta tensors have no plain values."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )
