"""The ten clips beside this file: their facts, their pictures, and the numbers read back.

Facts come from `facts.json`, which `make_assets.py` writes from what it drew: no decoder was asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
SHARED = Path(os.environ.get("STVG_VIDEOS") or FOLDER.parents[2] / "shared" / "videos")
BITS, BLOCK = 8, 16
WIDTH = (BITS + 2) * BLOCK
"""A row begins with a white block and ends with a black one: mirrored, it is no number."""
HEIGHT = 96
FIRST_CHOICE = {
    "sound.mp4": ("decord", "first choice"),
    "edit_list.mp4": ("pyav", "edit list"),
    "uneven.mp4": ("decord", "first choice"),
    "turned.mov": ("decord", "first choice"),
    "av1.mkv": ("pyav", "decord cannot open it"),
    "odd_size.webm": ("decord", "first choice"),
    "program.mpg": ("pyav", "mpeg container"),
    "late_start.ts": ("pyav", "mpegts container"),
    "part2.avi": ("pyav", "may hold packets without a picture"),
}
"""Who must read each whole clip where no decoder is asked for by name, and for what reason."""
GREY, RED, BLUE = 96, (200, 30, 30), (30, 30, 200)


@dataclass(frozen=True)
class Clip:
    """Facts of a clip, known from how it was made.

    Frame n shows the number `first + n` from `seconds[n]` on. `size` is (width, height) as shown;
    `rotation` counts degrees counter-clockwise; `duration` is 0 where the file does not have to
    say how long its last picture lasts. A file that cannot be used has only `refused`: the
    error's reason and stage.
    """

    name: str
    codec: str = ""
    size: tuple[int, int] = (0, 0)
    rotation: int = 0
    first: int = 0
    seconds: tuple[float, ...] = ()
    duration: float = 0.0
    has_edit_list: bool = False
    refused: tuple[str, str] = ("", "")

    @property
    def path(self) -> Path:
        return FOLDER / self.name

    @property
    def numbers(self) -> list[int]:
        """The number in each frame's picture."""
        return [self.first + place for place in range(len(self.seconds))]


def read_facts() -> dict[str, Clip]:
    """The clips by their file names."""
    result: dict[str, Any] = json.loads((FOLDER / "facts.json").read_text("utf-8"))
    return {name: clip_of(name, row) for name, row in result.items()}


def clip_of(name: str, row: dict[str, Any]) -> Clip:
    """A row of the file; its lists become tuples."""
    return Clip(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in row.items()})


def picture_of(number: int, size: tuple[int, int]) -> np.ndarray:
    """RGB `[h, w, 3]` that carries its number and says which side is up, left, and red.

    Two rows of blocks on top: white, the bits (least first), black; and the same inverted. Below
    them a white square that moves, on grey. At the bottom red on the left and blue on the right.
    """
    width, height = size
    picture = np.full((height, width, 3), GREY, np.uint8)
    row = blocks(number)
    for place, white in enumerate(row):
        columns = slice(place * BLOCK, (place + 1) * BLOCK)
        picture[:BLOCK, columns] = 255 * white
        picture[BLOCK : 2 * BLOCK, columns] = 255 * (not white)
    bottom = height - 2 * BLOCK
    picture[bottom:, : width // 2] = RED
    picture[bottom:, width // 2 :] = BLUE
    left = number * 5 % (width - BLOCK)
    picture[2 * BLOCK + 6 : 3 * BLOCK + 6, left : left + BLOCK] = 255
    return picture


def blocks(number: int) -> list[bool]:
    """Which blocks of the first row are white."""
    return [True, *(bool(number >> bit & 1) for bit in range(BITS)), False]


def number_in(picture: np.ndarray) -> int:
    """The number in a decoded picture; ValueError where it is unclear or the picture turned."""
    levels = picture[: 2 * BLOCK, :WIDTH].mean(2)
    levels = np.pad(levels, ((0, 0), (0, WIDTH - levels.shape[1])), mode="edge")
    inner = levels.reshape(2, BLOCK, BITS + 2, BLOCK)[:, 4:-4, :, 4:-4].mean((1, 3))
    if not ((inner < 80) | (inner > 175)).all():
        raise ValueError(f"blocks that are neither black nor white: {inner.round().tolist()}")
    white = inner > 128
    number = sum(1 << bit for bit in range(BITS) if white[0, bit + 1])
    if white.tolist() != [blocks(number), [not item for item in blocks(number)]]:
        raise ValueError(f"blocks that are no number: {white.tolist()}")
    red, blue = (picture[-BLOCK:-4, side].mean((0, 1)) for side in (slice(8, 64), slice(-64, -8)))
    if np.argmax(red) != 0 or np.argmax(blue) != 2:
        raise ValueError(f"red is not on the left, or blue not on the right: {red}, {blue}")
    return number


def clips_and_shared(clips: Iterable[str], shared: Iterable[Any]) -> list[Any]:
    """Parameters for a test of one path: these clips, and these shared videos where they are.

    Elsewhere one parameter stands for the shared ones and is skipped. A shared one may come as a
    `pytest.param`: its marks are kept.
    """
    result = [pytest.param(FOLDER / name, id=name or "clips") for name in clips]
    if not SHARED.is_dir():
        absent = pytest.mark.skip(reason=f"no real videos: {SHARED} is absent (set STVG_VIDEOS)")
        return [*result, pytest.param(SHARED, id="shared", marks=absent)]
    for item in shared:
        name, marks = (item, ()) if isinstance(item, str) else (item.values[0], item.marks)
        result.append(pytest.param(SHARED / name, id=name or "shared", marks=marks))
    return result


CLIPS = read_facts() if (FOLDER / "facts.json").is_file() else {}
WHOLE = {name: clip for name, clip in CLIPS.items() if not any(clip.refused)}
"""Those that can be read."""
