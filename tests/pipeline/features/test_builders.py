"""Builders return the same rows however frames arrive, and keep only the frames they need."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders.image_geometry import resize
from pipeline.errors import InputError
from pipeline.extraction import shard_task as shards
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.run import run_extraction
from pipeline.features.builders import (
    JPEG_ROW_BYTES,
    AppearanceBuilder,
    FeatureBuilder,
    JpegBuilder,
    MotionBuilder,
    SwinBuilder,
)
from pipeline.features.images import decode_jpegs, encode_jpeg
from pipeline.io.jsonl import write_jsonl
from pipeline.records import Query
from pipeline.sampling import sample_clip_frames
from pipeline.store import Store
from pipeline.tracks import Tracks
from pipeline.weights.checkpoint_files import LoadReport
from pipeline.weights.load import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 50
SECONDS = np.arange(COUNT) / 25
GRID = np.arange(0, COUNT, 3)
CENTRES = np.arange(0.05, 2, 0.1)
SIZE = (8, 6)


class Means(nn.Module):
    """The mean brightness of a picture, as a map of one cell; what it was given is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.given: list[int] = []

    def forward(self, pictures: Tensor) -> Tensor:
        self.given.append(len(pictures))
        return pictures.float().mean((1, 2, 3))[:, None, None, None]


class ClipMeans(Means):
    """Of each of a clip's `frames`."""

    num_frames, square_side = 4, 6

    def forward(self, pictures: Tensor) -> Tensor:
        self.given.append(len(pictures))
        return pictures.float().mean((1, 3, 4))[:, None, None, :]


class WindowMeans(Means):
    """Of each frame, beside the length of the window it came in: maps `[n, T, 2, 3, 2]`."""

    num_frames, channels = 4, 2

    def forward(self, pictures: Tensor) -> Tensor:
        self.given.append(pictures.shape[2])
        means = pictures.float().mean((1, 3, 4))
        maps = torch.stack([means, torch.full_like(means, pictures.shape[2])], -1)
        return maps[:, :, None, None].expand(-1, -1, 2, 3, -1)


def picture_of(number: int) -> Tensor:
    """Brightness tells the number."""
    return torch.full((3, 12, 16), 4 * number, dtype=torch.uint8)


def noise(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (3, 120, 160), dtype=torch.uint8, generator=generator)


def blocks_of(
    maker: FeatureBuilder,
    picture: Callable[[int], Tensor] = picture_of,
    numbers: Any = range(COUNT),
) -> list[np.ndarray]:
    blocks = [rows for number in numbers for rows in maker.add_frame(number, picture(number))]
    return blocks + maker.finish()


def appearance(batch: int = 4) -> FeatureBuilder:
    return AppearanceBuilder(Means(), SIZE, GRID, batch)


def motion(batch: int = 4, pool: bool = False) -> FeatureBuilder:
    return MotionBuilder(ClipMeans(), SECONDS, CENTRES, 0.16, pool, batch)


def swin() -> FeatureBuilder:
    return SwinBuilder(WindowMeans(), SIZE, GRID)


def jpeg() -> FeatureBuilder:
    return JpegBuilder((160, 120), GRID, 90)


@pytest.mark.parametrize("make", [appearance, motion, swin, jpeg])
def test_every_row_comes_once_and_has_its_frame(make: Callable[[], FeatureBuilder]) -> None:
    maker = make()
    assert len(np.concatenate(blocks_of(maker))) == len(maker.columns()["frame"])
    assert all(len(values) == len(maker.columns()["frame"]) for values in maker.columns().values())
    assert maker.finish() == []


@pytest.mark.parametrize("make", [appearance, motion, swin, jpeg])
def test_frames_that_are_not_wanted_change_nothing(make: Callable[[], FeatureBuilder]) -> None:
    all_of_them, expected = make(), make()
    complete, alone = (
        blocks_of(all_of_them),
        blocks_of(expected, numbers=expected.frame_indices.tolist()),
    )
    assert all(np.array_equal(a, b) for a, b in zip(complete, alone, strict=True))
    for name, values in all_of_them.columns().items():
        np.testing.assert_array_equal(values, expected.columns()[name])
    last = int(all_of_them.frame_indices[-1])
    assert all_of_them.add_frame(last, picture_of(0)) == []


