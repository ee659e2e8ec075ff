"""A few steps of `stvg-pretrain-tiny`: the files it writes are whole, and are the shipped ones'
shape.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.pretrain_tiny import app
from pipeline.encoders.text import TOKENIZER_FILE
from pipeline.pretrain import assign_cells_to_objects, generate_sentences
from pipeline.weights.load import build_encoder, load_strict
from pipeline.weights.sources import TINY_PRODUCTS, TINY_WEIGHTS_DIR

STEPS = ["--appearance-steps", "2", "--motion-steps", "1", "--text-steps", "3"]


def test_a_few_steps_write_weights_that_load(tmp_path: Path) -> None:
    tokenizer = TOKENIZER_FILE.read_bytes()
    before = torch.get_num_threads()
    done = CliRunner().invoke(
        app,
        ["--out", str(tmp_path / "w"), "--seed", "3", "--scenes", "3", *STEPS, "--workers", "1"],
    )
    assert done.exit_code == 0, done.output
    assert "pretraining: 9/9 items" in done.stderr
    for name in (
        "appearance color",
        "appearance shape",
        "appearance box error px",
        "motion",
        "text",
    ):
        assert f"{name}: " in done.stdout
    for product in TINY_PRODUCTS:
        state = load_file(tmp_path / "w" / f"{product}.safetensors")
        load_strict(build_encoder(product, "tiny"), state, product)
        assert state.keys() == load_file(TINY_WEIGHTS_DIR / f"{product}.safetensors").keys()
        assert all(value.isfinite().all() for value in state.values())
    assert "training motion" in (tmp_path / "w" / "log.txt").read_text()
    assert TOKENIZER_FILE.read_bytes() == tokenizer
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "arguments", [[], ["--out", "x", "--scenes", "1"], ["--out", "x", "--motion-steps", "0"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_defaults_are_what_the_shipped_weights_were_made_with() -> None:
    text = (TINY_WEIGHTS_DIR / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.strip().startswith("stvg-pretrain-tiny")]
    stated = line.split()[1:]
    defaults = {option.opts[0]: option.default for option in _options()}
    for name, value in zip(stated[2::2], stated[3::2], strict=True):
        assert defaults[name] == int(value)


def _options() -> list[object]:
    import typer.main

    return list(typer.main.get_command(app).params)


def test_a_cell_belongs_to_the_smallest_box_that_holds_its_centre() -> None:
    boxes = np.array([[0, 0, 64, 64], [16, 16, 32, 32], [70, 1, 72, 3]])
    owner = assign_cells_to_objects(boxes, 4, 6, (96, 64))
    assert owner.tolist() == [
        [0, 0, 0, 0, 2, -1],
        [0, 1, 0, 0, -1, -1],
        [0, 0, 0, 0, -1, -1],
        [0, 0, 0, 0, -1, -1],
    ]


def test_a_map_may_cover_more_than_the_picture() -> None:
    """A 64x32 picture in the middle of a 64x64 square."""
    assert assign_cells_to_objects(
        np.array([[0, 0, 64, 32]]), 4, 4, (64, 64), (0, 16)
    ).tolist() == [[-1] * 4, [0] * 4, [0] * 4, [-1] * 4]


def test_the_tokenizer_learns_from_every_sentence_once() -> None:
    said = generate_sentences()
    assert len(said) == len(set(said)) == 8 * 3 * (30 + 5 + 6 + 1)
