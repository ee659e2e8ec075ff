"""One video's features: in one pass, batched and streamed, they are what frame by frame gives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.encoders.image_geometry import compute_appearance_size, pad_to_square, resize
from pipeline.errors import VideoError
from pipeline.features.builders import JPEG_ROW_BYTES, MotionBuilder, average_pool_2x2, encode_texts
from pipeline.features.config import SamplingConfig
from pipeline.features.images import decode_jpegs
from pipeline.features.stream import DIGEST_BYTES, FeatureStream, compute_file_digest, extract_video
from pipeline.sampling import (
    compute_clip_centers,
    find_nearest_frames,
    sample_clip_frames,
    sample_grid,
)
from pipeline.video import open_frames, probe
from pipeline.weights.load import load_backbone

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLING = SamplingConfig(fps=5.0, short_side=32, clip_stride_seconds=0.4, clip_seconds=0.8)
UNEVEN = np.cumsum([0, *[20, 40, 100, 33] * 10])[:40].tolist()


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    return {"frames": nn.Identity()} | {
        name: load_backbone(name, "tiny", "random:0").encoder for name in ("appearance", "motion")
    }


class Means(nn.Module):
    """Stands in for SlowFast: a clip's map holds the mean brightness of each of its frames."""

    def __init__(self, frames: int = 8) -> None:
        super().__init__()
        self.num_frames, self.square_side = frames, 16
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.float().mean((1, 3, 4))[:, None, None, :]


def pictures_of(path: Path) -> dict[int, torch.Tensor]:
    facts = probe(path)
    with open_frames(path, facts, range(facts.frame_count)) as frames:
        return {
            number: torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] for number, rgb in frames
        }


def test_rows_and_columns(make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]) -> None:
    path = make_video(tmp_path / "v.mp4", 40)
    result = extract_video(path, SAMPLING, encoders)
    maps, columns = result.products["appearance"]
    assert (maps.shape, maps.dtype) == ((8, 2, 4, 128), np.float16)
    assert columns["frame"].tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert columns["second"] == pytest.approx(columns["frame"] / 25)
    maps, columns = result.products["motion"]
    assert (maps.shape, maps.dtype) == ((4, 8, 8, 384), np.float16)
    assert columns["frame"].tolist() == [5, 15, 25, 35]
    pages, columns = result.products["frames"]
    assert (pages.shape[1], pages.dtype) == (JPEG_ROW_BYTES, np.uint8)
    assert set(columns) == {"frame", "bytes", "second"}
    assert len(columns["bytes"]) == len(pages)
    assert result.facts == {
        "size": [128, 48],
        "fps": pytest.approx(25),
        "frame_count": 40,
        "digest": compute_file_digest(path),
        "decoder": "decord",
        "why": "first choice",
    }
    entry = result.build_entry("motion", "video")
    assert (entry.key, entry.video, entry.rows.shape[0]) == ("video", "video", 4)


@pytest.mark.parametrize("uneven", [False, True])
def test_equals_one_frame_at_a_time(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module], uneven: bool
) -> None:
    path = (
        make_video(tmp_path / "v.mp4", 40, milliseconds=UNEVEN)
        if uneven
        else make_video(tmp_path / "v.mp4", 40)
    )
    result = extract_video(path, SAMPLING, encoders, batch_size=3)
    facts, pictures = probe(path), pictures_of(path)
    numbers = sample_grid(facts.pts_seconds, SAMPLING.fps)
    centres = compute_clip_centers(facts.pts_seconds, SAMPLING.clip_stride_seconds)
    with torch.inference_mode():
        size = compute_appearance_size(facts.size, SAMPLING.short_side)
        maps = [
            encoders["appearance"](resize(pictures[number], size))[0] for number in numbers.tolist()
        ]
        clips = []
        for centre in centres:
            chosen = sample_clip_frames(
                facts.pts_seconds, centre, SAMPLING.clip_seconds, 8
            ).tolist()
            squares = [resize(pad_to_square(pictures[number]), (128, 128)) for number in chosen]
            clips.append(encoders["motion"](torch.stack(squares, 2))[0])
    rows, columns = result.products["appearance"]
    assert columns["frame"].tolist() == numbers.tolist()
    np.testing.assert_allclose(rows, torch.stack(maps).numpy(), rtol=2e-3, atol=2e-3)
    rows, columns = result.products["motion"]
    assert columns["frame"].tolist() == find_nearest_frames(facts.pts_seconds, centres).tolist()
    np.testing.assert_allclose(rows, torch.stack(clips).numpy(), rtol=2e-3, atol=2e-3)


