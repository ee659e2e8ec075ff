"""The documentation says what the code does: every configuration key with its default."""

import re
from pathlib import Path

import pytest
import yaml

from cli.console.dataset_options import DatasetConfig, PrepareConfig
from grounding.evaluation.config import EvaluateConfig
from grounding.report.build import ReportConfig
from grounding.systems.config import CgstvgTrainConfig, CostaTrainConfig, TrainConfig
from grounding.systems.registry import get_preset
from grounding.training.train import CsdvlTrainConfig
from pipeline.config import SECTIONS, StrictModel
from pipeline.extraction.run import ExtractConfig

ROOT = Path(__file__).parents[1]
KINDS: dict[str, type[StrictModel]] = {
    "dataset": DatasetConfig,
    "prepare": PrepareConfig,
    "extract": ExtractConfig,
    "train": CsdvlTrainConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
}


def documented(section: str) -> dict:
    text = (ROOT / "docs" / "configuration.md").read_text()
    return yaml.safe_load(re.search(rf"## `{section}`.*?```yaml\n(.*?)```", text, re.DOTALL)[1])


def test_every_section_is_documented() -> None:
    assert tuple(KINDS) == SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_and_defaults_are_the_codes(section: str) -> None:
    defaults = KINDS[section]().model_dump(mode="json")
    if section == "prepare":
        defaults["workers"] = None  # the machine's cores
    assert documented(section) == defaults


@pytest.mark.parametrize(
    ("name", "kind"), [("CG-STVG", CgstvgTrainConfig), ("CoSTA", CostaTrainConfig)]
)
def test_a_system_s_own_defaults_are_the_codes(name: str, kind: type[TrainConfig]) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    written = yaml.safe_load(re.search(rf"### {name}.*?```yaml\n(.*?)```", text, re.DOTALL)[1])
    ours, csdvl = (one().model_dump(mode="json") for one in (kind, CsdvlTrainConfig))
    assert written == {key: value for key, value in ours.items() if csdvl[key] != value}


@pytest.mark.parametrize("file", ["params.yaml", "benchmarks/shapes-large.yaml"])
def test_params_files_hold_known_keys(file: str) -> None:
    params = yaml.safe_load((ROOT / file).read_text())
    params["train"].pop("preset")
    for section, values in params.items():
        KINDS[section].model_validate(values)


def test_the_larger_shapes_store_as_many_frames_as_its_preset_s_passes_take() -> None:
    params = yaml.safe_load((ROOT / "benchmarks" / "shapes-large.yaml").read_text())
    shapes = PrepareConfig.model_validate(params["prepare"]).shapes
    stored = shapes.seconds[0] * min(shapes.fps, params["extract"]["sampling"]["fps"])
    assert stored >= get_preset(params["train"]["preset"])["model"]["frames"]