@pytest.mark.parametrize("make", [appearance, motion])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_blocks_joined_are_the_whole(make: Callable[[int], FeatureBuilder], batch: int) -> None:
    maker = make(batch)
    blocks = blocks_of(maker)
    count = len(maker.columns()["frame"])
    sizes = [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    assert [len(rows) for rows in blocks] == sizes == maker._batcher.encoder.given  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.concatenate(blocks), np.concatenate(blocks_of(make(7))))


def test_appearance_rows_show_the_frames_of_the_grid() -> None:
    maker = appearance()
    np.testing.assert_allclose(np.concatenate(blocks_of(maker))[:, 0, 0, 0], 4 * GRID, atol=0.1)
    assert maker.columns()["frame"].tolist() == GRID.tolist()


def test_motion_rows_show_the_frames_of_their_clips() -> None:
    maker = motion()
    rows = np.concatenate(blocks_of(maker, lambda number: picture_of(number)[:, :, :12]))[:, 0, 0]
    np.testing.assert_allclose(
        rows, [4 * sample_clip_frames(SECONDS, centre, 0.16, 4) for centre in CENTRES], atol=0.1
    )
    assert (np.abs(SECONDS[maker.columns()["frame"]] - CENTRES) <= 0.02 + 1e-9).all()


def test_pooled_motion_is_pooled_block_by_block() -> None:
    class Cells(ClipMeans):
        def forward(self, pictures: Tensor) -> Tensor:
            return pictures[:, 0, :, :4, :4].permute(0, 2, 3, 1)

    maps, means = (
        np.concatenate(blocks_of(MotionBuilder(Cells(), SECONDS, CENTRES, 0.16, pool, 3))).astype(
            np.float32
        )
        for pool in (False, True)
    )
    assert (maps.shape[1:], means.shape[1:]) == ((4, 4, 4), (2, 2, 4))
    np.testing.assert_allclose(means, maps.reshape(-1, 2, 2, 2, 2, 4).mean((2, 4)), rtol=1e-3)


def test_swin_rows_are_frames_in_windows() -> None:
    """17 frames of the grid, four at a time, the last alone: each row is its frame's, whatever the
    window.
    """
    maker = swin()
    blocks = blocks_of(maker)
    assert [len(rows) for rows in blocks] == [4, 4, 4, 4, 1] == maker._batcher.encoder.given  # type: ignore[attr-defined]
    rows = np.concatenate(blocks)
    assert (rows.shape, rows.dtype) == ((17, 2, 3, 2), np.float16)
    np.testing.assert_allclose(rows[:, 1, 2, 0], 4 * GRID, atol=0.1)
    assert rows[:, 0, 0, 1].tolist() == [4] * 16 + [1]
    assert maker.columns()["frame"].tolist() == GRID.tolist()


@pytest.mark.parametrize("make", [appearance, swin])
def test_no_more_pictures_wait_than_fill_a_batch(make: Callable[[], FeatureBuilder]) -> None:
    maker = make()
    most = 0
    for number in range(COUNT):
        maker.add_frame(number, picture_of(number))
        most = max(most, len(getattr(maker, "_window", [])) + len(maker._batcher._pending))  # type: ignore[attr-defined]
    assert most == 3


def test_jpegs_begin_on_pages_of_their_own() -> None:
    maker = jpeg()
    blocks = blocks_of(maker, noise)
    columns = maker.columns()
    assert [len(rows) for rows in blocks] == [
        int((columns["frame"] == number).sum()) for number in GRID
    ]
    assert min(len(rows) for rows in blocks) > 1
    rows = np.concatenate(blocks)
    assert (rows.shape[1], rows.dtype) == (JPEG_ROW_BYTES, np.uint8)
    for place in np.flatnonzero(np.diff(columns["frame"], prepend=-1)):
        assert rows[place, :3].tobytes() == b"\xff\xd8\xff"
    for row, used in zip(rows, columns["bytes"], strict=True):
        assert not row[used:].any()


