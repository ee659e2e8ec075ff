"""Configuration at the door: one YAML file with sections; each command validates its own and refuses unknown keys.

Order: preset < file < `--set key=value`. A validated config is unpacked into plain keyword arguments by the
command and saved with what it made. Only a model takes one whole: its config is its list of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError
from pipeline.validation import format_first_error

SECTIONS = ("dataset", "prepare", "extract", "train", "evaluate", "report")


class StrictModel(BaseModel):
    """Base of every validated config: unknown keys are refused, numbers must be finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


ConfigT = TypeVar("ConfigT", bound=StrictModel)


def read_section(path: Path | None, section: str) -> dict[str, Any]:
    """The mapping under `section` of a YAML file ({} without a file); unknown sections are refused."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config {path} does not exist") from None
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"config {path} must be a mapping of sections {', '.join(SECTIONS)}")
    for name in content:
        if name not in SECTIONS:
            raise InputError(
                f"config {path}: unknown section {name!r}; the sections are {', '.join(SECTIONS)}"
            )
    values = content.get(section) or {}
    if not isinstance(values, dict):
        raise InputError(f"config {path}: section {section!r} must be a mapping, not {values!r}")
    return values


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    result = dict(base)
    for key, value in override.items():
        old = result.get(key)
        result[key] = (
            merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return result


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["model.collaboration=none"]` → `{"model": {"collaboration": "none"}}`; values are read as YAML."""
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(
                f"--set {text!r} is not of the form key=value (for example --set max_steps=100)"
            )
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r}: the value is not YAML") from None
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def validate(config_class: type[ConfigT], values: Mapping[str, Any], context: str) -> ConfigT:
    """Build a config; the first problem becomes an InputError that names the key and what is allowed."""
    try:
        return config_class.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "extra_forbidden":
            key = ".".join(str(part) for part in problem["loc"])
            raise InputError(
                f"{context}: unknown key {key!r}; the keys are {', '.join(_allowed_keys(config_class, problem['loc']))}"
            ) from None
        raise InputError(f"{context}: {format_first_error(error)}") from None


def _allowed_keys(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The names allowed at the level of an unknown key."""
    for part in location[:-1]:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return sorted(kind.model_fields)


def load(
    config_class: type[ConfigT],
    section: str,
    file: Path | None,
    assignments: Sequence[str],
    preset: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Preset < the file's section < `--set`, validated."""
    values = merge(merge(preset or {}, read_section(file, section)), parse_assignments(assignments))
    return validate(config_class, values, f"section {section!r}")


def save(path: Path, section: str, config: StrictModel) -> None:
    """Write a config as the one-section YAML that would reproduce it."""
    path.write_text(
        yaml.safe_dump({section: config.model_dump(mode="json")}, sort_keys=False), encoding="utf-8"
    )
