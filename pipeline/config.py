"""Configuration: one YAML file with sections; each command validates its own section.

Precedence, lowest first: preset, file, `--set key=value`. Unknown keys are errors. A command
unpacks a validated config into keyword arguments and saves the config with its output. Only a
model takes a config as a whole: the config is the model's list of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.validation import StrictModel as StrictModel
from pipeline.validation import format_first_error

SECTIONS = ("dataset", "prepare", "extract", "train", "evaluate", "report")

RENAMED_KEYS: dict[str, dict[str, str]] = {
    "extract": {
        "batch": "batch_size",
        "sampling.short": "sampling.short_side",
        "sampling.clip_every": "sampling.clip_stride_seconds",
        "sampling.clip_span": "sampling.clip_seconds",
        "sampling.pool_motion": "sampling.pool_motion_2x2",
    },
    "train": {
        "initialise": "init_from",
        "absent": "negative_rate",
        "accumulate": "accumulation_steps",
        "recompute": "activation_checkpointing",
        "optimiser": "optimizer",
        "ema": "ema_decay",
        "schedule_steps": "lr_schedule_steps",
        "augment.flip": "augment.flip_probability",
        "augment.smallest": "augment.min_scale",
        "augment.crop": "augment.crop_probability",
        "augment.least": "augment.min_crop_fraction",
        "model.d": "model.hidden_dim",
        "model.heads": "model.num_heads",
        "model.ffn": "model.ffn_dim",
        "model.layers": "model.num_layers",
        "model.decoder_layers": "model.num_decoder_layers",
        "model.stages": "model.num_stages",
        "model.frames": "model.num_frames",
        "model.clips": "model.num_clips",
        "model.motion": "model.motion_product",
        "model.guide_gain": "model.guidance_scale",
        "model.detach_guide": "model.detach_guidance",
        "model.query_mixing": "model.query_self_attention",
        "model.dynamic_space": "model.dynamic_spatial_tokens",
        "model.text_pools_space": "model.text_attends_pooled_clips",
        "model.clip_pool": "model.clip_pooling",
        "model.map_channels": "model.proposal_map_channels",
        "model.map_kernel": "model.proposal_map_kernel",
        "model.map_layers": "model.proposal_map_layers",
        "model.word_gain": "model.text_balance",
        "model.theta_one": "model.single_threshold",
        "model.context_in_time": "model.temporal_context",
        "model.region": "model.region_pooling",
        "model.truth_iou": "model.teacher_iou",
        "model.backbones_used": "model.backbones",
        "model.trunk_width": "model.r3d_width",
        "model.tune_image": "model.train_image_encoder",
        "model.entangled": "model.entangled_queries",
        "model.beta": "model.teacher_forcing_rate",
        "loss.attentive": "loss.temporal_attention",
        "loss.attentive_frame": "loss.temporal_attention_frame",
        "loss.attentive_clip": "loss.temporal_attention_clip",
        "loss.carriers": "loss.box_attention",
        "loss.cells": "loss.cell_boxes",
        "loss.first": "loss.start",
        "loss.last": "loss.end",
        "loss.background": "loss.outside_weight",
        "loss.quality": "loss.box_confidence",
        "loss.sigma": "loss.boundary_sigma",
        "loss.smooth": "loss.smooth_l1",
        "loss.generalised": "loss.use_giou",
        "loss.fused": "loss.encoder_presence",
        "loss.decoded": "loss.decoder_presence",
    },
    "evaluate": {
        "between": "subframe_boundaries",
        "refine": "refine_boundaries",
    },
    "report": {
        "strips": "gallery_size",
        "side": "max_side",
        "maps": "attention_maps",
    },
}
"""New dotted key of each renamed key, by section and old dotted key.

