"""`stvg-prepare` from the command line, and the sections that commands share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import cli.prepare
from cli.console.dataset_options import load_dataset_config
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query


def test_shapes_are_made_and_indexed(tmp_path: Path) -> None:
    config = tmp_path / "params.yaml"
    config.write_text(
        "prepare: {workers: 1, shapes: {train_videos: 1, val_videos: 1, test_videos: 1,"
        " seconds: [5, 5]}}\n"
    )
    index = tmp_path / "index" / "index.jsonl"
    arguments = [
        "--dataset",
        "shapes",
        "--root",
        str(tmp_path / "shapes"),
        "--index",
        str(index),
        "--config",
        str(config),
    ]
    result = CliRunner().invoke(cli.prepare.app, arguments)
    assert result.exit_code == 0, result.stderr
    assert {query.split for query in read_jsonl(index, Query)} == {"train", "val", "test"}
    assert sorted(path.name for path in index.parent.iterdir()) == [
        "defects.json",
        "index.jsonl",
        "index.log",
        "tracks.npz",
    ]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.prepare.app, [str(argument) for argument in arguments])


@pytest.fixture
def vidstg(tmp_path: Path) -> Path:
    """VidSTG's test split, its count wrong, and one entry broken."""
    span = {"begin_fid": 0, "end_fid": 9}
    entry = {
        "vid": "a",
        "fps": 10,
        "frame_count": 10,
        "width": 64,
        "height": 48,
        "used_segment": span,
        "temporal_gt": span,
    }
    entry |= {
        "subject/objects": [{"tid": 1, "category": "dog"}],
        "captions": [{"description": "a dog [bold]runs", "target_id": 1}],
    }
    (tmp_path / "vidstg" / "annotations").mkdir(parents=True)
    content = json.dumps([entry, entry, entry | {"fps": 0}])
    (tmp_path / "vidstg" / "annotations" / "test_annotations.json").write_text(content)
    return tmp_path / "vidstg"


def test_the_report_is_a_table_that_a_log_can_hold(vidstg: Path, tmp_path: Path) -> None:
    result = run("--dataset", "vidstg", "--root", vidstg, "--index", tmp_path / "index.jsonl")
    assert result.exit_code == 1
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "kind how many left out for example" in rows
    assert "repeated sentence 1 0 test-00000-c0: 2 times about video a: a dog [bold]runs" in rows
    assert "split queries videos without video without boxes left out" in rows
    assert "test 2 1 2 2 1: malformed entry 1" in rows
    assert "all 2 1 2 2 1" in rows
    assert "0 videos checked; 0 of 0 videos have an edit list" in rows
    assert max(map(len, result.stdout.splitlines())) <= cli.prepare.LOG_WIDTH
    assert "…" not in result.stdout
    assert "\x1b" not in result.stdout
    assert "all 2 1 2 2 1" in " ".join((tmp_path / "index.log").read_text().split())
    assert (
        f"1 left out, 2 without video, 2 without boxes; all are in {tmp_path / 'defects.json'}"
        in result.stderr
    )


