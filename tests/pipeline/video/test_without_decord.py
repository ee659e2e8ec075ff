"""Without decord PyAV reads every file: same frames, and provenance names the decoders in use."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from pipeline.errors import StoreError
from pipeline.extraction import provenance
from pipeline.extraction.config import ExtractConfig
from pipeline.video import ProcessDecoder, is_decord_installed, open_frames, probe, process_decoder

REPOSITORY = Path(__file__).parents[3]
WORKER_WITHOUT_DECORD = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "decord":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from pipeline.video import worker
worker.main()
assert "decord" not in sys.modules
"""


@pytest.fixture
def without_decord(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide decord from this process and from decoding processes started later."""
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setattr(process_decoder, "WORKER_COMMAND", ("-c", WORKER_WITHOUT_DECORD))


def visual_versions() -> dict[str, str]:
    config = ExtractConfig(backbones="tiny", weights="random:0", device="cpu")
    versions: dict[str, str] = provenance.build_provenance("frames", config, {})["versions"]
    return versions


@pytest.mark.parametrize("choice", ["auto", "decord"])
@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("plain.mp4", {}, "decord"),
        ("turned.mp4", {"rotation": 90}, "pyav"),  # decord gives four channels and is left
        ("plain.avi", {}, "pyav"),
    ],
)
def test_frames_are_the_same(
    tmp_path: Path,
    make_video: Any,
    request: pytest.FixtureRequest,
    name: str,
    options: dict[str, Any],
    decoder: str,
    choice: Any,
) -> None:
    path = make_video(tmp_path / name, **options)
    metadata = probe(path)
    with open_frames(path, metadata, range(1, 40, 3), "auto") as reader:
        expected = list(reader)
        assert reader.decoder == decoder
    assert len(expected) == 13

    request.getfixturevalue("without_decord")
    assert repr(probe(path)) == repr(metadata)
    with open_frames(path, metadata, range(1, 40, 3), choice) as reader:
        frames = list(reader)
        assert reader.decoder == "pyav"
        if not name.endswith("avi"):
            assert reader.reason == "decord is not installed"
    for (index, frame), (expected_index, expected_frame) in zip(frames, expected, strict=True):
        assert index == expected_index
        assert np.array_equal(frame, expected_frame)


def test_the_decoding_process_needs_no_decord(
    tmp_path: Path, make_video: Any, request: pytest.FixtureRequest
) -> None:
    path = make_video(tmp_path / "plain.mp4")
    with ProcessDecoder() as child, child.frames(path, child.probe(path), range(40)) as stream:
        assert stream.decoder == "decord"
        expected = list(stream)

    request.getfixturevalue("without_decord")
    with ProcessDecoder() as child:
        with child.frames(path, child.probe(path), range(40)) as stream:
            assert (stream.decoder, stream.reason) == ("pyav", "decord is not installed")
            frames = list(stream)
        assert "decord" not in Path(f"/proc/{child.pid}/maps").read_text()
    for (index, frame), (expected_index, expected_frame) in zip(frames, expected, strict=True):
        assert index == expected_index
        assert np.array_equal(frame, expected_frame)


@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError])
def test_an_import_hook_that_refuses_decord_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, error: type[ImportError]
) -> None:
    class Refusing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "decord":
                raise error(name)

    monkeypatch.delitem(sys.modules, "decord", raising=False)
    assert is_decord_installed()
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert not is_decord_installed()


def test_a_module_without_a_specification_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("decord")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "decord", module)
    assert not is_decord_installed()


def test_provenance_names_decord_only_if_it_is_installed(request: pytest.FixtureRequest) -> None:
    assert list(visual_versions()) == ["torch", "torchvision", "decord", "av", "pillow"]
    request.getfixturevalue("without_decord")
    assert list(visual_versions()) == ["torch", "torchvision", "av", "pillow"]


@pytest.mark.parametrize(
    ("worker_has_decord", "message"),
    [
        (False, "the worker on .* has no decord, but frames of this store is made with [0-9.]+:"),
        (True, "the worker on .* has decord [0-9.]+, but frames of this store is made with none:"),
    ],
)
def test_a_worker_with_other_decoders_is_refused(
    monkeypatch: pytest.MonkeyPatch, worker_has_decord: bool, message: str
) -> None:
    config = ExtractConfig(backbones="tiny", weights="random:0", device="cpu")
    monkeypatch.setattr(provenance, "is_decord_installed", lambda: not worker_has_decord)
    asked = provenance.build_provenance("frames", config, {})
    job: Any = SimpleNamespace(missing=["frames"], provenance={"frames": asked}, config=config)
    provenance.check_worker_environment(job)

    monkeypatch.setattr(provenance, "is_decord_installed", lambda: worker_has_decord)
    with pytest.raises(StoreError, match=message):
        provenance.check_worker_environment(job)


@pytest.mark.parametrize(
    ("system", "machine", "is_required"),
    [
        ("Linux", "x86_64", True),
        ("Windows", "AMD64", True),
        ("Linux", "aarch64", False),
        ("Windows", "ARM64", False),
        ("Darwin", "x86_64", False),
        ("Darwin", "arm64", False),
    ],
)
def test_decord_is_required_where_it_has_a_wheel(
    system: str, machine: str, is_required: bool
) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    (marker,) = [item.marker for item in requirements if item.name == "decord"]
    assert marker is not None
    environment = {"platform_system": system, "platform_machine": machine}
    assert marker.evaluate(environment) is is_required
