"""`stvg-prepare` from the command line, and the sections that commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli.prepare
from cli.settings import dataset_config
from pipeline.records import Query, read_jsonl


def test_shapes_are_made_and_indexed(tmp_path: Path) -> None:
    config = tmp_path / "params.yaml"
    config.write_text("prepare: {workers: 1, shapes: {train_videos: 1, val_videos: 1, test_videos: 1, seconds: [5, 5]}}\n")
    index = tmp_path / "index" / "index.jsonl"
    arguments = ["--dataset", "shapes", "--root", str(tmp_path / "shapes"), "--index", str(index), "--config", str(config)]
    result = CliRunner().invoke(cli.prepare.app, arguments)
    assert result.exit_code == 0, result.stderr
    assert {query.split for query in read_jsonl(index, Query)} == {"train", "val", "test"}
    assert sorted(path.name for path in index.parent.iterdir()) == ["defects.json", "index.jsonl", "index.log", "tracks.npz"]


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.prepare.app, ["--dataset", "films", "--root", str(tmp_path), "--index", str(tmp_path / "i.jsonl")])
    assert result.exit_code == 2
    assert "unknown data set 'films'" in result.stderr


def test_the_command_line_goes_before_the_config(tmp_path: Path) -> None:
    config = tmp_path / "params.yaml"
    config.write_text("dataset: {name: vidstg, root: /data/vidstg, index: /data/i.jsonl}\n")
    assert dataset_config(config, None, None).root_path == Path("/data/vidstg")
    assert dataset_config(config, "vidstg", Path("/other")).model_dump() == {
        "name": "vidstg",
        "root": Path("/other"),
        "index": Path("/data/i.jsonl"),
    }
    assert dataset_config(config, "shapes", None).root_path == Path("data/shapes")


@pytest.mark.parametrize(("name", "root", "folder"), [("jsonl", "/a/own.jsonl", "/a"), ("vidstg", "/a/b", "/a/b")])
def test_videos_lie_in_the_root_or_beside_the_file(name: str, root: str, folder: str) -> None:
    assert dataset_config(None, name, Path(root)).folder == Path(folder)