def test_batches_do_not_matter(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    path = make_video(tmp_path / "v.mp4", 30)
    item, many = (extract_video(path, SAMPLING, encoders, batch_size=batch) for batch in (1, 16))
    for product, (rows, columns) in item.products.items():
        np.testing.assert_allclose(rows, many.products[product][0], rtol=2e-3, atol=2e-3)
        assert all(
            np.array_equal(values, many.products[product][1][name])
            for name, values in columns.items()
        )


def test_products_alone_equal_products_together(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    path = make_video(tmp_path / "v.mp4", 20)
    together = extract_video(path, SAMPLING, encoders)
    for product, encoder in encoders.items():
        assert np.array_equal(
            extract_video(path, SAMPLING, {product: encoder}).products[product][0],
            together.products[product][0],
        )


def test_a_variable_rate_goes_by_timestamps(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    path = make_video(tmp_path / "v.mp4", 40, milliseconds=UNEVEN)
    _, columns = extract_video(path, SAMPLING, {"frames": encoders["frames"]}).products["frames"]
    numbers, first = np.unique(columns["frame"], return_index=True)
    expected = [
        int(np.abs(np.array(UNEVEN) - 200 * k).argmin()) for k in range(UNEVEN[-1] // 200 + 1)
    ]
    assert numbers.tolist() == expected
    assert columns["second"][first] == pytest.approx(np.array(UNEVEN)[expected] / 1000, abs=1e-3)


def test_clips_at_the_edges_clamp(make_video: Any, tmp_path: Path) -> None:
    """A clip longer than the video begins and ends with repeats of its first and last frame."""
    path = make_video(tmp_path / "v.mp4", 10)
    rows, columns = extract_video(
        path, replace_sampling(clip_seconds=2.0), {"motion": Means()}
    ).products["motion"]
    brightness = {
        number: float(resize(pad_to_square(picture), (16, 16)).float().mean())
        for number, picture in pictures_of(path).items()
    }
    chosen = [0, 0, 0, 2, 8, 9, 9, 9]
    assert columns["frame"].tolist() == [5]
    assert rows[0, 0, 0] == pytest.approx([brightness[number] for number in chosen], rel=1e-2)


def test_one_frame_is_a_video(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    result = extract_video(make_video(tmp_path / "v.mp4", 1), SAMPLING, encoders)
    assert {
        product: columns["frame"][:1].tolist() for product, (_, columns) in result.products.items()
    } == {key: [0] for key in encoders}
    assert [len(result.products[product][0]) for product in ("appearance", "motion")] == [1, 1]


def replace_sampling(**changes: float) -> SamplingConfig:
    return SamplingConfig.model_validate(SAMPLING.model_dump() | changes)


@pytest.mark.parametrize("span", [0.2, 0.8, 64 / 30])
def test_the_motion_maker_keeps_a_clip_and_a_stride(span: float) -> None:
    seconds = np.arange(2000) / 25
    maker = MotionBuilder(
        Means(),
        seconds,
        compute_clip_centers(seconds, SAMPLING.clip_stride_seconds),
        span,
        pool_2x2=False,
        batch_size=1000,
    )
    most = 0
    for number in range(2000):
        maker.add_frame(number, torch.zeros(3, 2, 2, dtype=torch.uint8))
        most = max(most, len(maker._images))
    assert 0 < most <= (span + SAMPLING.clip_stride_seconds) * 25 + 1
    assert maker.finish()[0].shape == (200, 1, 1, 8)


def test_jpeg_frames_round_trip(
    make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    path = make_video(tmp_path / "v.mp4", 20)
    rows, columns = extract_video(
        path, replace_sampling(short_side=500, jpeg_quality=100), {"frames": encoders["frames"]}
    ).products["frames"]
    assert len(rows) > len(np.unique(columns["frame"]))
    pictures = pictures_of(path)
    result = dict(decode_jpegs(rows, columns))
    assert list(result) == [0, 5, 10, 15]
    for number, picture in result.items():
        assert (picture.shape, picture.dtype) == ((338, 900, 3), np.uint8)
        expected = resize(pictures[number], (900, 338))[0]
        assert np.abs(picture.astype(float) - expected.permute(1, 2, 0).numpy()).mean() < 3


def test_features_outside_float16_are_a_failure(make_video: Any, tmp_path: Path) -> None:
    class Huge(Means):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return super().forward(clips) * 1e6

    with pytest.raises(
        VideoError, match=r"not-finite \(encode\): its features are not finite in float16"
    ):
        extract_video(make_video(tmp_path / "v.mp4", 10), SAMPLING, {"motion": Huge()})


def test_a_missing_video_is_a_failure(tmp_path: Path, encoders: dict[str, nn.Module]) -> None:
    with pytest.raises(VideoError, match=r"missing \(open\): .*none.mp4 does not exist"):
        extract_video(tmp_path / "none.mp4", SAMPLING, encoders)


@pytest.mark.parametrize("place", [0, DIGEST_BYTES - 1, 3 * DIGEST_BYTES - 1])
def test_the_digest_sees_both_ends_of_a_file(tmp_path: Path, place: int) -> None:
    content = bytearray(3 * DIGEST_BYTES)
    (tmp_path / "a").write_bytes(content)
    content[place] = 1
    (tmp_path / "b").write_bytes(content)
    assert compute_file_digest(tmp_path / "a") != compute_file_digest(tmp_path / "b")


def test_the_digest_of_a_short_file_is_over_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert compute_file_digest(tmp_path / "a") == hashlib.sha256(b"3abc").hexdigest()


def test_texts_in_batches_equal_texts_alone() -> None:
    encoder = load_backbone("text", "tiny", "random:0").encoder
    texts = ["a", "the red circle moves up.", "", "what moves?", "x" * 50]
    together = list(encode_texts(texts, encoder, batch_size=2))
    for text, (states, tokens) in zip(texts, together, strict=True):
        ((alone, ids),) = encode_texts([text], encoder)
        assert states.dtype == np.float16
        assert np.array_equal(tokens, ids)
        assert len(states) == len(tokens)
        np.testing.assert_allclose(states, alone, rtol=2e-3, atol=2e-3)


def test_motion_cells_can_be_stored_as_means_of_four() -> None:
    maps = np.arange(32, dtype=np.float16).reshape(1, 4, 4, 2)
    means = average_pool_2x2(maps)
    assert means.shape == (1, 2, 2, 2)
    np.testing.assert_array_equal(means[0, 0, 0], maps[0, :2, :2].reshape(4, 2).mean(0))


@pytest.mark.parametrize(("change", "reason"), [("replaced", "changed"), ("deleted", "missing")])
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: str, reason: str, make_video: Any, tmp_path: Path, encoders: dict[str, nn.Module]
) -> None:
    path, other = make_video(tmp_path / "v.mp4", 40), make_video(tmp_path / "w.mp4", 20)
    blocks = iter(FeatureStream(path, SAMPLING, encoders, batch_size=1))
    next(blocks)
    other.replace(path) if change == "replaced" else path.unlink()
    with pytest.raises(VideoError, match=r"v\.mp4") as raised:
        list(blocks)
    assert raised.value.reason == reason
