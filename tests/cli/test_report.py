"""`stvg-report` on a real tiny run: what is in the folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import cli.evaluate
import cli.report
from grounding.report.videos import encode_videos
from pipeline.records import Query
from pipeline.video import open_frames, probe
from tests.assets.clips import WHOLE, clips_and_shared


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def run(tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, judged."""
    folder = shutil.copytree(tiny_run.run, tmp_path_factory.mktemp("judged") / "run")
    result = call(cli.evaluate, "--run", folder, "--features", tiny_run.store)
    assert result.exit_code == 0, result.stderr
    return folder


def report(run: Path, tiny_run: Any, out: Path, *arguments: object) -> Result:
    return call(
        cli.report,
        "--run",
        run,
        "--features",
        tiny_run.store,
        "--root",
        tiny_run.root,
        "--out",
        out,
        *arguments,
    )


def script(path: Path) -> list[Any]:
    """What a script hands to the page."""
    return json.loads(
        "[" + path.read_text(encoding="utf-8").split("(", 1)[1].removesuffix(");\n") + "]"
    )


def test_two_runs_are_shown_with_what_their_networks_saw(
    run: Path, tiny_run: Any, tmp_path: Path
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    result = report(run, tiny_run, tmp_path / "out", "--compare", other)
    assert result.exit_code == 0, result.stderr
    (data,) = script(tmp_path / "out" / "data.js")
    assert data["runs"] == ["run", "other"]
    assert [(tmp_path / "out" / video["file"]).is_file() for video in data["videos"]] == [True]
    for number, query in enumerate(data["queries"]):
        _, details = script(tmp_path / "out" / "queries" / f"{number}.js")
        assert details["seen"][0] == details["seen"][1]
        recorded = details["seen"][0]
        assert len(recorded["when"]["map"]) == 8
        assert (recorded["frames"][0], recorded["frames"][-1] < query["segment"][1]) == (0, True)
        assert recorded["maps"][0]["layers"] == 1
        assert recorded["maps"][0]["picture"].startswith("data:image/png;base64,")
    assert "No picture" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_figures_are_drawn_of_both_runs(run: Path, tiny_run: Any, tmp_path: Path) -> None:
    result = report(
        run,
        tiny_run,
        tmp_path / "out",
        "--compare",
        shutil.copytree(run, tmp_path / "other"),
        "--figures",
    )
    assert result.exit_code == 0, result.stderr
    stems = {path.stem for path in (tmp_path / "out" / "figures").glob("*.pdf")}
    assert stems == {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"tubes-1", "attention-1", "attention-1-compared"} <= stems


def test_a_run_without_checkpoint_is_shown_without_maps(
    run: Path, tiny_run: Any, tmp_path: Path
) -> None:
    bare = shutil.copytree(run, tmp_path / "bare")
    shutil.rmtree(bare / "checkpoints")
    refused = report(bare, tiny_run, tmp_path / "out")
    assert refused.exit_code == 2
    assert (
        "has no checkpoint yet: let stvg-train write one; or leave out the attention maps"
        " with --set attention_maps=false" in refused.stderr.replace("\n", " ")
    )
    assert report(bare, tiny_run, tmp_path / "out", "--set", "attention_maps=false").exit_code == 0
    assert script(tmp_path / "out" / "queries" / "0.js")[1]["seen"] == []


def test_a_run_that_was_not_judged_is_refused(run: Path, tiny_run: Any, tmp_path: Path) -> None:
    refused = report(run, tiny_run, tmp_path / "out", "--compare", tiny_run.run)
    assert refused.exit_code == 2
    assert "run stvg-eval first" in refused.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


REAL = (
    "editlist_cups.mp4",
    "testsrc2_odd_height_and_width_vp9.mp4",
    "video_90.mov",
    "unordered.mov",
    "test_non_zero_start.mp4",
    "av1_video.mkv",
)


@pytest.mark.parametrize("video", clips_and_shared(WHOLE, REAL))
def test_a_real_videos_frames_keep_their_numbers_and_times(video: Path, tmp_path: Path) -> None:
    """Whatever the container says: frame n of the report's video is the source's, shown at its
    time.
    """
    import av

    folder, name = video.parent, video.name
    facts = probe(video)
    values = {
        "id": "q",
        "video": name,
        "path": name,
        "fps": facts.fps,
        "frame_count": facts.frame_count,
        "size": facts.size,
    }
    query = Query.model_validate(
        {**values, "segment": (0, facts.frame_count), "text": "x", "split": "test"}
    )
    displayed = encode_videos(
        [query], cli.report.make_video_opener(folder), tmp_path, 480, None, lambda done, total: None
    )[name]
    with av.open(str(tmp_path / displayed.file)) as container:
        result = [
            (frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    np.testing.assert_allclose([time for time, _ in result], facts.edges[:-1], atol=1e-3)
    with open_frames(facts.path, facts, range(facts.frame_count)) as frames:
        for (number, picture), (_, current) in zip(frames, result, strict=True):
            recorded, source = (
                np.asarray(Image.fromarray(item).resize((16, 9), Image.Resampling.BOX)).astype(int)
                for item in (current, picture)
            )
            assert np.abs(recorded - source).mean() < 5, number
