"""Write `docs/configuration.md` from the configuration classes.

Run `python docs/generate_configuration.py`. Each key's meaning is the string under its field in the
code; its type and default are the field's own. A test compares the file with what this script would
write.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
import typing
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cli.console.dataset_options import DatasetConfig, PrepareConfig
from grounding.evaluation.config import EvaluateConfig
from grounding.report.build import ReportConfig
from grounding.systems.registry import SYSTEMS
from pipeline.extraction.config import ExtractConfig

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "configuration.md"
INTRODUCTION = ROOT / "docs" / "configuration_introduction.md"

UNITS = {
    "fps": "frames/s",
    "short_side": "pixels",
    "max_side": "pixels",
    "width": "pixels",
    "height": "pixels",
    "shard_mb": "MB",
    "clip_seconds": "s",
    "clip_stride_seconds": "s",
    "seconds": "s",
    "seed": "",
    "num_frames": "frames",
    "frames": "frames",
    "num_clips": "clips",
    "TrainConfig.batch": "queries",
    "ExtractConfig.batch_size": "frames",
    "EvaluateConfig.batch": "passes",
    "epochs": "passes over the split",
    "max_steps": "steps",
    "lr_schedule_steps": "steps",
    "validate_every": "steps",
    "checkpoint_every": "steps",
    "log_every": "steps",
    "hidden_dim": "channels",
    "ffn_dim": "channels",
    "proposal_map_channels": "channels",
    "r3d_width": "channels",
    "negative_rate": "share",
    "boundary_sigma": "frames",
    "workers": "processes",
    "videos": "videos",
    "gallery_size": "queries",
    "jpeg_quality": "1 to 100",
}
"""Unit of a key by its name, or by class and name, where it has one."""

SYSTEM_NAMES = {"csdvl": "CSDVL and STVGFormer", "cgstvg": "CG-STVG", "costa": "CoSTA"}


def field_meanings(config_class: type[BaseModel]) -> dict[str, str]:
    """Return the string under each field of a class and of its bases, by field name."""
    meanings: dict[str, str] = {}

    for base in reversed(config_class.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        body = tree.body[0].body  # type: ignore[attr-defined]

        for statement, following in pairwise(body):
            is_field = isinstance(statement, ast.AnnAssign)
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_field and is_text:
                meanings[statement.target.id] = " ".join(str(following.value.value).split())

    return meanings


def describe_type(annotation: Any) -> str:
    """Return a type in the words of the table: `integer`, `true or false`, the allowed words."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)

    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, UnionType):
        parts = [describe_type(part) for part in arguments if part is not NoneType]
        return " or ".join([*parts, *(["null"] if NoneType in arguments else [])])
    if origin is tuple:
        return f"list of {describe_type(arguments[0])}"
    if origin in (dict, list):
        return "mapping" if origin is dict else f"list of {describe_type(arguments[0])}"
    if origin is typing.Annotated:
        return describe_type(arguments[0])

    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, "mapping")


def describe_default(field: FieldInfo) -> str:
    """Return a field's default as YAML would write it."""
    if field.default_factory is not None:
        value = field.get_default(call_default_factory=True)
        if isinstance(value, int) and not isinstance(value, bool):
            return "number of cores"
    elif field.default is PydanticUndefined:
        return "must be given"
    else:
        value = field.default

    if isinstance(value, BaseModel):
        return "see below"
    return f"`{json.dumps(value, default=str, ensure_ascii=False)}`".replace('"', "")


def find_unit(config_class: type[BaseModel], name: str) -> str:
    """Return the unit of a field, of its class or of a base class; empty if it has none."""
    for base in config_class.__mro__:
        unit = UNITS.get(f"{base.__name__}.{name}")
        if unit is not None:
            return unit
    return UNITS.get(name, "")


def nested_class(field: FieldInfo) -> type[BaseModel] | None:
    """Return the configuration class that a field holds, None for a plain value."""
    candidates = [field.annotation, *typing.get_args(field.annotation)]
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def table(config_class: type[BaseModel], prefix: str = "", only: set[str] | None = None) -> str:
    """Return the Markdown tables of a class: its own keys, then one table per nested mapping.

    Args:
        config_class: The configuration class.
        prefix: Dotted path of the class within its section.
        only: Keys to show; None for all.
    """
    meanings = field_meanings(config_class)
    rows = ["| key | type | default | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    nested = []

    for name, field in config_class.model_fields.items():
        if only is not None and name not in only:
            continue
        inner = nested_class(field)
        if inner is not None:
            nested.append((name, inner))
        default_meaning = "" if inner is None else "See the table below."
        meaning = meanings.get(name, default_meaning).replace("|", "\\|")
        unit = find_unit(config_class, name)
        kind = describe_type(field.annotation)
        default = describe_default(field)
        rows.append(f"| `{prefix}{name}` | {kind} | {default} | {unit} | {meaning} |")

    parts = ["\n".join(rows)]
    parts += [table(inner, f"{prefix}{name}.") for name, inner in nested]
    return "\n\n".join(parts)


def train_section() -> str:
    """Return the part on section `train`: the common keys once, then each system's own."""
    classes = {name: SYSTEMS[name].config_class for name in SYSTEM_NAMES}
    base = classes["csdvl"].__mro__[1]
    common = set(base.model_fields) - {"model", "loss"}  # type: ignore[attr-defined]
    parts = ["## `train`", table(classes["csdvl"], only=common)]

    for name, config_class in classes.items():
        own = {
            key
            for key, field in config_class.model_fields.items()
            if key in ("model", "loss")
            or describe_default(field) != describe_default(classes["csdvl"].model_fields[key])
        }
        title = f"### {SYSTEM_NAMES[name]}"
        note = (
            f"Keys of section `train` with `system: {name}` (`--model {name}`), where they differ."
        )
        parts += [title, note, table(config_class, only=own)]

    return "\n\n".join(parts)


def section_classes() -> dict[str, type[BaseModel]]:
    """Return the class of each section; of `train` that of the default system."""
    return {
        "dataset": DatasetConfig,
        "prepare": PrepareConfig,
        "extract": ExtractConfig,
        "train": SYSTEMS["csdvl"].config_class,
        "evaluate": EvaluateConfig,
        "report": ReportConfig,
    }


def generate() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION.read_text(encoding="utf-8").strip()]
    for name, config_class in section_classes().items():
        if name == "train":
            parts.append(train_section())
        else:
            parts.append(f"## `{name}`\n\n{table(config_class)}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
