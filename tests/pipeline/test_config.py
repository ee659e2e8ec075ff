"""Configuration at the door: what is laid over what, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import (
    RENAMED_KEYS,
    SECTIONS,
    StrictModel,
    load,
    merge,
    parse_assignments,
    read_section,
    save,
    validate,
)
from pipeline.errors import InputError
from pipeline.extraction.config import ExtractConfig

trees: Any = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


class Inner(StrictModel):
    kind: Literal["full", "none"] = "full"
    width: int = 3


class Outer(StrictModel):
    model: Inner = Inner()
    lr: float = 1e-4
    steps: int | None = None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_a_section_of_a_file(file: Path) -> None:
    file.write_text("dataset: shapes\ntrain: {lr: 0.5}\n")
    assert read_section(file, "train") == {"lr": 0.5}


@pytest.mark.parametrize("content", ["", "train:\n", "prepare: {a: 1}"])
def test_a_section_that_is_absent_or_empty_is_empty(file: Path, content: str) -> None:
    file.write_text(content)
    assert read_section(file, "train") == {}


def test_without_a_file_a_section_is_empty() -> None:
    assert read_section(None, "train") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {lr: 1", r"params\.yaml is not YAML: .*expected"),
        (b"train: \xff", r"params\.yaml is not YAML: .*utf-8"),
        (
            b"[train]",
            r"params\.yaml must be a mapping of sections dataset, prepare, extract, train",
        ),
        (b"trian: {}", r"params\.yaml: unknown section 'trian'; the sections are dataset, prepare"),
        (b"train: 3", r"params\.yaml: section 'train' must be a mapping, not 3"),
    ],
)
def test_a_file_that_is_no_config_is_refused(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_section(file, "train")


def test_a_file_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml does not exist"):
        read_section(file, "train")


def test_merging_goes_mapping_by_mapping() -> None:
    assert merge({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "b": {"z": 4}}) == {
        "a": {"x": 1, "y": 3},
        "b": {"z": 4},
    }


@given(mappings, mappings)
def test_what_lies_on_top_wins(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = yaml.safe_dump(base)
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert merge(base, {}) == base == merge({}, base)
    assert set(merged) == set(base) | set(over)
    assert yaml.safe_dump(base) == before


def test_assignments_nest_and_their_values_are_yaml() -> None:
    given = ["model.kind=none", "model.width=5", "steps=null", "text=a=b", "on=[1, 2]"]
    expected = {"model": {"kind": "none", "width": 5}, "steps": None, "text": "a=b", "on": [1, 2]}
    assert parse_assignments(given) == expected


def test_a_later_assignment_wins() -> None:
    assert parse_assignments(["lr=1", "lr=2"]) == {"lr": 2}


@pytest.mark.parametrize("text", ["lr", "=3", "model.=3", ".kind=3", ""])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(
        InputError,
        match=r"--set '.*' is not of the form key=value \(for example --set max_steps=100\)",
    ):
        parse_assignments([text])


def test_an_assignment_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(InputError, match=r"--set 'lr=\[1': the value is not YAML"):
        parse_assignments(["lr=[1"])


def test_an_unknown_key_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="here: unknown key 'lrr'; the keys are lr, model, steps"):
        validate(Outer, {"lrr": 1}, "here")


def test_an_unknown_key_within_is_refused_with_those_of_its_level() -> None:
    with pytest.raises(
        InputError, match=r"here: unknown key 'model\.widht'; the keys are kind, width"
    ):
        validate(Outer, {"model": {"widht": 1}}, "here")


@pytest.mark.parametrize(
    ("config_class", "section", "assignment", "message"),
    [
        (
            ExtractConfig,
            "extract",
            "sampling.short=224",
            r"^section 'extract': the key 'sampling\.short' is now 'sampling\.short_side'$",
        ),
        (Outer, "train", "ema=0.9", r"^section 'train': the key 'ema' is now 'ema_decay'$"),
        (
            Outer,
            "train",
            "model.size=1",
            r"^section 'train': the key 'model\.size' is now 'network\.width'$",
        ),
        (
            Outer,
            "train",
            "model.depth=1",
            r"^section 'train': the key 'model\.depth' is now 'network\.depth'$",
        ),
        (Outer, "report", "ema=0.9", r"^section 'report': unknown key 'ema'; the keys are lr, "),
        (Outer, "train", "schedule=1", r"^section 'train': unknown key 'schedule'; the keys are"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(
    config_class: type[StrictModel],
    section: str,
    assignment: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RENAMED_KEYS["train"], "model", "network")
    monkeypatch.setitem(RENAMED_KEYS["train"], "model.size", "network.width")
    with pytest.raises(InputError, match=message):
        load(config_class, section, None, [assignment])


def test_a_renamed_key_of_a_sweeps_variant_is_refused_with_its_new_name() -> None:
    with pytest.raises(InputError, match=r"variant 'a': the key 'ema' is now 'ema_decay'"):
        validate(Outer, {"ema": 0.9}, "section 'train', variant 'a'")


def test_keys_are_renamed_within_known_sections() -> None:
    assert set(RENAMED_KEYS) <= set(SECTIONS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, r"here: lr: .*valid number.*\(got 'fast'\)"),
        ({"lr": float("nan")}, r"here: lr: .*finite"),
        ({"model": {"kind": "half"}}, r"here: model\.kind: .*'full' or 'none' \(got 'half'\)"),
        ({"model": 3}, r"here: model: .*\(got 3\)"),
        ({"steps": 1.5}, r"here: steps: .*integer.*\(got 1\.5\)"),
        ({1: 2}, r"here: 1: Keys should be strings"),
    ],
)
def test_a_bad_value_is_refused_by_name(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(Outer, values, "here")


def test_preset_below_file_below_assignments(file: Path) -> None:
    file.write_text("train: {lr: 2, model: {width: 7}}")
    preset = {"lr": 1, "steps": 9, "model": {"width": 6, "kind": "none"}}
    config = load(Outer, "train", file, ["lr=3"], preset)
    assert config == Outer(lr=3, steps=9, model=Inner(width=7, kind="none"))


def test_a_load_names_its_section() -> None:
    with pytest.raises(InputError, match="section 'train': unknown key 'x'"):
        load(Outer, "train", None, ["x=1"])


def test_what_yaml_reads_as_text_may_be_a_number() -> None:
    assert load(Outer, "train", None, ["lr=1e-3"]).lr == 1e-3


@given(st.floats(allow_nan=False, allow_infinity=False), st.none() | st.integers(), st.integers())
def test_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, lr: float, steps: int | None, width: int
) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    config = Outer(lr=lr, steps=steps, model=Inner(width=width))
    save(path, "train", config)
    assert load(Outer, "train", path, []) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().lr = 1.0  # type: ignore[misc]


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_section(tmp_path, "train")
