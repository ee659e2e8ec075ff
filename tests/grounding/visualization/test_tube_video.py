"""The drawn video: the predicted box, the source's times, even sides, text that fits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from grounding.visualization.tube_video import MAX_LINES, Canvas, LabeledTube, draw_tube, wrap_text
from grounding.visualization.video_writer import compute_ticks
from pipeline.video import open_frames, probe

BOX = (100.0, 40.0, 300.0, 200.0)
SIZE = (512, 288)


def write_tube_video(
    out: Path,
    edges: np.ndarray,
    size: tuple[int, int] = SIZE,
    text: str = "the red circle spins.",
    box: tuple = BOX,
) -> Canvas:
    """Write gray frames with a tube over frames 2 to 5; return the canvas."""
    tube = LabeledTube(text, (2, 6), dict.fromkeys(range(2, 6), box))
    gray_frame = np.full((size[1], size[0], 3), 128, np.uint8)
    draw_tube(out, (gray_frame for _ in edges[1:]), edges, size, tube)
    return Canvas.from_video_size(size, text)


def read_frames(path: Path) -> list[np.ndarray]:
    info = probe(path)
    with open_frames(path, info, range(info.frame_count)) as frames:
        return [frame for _, frame in frames]


def is_yellow(pixels: np.ndarray) -> np.ndarray:
    """Return the mask `[...]` of yellow pixels `[..., 3]`, with a tolerance for yuv420p."""
    red, green, blue = (pixels[..., channel].astype(int) for channel in range(3))
    return (red > 180) & (green > 150) & (blue < 110)


def find_yellow(frame: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Return the yellow pixels of the image's part of the canvas, `[h, w]`."""
    width, height = canvas.image_size
    return is_yellow(frame[:height, :width])


def test_the_box_is_where_and_when_it_was_predicted(tmp_path: Path) -> None:
    canvas = write_tube_video(tmp_path / "out.mp4", np.arange(11) / 10)
    yellow_by_frame = [find_yellow(frame, canvas) for frame in read_frames(tmp_path / "out.mp4")]
    assert [bool(yellow.any()) for yellow in yellow_by_frame] == [
        2 <= frame < 6 for frame in range(10)
    ]
    for yellow in yellow_by_frame[2:6]:
        rows, columns = np.nonzero(yellow)
        corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(corners, BOX, atol=2)
        assert yellow[41, 100:300].mean() > 0.9
        assert yellow[40:200, 101].mean() > 0.9
        assert not yellow[60:180, 120:280].any()


def test_small_pictures_are_enlarged_and_the_box_with_them(tmp_path: Path) -> None:
    canvas = write_tube_video(
        tmp_path / "out.mp4", np.arange(11) / 10, (160, 96), box=(40.0, 20.0, 80.0, 60.0)
    )
    assert canvas.scale == 3
    rows, columns = np.nonzero(find_yellow(read_frames(tmp_path / "out.mp4")[3], canvas))
    np.testing.assert_allclose(
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), (120, 60, 240, 180), atol=2
    )


def test_a_box_beyond_the_picture_is_clipped(tmp_path: Path) -> None:
    canvas = write_tube_video(
        tmp_path / "out.mp4", np.arange(11) / 10, box=(-50.0, -50.0, 5000.0, 5000.0)
    )
    yellow = find_yellow(read_frames(tmp_path / "out.mp4")[3], canvas)
    assert yellow[1].mean() > 0.9
    assert yellow[-2].mean() > 0.9


def test_the_bar_shows_the_span(tmp_path: Path) -> None:
    canvas = write_tube_video(tmp_path / "out.mp4", np.arange(11) / 10)
    _, top, _, bottom = canvas.time_bar
    row = is_yellow(read_frames(tmp_path / "out.mp4")[0][(top + bottom) // 2])
    columns = np.flatnonzero(row)
    assert (columns.min(), columns.max()) == pytest.approx(
        (canvas.get_time_bar_x(0.2), canvas.get_time_bar_x(0.6)), abs=3
    )


@pytest.mark.parametrize(
    "edges",
    [np.arange(31) / 30, np.array([0, 0.04, 0.08, 0.58, 0.62, 1.62, 1.7, 1.74, 2.5])],
    ids=["even", "variable"],
)
def test_frames_are_shown_as_long_as_in_the_source(edges: np.ndarray, tmp_path: Path) -> None:
    write_tube_video(tmp_path / "out.mp4", edges)
    info = probe(tmp_path / "out.mp4")
    np.testing.assert_allclose(info.pts_seconds, edges[:-1], atol=1e-4)
    assert info.duration == pytest.approx(edges[-1], abs=1e-3)
    assert not info.has_edit_list


def test_it_plays_everywhere(tmp_path: Path) -> None:
    import av

    write_tube_video(tmp_path / "out.mp4", np.arange(11) / 10)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert container.duration / av.time_base == pytest.approx(1.0, abs=1e-3)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(511, 287), (161, 97), (97, 161), (640, 361)])
def test_odd_sides_become_even(size: tuple[int, int], tmp_path: Path) -> None:
    canvas = write_tube_video(
        tmp_path / "out.mp4", np.arange(8) / 10, size, box=(20.0, 20.0, 60.0, 60.0)
    )
    width, height = probe(tmp_path / "out.mp4").size
    assert (width, height) == canvas.size
    assert width % 2 == height % 2 == 0
    assert 0 <= width - size[0] * canvas.scale <= 1


def test_frames_at_one_time_still_get_their_own() -> None:
    ticks = compute_ticks(np.array([5.0, 5.0, 5.0, 5.1]))
    assert ticks.tolist() == [0, 1, 2, round(0.1 / Fraction(1, 90_000))]


def test_nothing_is_left_where_frames_fail(tmp_path: Path) -> None:
    def iterate_failing_frames() -> object:
        yield np.zeros((288, 512, 3), np.uint8)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        draw_tube(
            tmp_path / "out.mp4",
            iterate_failing_frames(),
            np.arange(5) / 5,
            SIZE,
            LabeledTube("x", (0, 1), {}),
        )  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "what spins?",
        "a man in a red coat walks away",
        "Donaudampfschifffahrtsgesellschaft" * 3,
        "word " * 200,
        "",
    ],
)
def test_lines_fit_the_strip(text: str) -> None:
    font = ImageFont.load_default(14)
    lines = wrap_text(text, font, 200)
    assert 1 <= len(lines) <= MAX_LINES
    assert all(font.getlength(line) <= 200 for line in lines)
    is_complete = "".join(text.split()) == "".join(lines).replace(" ", "")
    assert is_complete != lines[-1].endswith("…")