@pytest.mark.parametrize("quality", [1, 75, 90, 100])
def test_jpegs_are_whole_and_their_colours_halved(quality: int) -> None:
    """Every JPEG comes back as RGB uint8, as sharp as its quality says, and nothing warns."""
    from io import BytesIO

    from PIL import Image, JpegImagePlugin

    maker = JpegBuilder((160, 120), GRID, quality)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore",
            "The image decoding and encoding capabilities of TorchVision",
            DeprecationWarning,
        )  # of all of them
        rows = np.concatenate(blocks_of(maker, smooth))
        result = dict(decode_jpegs(rows, maker.columns()))
    assert list(result) == GRID.tolist()
    for number, picture in result.items():
        assert (picture.shape, picture.dtype) == ((120, 160, 3), np.uint8)
        assert (
            np.abs(picture.astype(float) - smooth(number).permute(1, 2, 0).numpy()).mean()
            < {1: 30, 75: 3, 90: 2, 100: 1}[quality]
        )
    image = Image.open(BytesIO(encode_jpeg(smooth(0), quality)))
    assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0


def smooth(number: int) -> Tensor:
    """A picture of gradients, red to the right and blue downwards."""
    red, blue = (
        torch.linspace(0, 255, 160).expand(120, -1),
        torch.linspace(0, 255, 120)[:, None].expand(-1, 160),
    )
    return torch.stack([red, torch.full_like(red, number), blue]).byte()


def test_jpegs_are_of_the_resized_picture() -> None:
    maker = JpegBuilder((80, 60), np.array([0]), 100)
    ((_, picture),) = decode_jpegs(np.concatenate(blocks_of(maker, smooth)), maker.columns())
    assert (
        np.abs(
            picture.astype(float) - resize(smooth(0)[None], (80, 60))[0].permute(1, 2, 0).numpy()
        ).mean()
        < 1
    )


def test_swin_through_the_engine(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def backbone(
        product: str, size: str, weights: str, slowfast: str | None, device: str
    ) -> Backbone:
        return Backbone(WindowMeans(), weights, "0123", LoadReport(product, 0, ()))

    monkeypatch.setattr(shards, "_load_backbone", backbone)
    write_index(tmp_path, make_video(tmp_path / "v.mp4", 33))
    asked = settings(backbones="full", weights="random:0")
    assert (
        run_extraction(tmp_path / "index.jsonl", tmp_path, "jsonl", tmp_path / "s", asked).failures
        == []
    )
    store = Store(tmp_path / "s")
    reader = store.open("swin")
    assert reader.shape("v") == (7, 2, 3, 2)
    assert reader.read("v")[:, 0, 0, 1].tolist() == [4, 4, 4, 4, 3, 3, 3]
    columns = reader.columns("v")
    assert set(columns) == {"frame", "second"}
    assert columns["frame"].tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert columns["second"] == pytest.approx(columns["frame"] / 25)
    assert store.products["swin"].provenance["sampling"] == {"fps": 5.0, "short_side": 32}
    assert store.verify() == []


def test_swin_is_refused_with_tiny_backbones(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    write_index(tmp_path, make_video(tmp_path / "v.mp4", 3))
    with pytest.raises(
        InputError, match="there is no tiny swin: leave the product out, or use --backbones full"
    ):
        run_extraction(
            tmp_path / "index.jsonl",
            tmp_path,
            "jsonl",
            tmp_path / "s",
            settings(backbones="tiny", weights="tiny"),
        )
    assert not (tmp_path / "s").exists()


def write_index(folder: Path, video: Path) -> None:
    facts: dict[str, Any] = {
        "fps": 25,
        "frame_count": 33,
        "size": (128, 48),
        "segment": (0, 33),
        "split": "test",
    }
    write_jsonl(
        folder / "index.jsonl",
        [Query(id="v", video="v", path=video.name, text="what moves?", **facts)],
    )
    Tracks().save(folder / "tracks.npz")


def settings(**changes: Any) -> ExtractConfig:
    base = {"products": ["swin"], "sampling": {"short_side": 32}, "workers": 0, "device": "cpu"}
    return ExtractConfig.model_validate(base | changes)
