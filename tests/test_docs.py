"""The documentation says what the code does: every configuration key with its default."""

import re
from pathlib import Path

import pytest
import yaml

from cli.settings import DatasetConfig, PrepareConfig
from grounding.judge import EvaluateConfig
from grounding.recipe import CgstvgTrainConfig
from grounding.report import ReportConfig
from grounding.train import TrainConfig
from pipeline.config import SECTIONS, Config
from pipeline.run import ExtractConfig

ROOT = Path(__file__).parents[1]
KINDS: dict[str, type[Config]] = {
    "dataset": DatasetConfig,
    "prepare": PrepareConfig,
    "extract": ExtractConfig,
    "train": TrainConfig,
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


def test_cg_stvg_s_own_defaults_are_the_codes() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    written = yaml.safe_load(re.search(r"### CG-STVG.*?```yaml\n(.*?)```", text, re.DOTALL)[1])
    ours, csdvl = (kind().model_dump(mode="json") for kind in (CgstvgTrainConfig, TrainConfig))
    assert written == {key: value for key, value in ours.items() if csdvl[key] != value}


def test_params_file_holds_known_keys() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"].pop("preset")
    for section, values in params.items():
        KINDS[section].model_validate(values)