An old key stands for everything below it, too: `"model.old": "model.new"` also translates
`model.old.width`. The table only improves the message for an unknown key; it accepts no old key.
"""

_SECTION_IN_CONTEXT = re.compile(r"section '(\w+)'")

ConfigT = TypeVar("ConfigT", bound=StrictModel)


def read_section(path: Path | None, section: str) -> dict[str, Any]:
    """Read one section of a YAML file.

    Args:
        path: The file; None for no file.
        section: Name of the section, one of `SECTIONS`.

    Returns:
        The mapping under `section`; empty without a file or without the section.

    Raises:
        InputError: The file is missing, unreadable, or not YAML; it is not a mapping of known
            sections; or the section is not a mapping.
    """
    if path is None:
        return {}

    content = _read_yaml(path)
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


def _read_yaml(path: Path) -> Any:
    """Parse a YAML file; every fault is an InputError."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"config {path} does not exist") from None
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"config {path} is not YAML: {message}") from None


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; neither is changed.

    Args:
        base: Values to start from.
        override: Values that win. A mapping over a mapping is merged key by key; every other
            value replaces the base's value.

    Returns:
        A new mapping with the keys of both.
    """
    result = dict(base)
    for key, value in override.items():
        base_value = result.get(key)
        if isinstance(base_value, Mapping) and isinstance(value, Mapping):
            result[key] = merge(base_value, value)
        else:
            result[key] = value
    return result


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse `--set` options.

    Args:
        assignments: Texts `dotted.key=value`; values are parsed as YAML. Later ones win.

    Returns:
        The nested mapping: `["model.collaboration=none"]` gives
        `{"model": {"collaboration": "none"}}`.

    Raises:
        InputError: A text has no key or no `=`, or its value is not YAML.
    """
    result: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise InputError(
                f"--set {text!r} is not of the form key=value (for example --set max_steps=100)"
            )

        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {text!r}: the value is not YAML") from None

        # Wrap the value in one mapping for each part of the key, innermost first.
        for part in reversed(parts):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def validate(config_class: type[ConfigT], values: Mapping[str, Any], context: str) -> ConfigT:
    """Build a config from values.

    Args:
        config_class: Class of the config.
        values: Values by key, nested as the config is.
        context: Origin of the values, the beginning of error messages. `section 'NAME'` at its
            beginning also selects the section's `RENAMED_KEYS`.

    Returns:
        The config.

    Raises:
        InputError: A key is unknown or renamed, or a value is invalid. The message names the
            first such key and the allowed ones.
    """
    try:
        return config_class.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        if problem["type"] == "extra_forbidden":
            message = _describe_unknown_key(config_class, problem["loc"], context)
        else:
            message = format_first_error(error)
        raise InputError(f"{context}: {message}") from None


def _describe_unknown_key(
    config_class: type[BaseModel], location: Sequence[Any], context: str
) -> str:
    """Describe an unknown key by its new name, or by the allowed keys of its level."""
    key = ".".join(str(part) for part in location)

    new_key = _find_new_key(context, key)
    if new_key is not None:
        return f"the key {key!r} is now {new_key!r}"

    allowed_keys = ", ".join(_allowed_keys(config_class, location))
    return f"unknown key {key!r}; the keys are {allowed_keys}"


def _find_new_key(context: str, key: str) -> str | None:
    """Return the new name of a dotted key of the context's section; None if it has no new name."""
    match = _SECTION_IN_CONTEXT.match(context)
    renamed = RENAMED_KEYS.get(match[1], {}) if match else {}

    # The longest matching beginning of the key is the most specific one.
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        new_key = renamed.get(".".join(parts[:length]))
        if new_key is not None:
            return ".".join([new_key, *parts[length:]])
    return None


def _allowed_keys(config_class: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Return the sorted keys allowed at the level of an unknown key."""
    for part in location[:-1]:
        field = config_class.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            config_class = annotation
    return sorted(config_class.model_fields)


def load(
    config_class: type[ConfigT],
    section: str,
    file: Path | None,
    assignments: Sequence[str],
    preset: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Load and validate one section of the configuration.

    Args:
        config_class: Class of the section's config.
        section: Name of the section.
        file: YAML file with sections; None for no file.
        assignments: `--set` options; they override the file.
        preset: Values that the file overrides.

    Returns:
        The config.

    Raises:
        InputError: The file, an assignment, a key or a value is invalid.
    """
    values = merge(preset or {}, read_section(file, section))
    values = merge(values, parse_assignments(assignments))
    return validate(config_class, values, f"section {section!r}")


def save(path: Path, section: str, config: StrictModel) -> None:
    """Write a config as a YAML file with one section.

    Args:
        path: The file to write. `load` reads the same config from it.
        section: Name of the section.
        config: The config.
    """
    document = {section: config.model_dump(mode="json")}
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
