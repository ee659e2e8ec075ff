"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from benchmarks.import_graph import PACKAGES, format_mermaid
from grounding.systems.config import TrainConfig
from tests.conftest import TinyRun
from tests.forked_commands import ForkedCommand

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "data_cards").glob("*.md")),
]


def load_script(path: Path) -> ModuleType:
    """Import a script of `docs/`, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_code_generates() -> None:
    """Run `python docs/generate_configuration.py` after a change of a configuration class."""
    script = load_script(DOCS / "generate_configuration.py")
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == script.generate()


def test_units_of_a_class_are_of_its_fields() -> None:
    """A renamed field would lose its unit on the page without a word."""
    script = load_script(DOCS / "generate_configuration.py")
    keys = [key.split(".") for key in script.UNITS if "." in key]
    assert keys
    for class_name, field in keys:
        config_class = getattr(script, class_name, TrainConfig)
        assert config_class.__name__ == class_name
        assert field in config_class.model_fields, f"{class_name}.{field}"


def test_every_key_has_a_meaning() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` .*\| ([^|]*) \|$", (DOCS / "configuration.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 100
    assert [key for key, meaning in rows if not meaning.strip()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_import_graph_is_the_codes(package: str) -> None:
    """Run `make graph` after a change of imports between folders."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- graph:{package} -->\n```mermaid\n(.*?)\n```", text, re.DOTALL)
    assert match is not None
    assert match[1] == format_mermaid(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_line_in_the_architecture(package: str) -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / package).glob("*/__init__.py")]
    assert folders
    assert [name for name in folders if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_is_short_and_begins_with_a_picture() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert lines[2].startswith("![")
    assert (DOCS / "images" / "demo.webp").stat().st_size < 1_000_000


@pytest.mark.parametrize("file", ["params.yaml", "benchmarks/shapes-large.yaml"])
def test_params_files_hold_known_keys(file: str) -> None:
    script = load_script(DOCS / "generate_configuration.py")
    classes = script.section_classes()
    params = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    params["train"].pop("preset")
    for section, values in params.items():
        classes[section].model_validate(values)


def test_the_larger_shapes_store_as_many_frames_as_a_pass_of_its_preset_takes() -> None:
    from cli.console.dataset_options import PrepareConfig
    from grounding.systems.registry import get_preset

    params = yaml.safe_load((ROOT / "benchmarks" / "shapes-large.yaml").read_text())
    shapes = PrepareConfig.model_validate(params["prepare"]).shapes
    stored = shapes.seconds[0] * min(shapes.fps, params["extract"]["sampling"]["fps"])
    assert stored >= get_preset(params["train"]["preset"])["model"]["num_frames"]


def run_example(output_path: Path, name: str, *arguments: str) -> str:
    """Run a program of `docs/examples` and return what it prints."""
    program = str(DOCS / "examples" / name)
    process = ForkedCommand(program, arguments, output_path, cwd=ROOT)
    assert process.wait(120) == 0, process.output
    return process.output


def test_the_example_that_grounds_a_video_runs(tiny_run: TinyRun, tmp_path: Path) -> None:
    video = next((tiny_run.root / "video").rglob("*.mp4"))
    arguments = (str(video), "what falls?", "--run", str(tiny_run.run))
    output = run_example(tmp_path / "output.txt", "ground_video.py", *arguments)
    assert re.search(r"^what falls\?: [\d.]+ s to [\d.]+ s, score [\d.]+$", output, re.MULTILINE)


def test_the_example_that_reads_a_store_runs(tiny_run: TinyRun) -> None:
    program = [sys.executable, str(DOCS / "examples" / "read_store.py"), str(tiny_run.store)]
    output = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "three maps: (3, " in output


def test_the_example_that_trains_runs(tiny_run: TinyRun, tmp_path: Path) -> None:
    videos = sorted((tiny_run.root / "video").rglob("*.mp4"))
    boxes = [[10.0, 10.0, 40.0, 40.0]] * 20
    entries = [
        {
            "video": str(video),
            "text": "the red circle falls.",
            "split": "train" if number else "val",
            "tube": {"begin": 5, "boxes": boxes},
        }
        for number, video in enumerate(videos)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    arguments = (str(data), str(tmp_path / "out"), "--steps", "2")
    run_example(tmp_path / "output.txt", "train_on_jsonl.py", *arguments)
    assert (tmp_path / "out" / "run" / "checkpoints" / "best" / "model.safetensors").is_file()