def test_a_long_detail_goes_on_in_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(f"word{n}" for n in range(60))
    cli.prepare.print_table(
        "what was wrong", ("kind", "for example"), [("a kind", words), ("b", "x" * 300)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= cli.prepare.LOG_WIDTH
    text = " ".join(" ".join(lines).split())
    assert words in text
    assert text.count("x") == 300 + "for example".count("x")


def test_verify_compares_with_the_card_and_writes_nothing(
    vidstg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    card = cards / "vidstg.md"
    monkeypatch.setattr("pipeline.datasets.data_cards.CARDS_DIR", cards)
    (vidstg / "annotations" / "test_annotations.json").write_text(
        json.dumps(json.loads(text_of(vidstg))[:2])
    )
    before = sorted(tmp_path.rglob("*"))

    card.write_text(
        "```yaml\nsplits: {train: {queries: 80684}, test: {queries: 2, frames: [10, 10]}}\n```\n"
    )
    result = run(
        "--dataset",
        "vidstg",
        "--root",
        vidstg,
        "--index",
        tmp_path / "out" / "index.jsonl",
        "--verify",
    )
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == 0, result.stderr
    assert "of number card says found" in rows
    assert "train queries 80,684 - absent" in rows
    assert "test queries 2 2 ok" in rows
    assert "test frames [10, 10] [10, 10] ok" in rows
    assert rows[-1] == "2 ok, 0 differs, 1 absent"

    card.write_text("```yaml\nsplits: {test: {queries: 10303, videos: 1}}\n```\n")
    result = run("--dataset", "vidstg", "--root", vidstg, "--verify")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert "test queries 10,303 2 differs" in rows
    assert rows[-1] == "1 ok, 1 differs, 0 absent"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, card])


def test_verify_needs_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.datasets.data_cards.CARDS_DIR", tmp_path)
    (tmp_path / "hcstvg-v2.md").write_text(
        "```yaml\nsplits: {test: {queries: 2, videos: 2, with truth: 0}}\n```\n"
    )
    (tmp_path / "testv2.json").write_text('{"1_a.mp4": "A man nods.", "2_a.mp4": "A man sits."}')
    result = run("--dataset", "hcstvg-v2", "--root", tmp_path, "--verify")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "3 ok, 0 differs, 0 absent"
    assert "left out" not in result.stdout


@pytest.mark.parametrize("name", ["vidstg", "hcstvg-v1", "hcstvg-v2", "jsonl"])
def test_a_run_without_data_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    index = tmp_path / "out" / "index.jsonl"
    for root in (tmp_path, tmp_path / "nowhere"):
        result = run("--dataset", name, "--root", root, "--index", index)
        assert result.exit_code == 2
        assert ("does not exist" in result.stderr) == (root != tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_index_that_would_destroy_something_is_refused_before_anything_is_done(
    vidstg: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"video": "a.mp4", "text": "a dog"}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for index, message in (
        (own, "is the data set's own file"),
        (tmp_path / "defects.json", "must be called"),
        (tmp_path, "must be called"),
    ):
        result = run("--dataset", "jsonl", "--root", own, "--index", index)
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("--dataset", "shapes", "--root", tmp_path / "shapes", "--index", own)
    assert (result.exit_code, "exists and is not an index" in result.stderr) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "shapes").exists()
    for _ in range(2):  # over the first run's index there is a second
        assert (
            run(
                "--dataset", "vidstg", "--root", vidstg, "--index", tmp_path / "index.jsonl"
            ).exit_code
            == 1
        )


def text_of(root: Path) -> str:
    return (root / "annotations" / "test_annotations.json").read_text()


def test_verify_names_what_was_left_out(vidstg: Path) -> None:
    result = run("--dataset", "vidstg", "--root", vidstg, "--verify")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert "test queries 10,303 2 differs" in rows
    assert "all left out 0 1 differs" in rows
    assert any(row.startswith("malformed entry 1 1 test-00002: fps:") for row in rows)


def test_verify_needs_annotations_and_a_card_with_numbers(tmp_path: Path) -> None:
    for name in ("shapes", "vidstg", "hcstvg-v1", "hcstvg-v2"):
        result = run("--dataset", name, "--root", tmp_path, "--verify")
        assert result.exit_code == 2
        assert "annotations. Put there" in result.stderr
    result = run("--dataset", "jsonl", "--root", tmp_path / "my.jsonl", "--verify")
    assert result.exit_code == 2
    assert "the card of 'jsonl' states no numbers to verify" in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.prepare.app,
        ["--dataset", "films", "--root", str(tmp_path), "--index", str(tmp_path / "i.jsonl")],
    )
    assert result.exit_code == 2
    assert "unknown data set 'films'" in result.stderr


def test_the_command_line_goes_before_the_config(tmp_path: Path) -> None:
    config = tmp_path / "params.yaml"
    config.write_text("dataset: {name: vidstg, root: /data/vidstg, index: /data/i.jsonl}\n")
    assert load_dataset_config(config, None, None).root_path == Path("/data/vidstg")
    assert load_dataset_config(config, "vidstg", Path("/other")).model_dump() == {
        "name": "vidstg",
        "root": Path("/other"),
        "index": Path("/data/i.jsonl"),
    }
    assert load_dataset_config(config, "shapes", None).root_path == Path("data/shapes")


@pytest.mark.parametrize(
    ("name", "root", "folder"), [("jsonl", "/a/own.jsonl", "/a"), ("vidstg", "/a/b", "/a/b")]
)
def test_videos_lie_in_the_root_or_beside_the_file(name: str, root: str, folder: str) -> None:
    assert load_dataset_config(None, name, Path(root)).video_root == Path(folder)
