"""`stvg-predict`: the JSON, the drawn videos, the table, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

import cli.predict
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.video import ProcessDecoder, probe

SENTENCES = ("the red circle spins.", "what falls?")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.predict.app, [str(argument) for argument in arguments])


@pytest.fixture
def run(tiny_run: Any, tmp_path: Path) -> Path:
    """A run of one's own: the command logs there."""
    return shutil.copytree(tiny_run.run, tmp_path / "run")


@pytest.fixture(scope="module")
def video(tiny_run: Any) -> Path:
    return tiny_run.root / next(
        query.path for query in read_jsonl(tiny_run.index, Query) if query.split == "test"
    )


def test_tubes_are_written_and_drawn(run: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out.json"
    result = call(video, *SENTENCES, "--run", run, "--json", out, "--video", tmp_path / "drawn.mp4")
    assert result.exit_code == 0, result.stderr
    content = json.loads(out.read_text())
    assert list(content) == ["format", "video", "queries"]
    assert content["format"] == 1
    assert content["video"] == {
        "path": str(video),
        "fps": 10.0,
        "frame_count": 50,
        "size": [160, 96],
    }
    assert [query["text"] for query in content["queries"]] == list(SENTENCES)
    for query in content["queries"]:
        assert list(query) == ["text", "score", "span_frames", "span_seconds", "boxes", "others"]
        assert [row[0] for row in query["boxes"]] == list(range(*query["span_frames"]))
        assert all(
            0 <= x1 <= x2 <= 160 and 0 <= y1 <= y2 <= 96 for _, x1, y1, x2, y2 in query["boxes"]
        )
        assert query["span_seconds"] == pytest.approx([edge / 10 for edge in query["span_frames"]])
    for number in (1, 2):
        assert probe(tmp_path / f"drawn-{number}.mp4").duration == pytest.approx(
            probe(video).duration, abs=1e-3
        )
    assert "decoding: " in result.stderr
    assert "exit code 0" in (run / "log.txt").read_text()


CHECK_PATHS = """
import sys
from typer.testing import CliRunner
from cli.predict import app
missing_video, video, missing_run, run = sys.argv[1:]
for arguments in ([missing_video, "x", "--run", run], [video, "x", "--run", missing_run]):
    result = CliRunner().invoke(app, arguments)
    print(result.exit_code, result.stderr.replace("\\n", " "))
print("torch" in sys.modules)
"""


def test_paths_are_checked_before_the_libraries_of_models_are_imported(
    run: Path, video: Path, tmp_path: Path
) -> None:
    paths = (tmp_path / "absent.mp4", video, tmp_path / "absent", run)
    output = subprocess.run(
        [sys.executable, "-c", CHECK_PATHS, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    video_line, run_line, torch_line = output.splitlines()
    assert video_line.startswith("2 error: ")
    assert "absent.mp4 does not exist; put the video there or correct its path" in video_line
    assert run_line.startswith("2 error: ")
    assert "is not a run directory (no provenance.json): train one with stvg-train" in run_line
    assert torch_line == "False"


def test_the_video_is_decoded_by_a_process_of_its_own(
    run: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one does when a file hangs or kills it stands with its own tests."""
    asked: list[int] = []

    def noted(decoder: ProcessDecoder, *given: Any) -> Any:
        asked.append(decoder.pid)
        return frames(decoder, *given)

    frames = ProcessDecoder.frames
    monkeypatch.setattr(ProcessDecoder, "frames", noted)
    monkeypatch.setattr("pipeline.features.stream.open_frames", None)
    result = call(video, SENTENCES[0], "--run", run)
    assert result.exit_code == 0, result.stderr
    assert len(asked) == 1
    assert not psutil.pid_exists(asked[0])


def test_several_runs_answer_together(
    run: Path, tiny_run: Any, video: Path, tmp_path: Path
) -> None:
    """Two of the same say what one says; the log lies with the first."""
    twice = call(
        video, *SENTENCES, "--run", run, "--run", tiny_run.run, "--json", tmp_path / "two.json"
    )
    assert twice.exit_code == 0, twice.stderr
    assert (
        call(video, *SENTENCES, "--run", tiny_run.run, "--json", tmp_path / "one.json").exit_code
        == 0
    )
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(
        (tmp_path / "one.json").read_text()
    )


def test_a_table_is_shown_without_json(run: Path, video: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("what falls?\n\n  what [b]spins[/b]?  \n", encoding="utf-8")
    result = call(
        video, "--queries", queries, "--run", run, "--set", "frames=8", "--set", "device=cpu"
    )
    assert result.exit_code == 0, result.stderr
    assert "what falls?" in result.stdout
    assert "what [b]spins[/b]?" in result.stdout
    assert "warning" not in result.stderr


def test_one_sentence_gets_the_file_it_asked_for(run: Path, video: Path, tmp_path: Path) -> None:
    assert call(video, SENTENCES[0], "--run", run, "--video", tmp_path / "one.mp4").exit_code == 0
    assert (tmp_path / "one.mp4").exists()


def test_a_run_on_shapes_warns_about_other_videos(run: Path, video: Path, tmp_path: Path) -> None:
    other = shutil.copy(video, tmp_path / "holiday.mp4")
    result = call(other, SENTENCES[0], "--run", run)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "was trained on `shapes`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no sentence: say what to look for"),
        (["a dog jumps.", " "], "sentence 2 of 2 is empty"),
        (
            ["--queries", "none.txt"],
            "--queries none.txt cannot be read (No such file or directory)",
        ),
        (["--queries", "blank.txt"], "no sentence"),
        (["--queries", "latin.txt"], "--queries latin.txt cannot be read (it is not UTF-8)"),
        (["what?", "--video", "out.avi"], "--video out.avi must end in .mp4"),
        (["what?", "--video", "film.mp4"], "would overwrite the input video"),
        (["what?", "--set", "speed=1"], "unknown key 'speed'"),
        (["what?", "--run", "nothing"], "nothing is not a run directory (no provenance.json)"),
    ],
)
def test_wrong_usage_is_explained(
    arguments: list[str],
    message: str,
    run: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(video, "film.mp4")
    shutil.copytree(run, "runs/shapes")
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    result = call("film.mp4", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("nothing").exists()


def test_a_bad_video_or_run_exits_2(run: Path, video: Path, tmp_path: Path) -> None:
    result = call(tmp_path / "gone.mp4", "what?", "--run", run)
    assert (result.exit_code, "does not exist; put the video there" in result.stderr) == (2, True)
    (tmp_path / "text.mp4").write_text("not a video")
    result = call(tmp_path / "text.mp4", "what?", "--run", run)
    assert (result.exit_code, "is not a video" in result.stderr) == (2, True)
    shutil.rmtree(run / "checkpoints")
    result = call(video, "what?", "--run", run)
    assert (result.exit_code, "has no checkpoint yet" in result.stderr) == (2, True)
