"""One shard of each product: what fails leaves no trace in it, and takes nothing with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import StvgError, VideoError
from pipeline.extraction import shard_task as shards
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.shard_task import extract_shard
from pipeline.features.reduction import Reduction
from pipeline.store import Shard
from pipeline.store.layout import get_shard_path
from pipeline.store.shard import read_table
from pipeline.weights.checkpoint_files import LoadReport
from pipeline.weights.load import Backbone

pytestmark = pytest.mark.usefixtures("one_thread")
PRODUCTS = ("appearance", "motion", "swin", "frames")
VIDEOS = ("a", "b", "c")
NAME = "00000-0123abcd"
BRIGHT = 130
"""Mean brightness of the pictures of `b` from its 32nd on; all others are darker."""


class Encoder(nn.Module):
    """Any of the networks: means over colours, of every fourth pixel. `trouble` is called with the
    brightest picture's mean.
    """

    num_frames, square_side, channels = 4, 16, 1

    def __init__(self, product: str, trouble: Callable[[float], float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.product, self.trouble = product, trouble

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = pictures.float()
        factor = self.trouble(float(pictures.mean((1, -2, -1)).max()))
        maps = pictures.mean(1)[..., ::4, ::4, None] * factor
        return maps.mean(1) if self.product == "motion" else maps


class Work:
    """Makes shards of all products in a store, with networks that get into `trouble`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.ticks: list[tuple[str, bool]] = []

    def job(self, store: Path, videos: tuple[str, ...] = VIDEOS, **changes: Any) -> Job:
        base = {
            "products": PRODUCTS,
            "sampling": {"short_side": 32, "clip_seconds": 0.2},
            "batch_size": 2,
            "device": "cpu",
            "weights": "random:0",
        }
        lacking = {product: frozenset(videos) for product in PRODUCTS}
        paths = {video: self.folder / f"{video}.mp4" for video in videos}
        provenance = {product: {"settings": dict(changes)} for product in PRODUCTS}
        return Job(
            store,
            Shard(NAME, videos),
            lacking,
            paths,
            {},
            ExtractConfig.model_validate(base | changes),
            provenance,
        )

    def make(
        self, job: Job, trouble: Callable[[str, float], float] = lambda product, bright: 1
    ) -> Any:
        """`trouble` gets a product and a brightness, and may raise; else what it gives multiplies
        the maps.
        """

        def backbone(product: str, *rest: Any) -> Backbone:
            return Backbone(
                Encoder(product, lambda bright: trouble(product, bright)),
                "random:0",
                "",
                LoadReport(product, 0, ()),
            )

        self.monkeypatch.setattr(shards, "_load_backbone", backbone)
        return extract_shard(job, lambda video, text: self.ticks.append((video, text)))


@pytest.fixture
def shard_work(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Work:
    """`b` is the middle one of three videos, and has a bright end: trouble comes once much of it is
    written.
    """
    make_video(tmp_path / "a.mp4", 12)
    make_video(tmp_path / "c.mp4", 27)
    write_brightening(tmp_path / "b.mp4")
    return Work(tmp_path, monkeypatch)


def write_brightening(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for number in range(60):
            picture = np.full((128, 128, 3), 60 if number < 32 else 230, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def files(store: Path) -> dict[str, str]:
    """Digests of all that lies in a store, half-written files included."""
    paths = [path for path in sorted(store.rglob("*")) if path.is_file()]
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def out_of_memory(of: str) -> Callable[[str, float], float]:
    def trouble(product: str, bright: float) -> float:
        if product == of and bright > BRIGHT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1

    return trouble


def huge(of: str) -> Callable[[str, float], float]:
    return lambda product, bright: 1e9 if product == of and bright > BRIGHT else 1


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
@pytest.mark.parametrize("of", ["appearance", "motion", "swin"])
@pytest.mark.parametrize(
    ("make_trouble", "reason"), [(huge, "not-finite"), (out_of_memory, "out-of-memory")]
)
def test_a_video_that_fails_midway_leaves_no_trace(
    shard_work: Work, tmp_path: Path, of: str, kind: str, make_trouble: Any, reason: str
) -> None:
    """Of none of the products, whichever of them failed; and the videos after it are as they are
    without it.
    """
    infos, failed = shard_work.make(shard_work.job(tmp_path / "s", format=kind), make_trouble(of))
    assert [(failure.video, failure.stage, failure.reason) for failure in failed] == [
        ("b", "encode", reason)
    ]
    assert shard_work.ticks == [("a", False), ("b", False), ("c", False)]
    shard_work.make(shard_work.job(tmp_path / "without", ("a", "c"), format=kind))
    assert files(tmp_path / "s") == files(tmp_path / "without")
    assert {product: info.videos for product, info in infos.items()} == dict.fromkeys(
        PRODUCTS, ("a", "c")
    )


def test_the_failing_video_was_half_written(
    shard_work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of `b` reach every product's shard before it fails, so the test above is meaningful."""
    written: list[tuple[str, str]] = []
    append = shards.ShardBuilder.append

    def noted(self: Any, rows: np.ndarray) -> None:
        written.append((self._product, self._open_entry.key))
        append(self, rows)

    monkeypatch.setattr(shards.ShardBuilder, "append", noted)
    shard_work.make(shard_work.job(tmp_path / "s"), out_of_memory("appearance"))
    assert {(product, "b") for product in PRODUCTS} <= set(written)


def test_out_of_memory_says_what_to_do(shard_work: Work, tmp_path: Path) -> None:
    _, (failure,) = shard_work.make(shard_work.job(tmp_path / "s"), out_of_memory("motion"))
    assert failure.path == str(tmp_path / "b.mp4")
    assert "does not fit into the memory of" in failure.detail
    assert "set a smaller batch" in failure.detail


def test_a_truncated_video_leaves_no_trace(shard_work: Work, tmp_path: Path) -> None:
    content = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: int(len(content) * 0.6)])
    _, failed = shard_work.make(shard_work.job(tmp_path / "s"))
    assert [failure.video for failure in failed] == ["b"]
    shard_work.make(shard_work.job(tmp_path / "without", ("a", "c")))
    assert files(tmp_path / "s") == files(tmp_path / "without")


def test_damage_that_shows_late_leaves_no_trace(
    shard_work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder fails at `b`'s last pictures: all that was streamed until then is taken back."""

    class Decoder:
        """This process' own, but for the end of `b`."""

        def probe(self, path: Path) -> Any:
            return IN_PROCESS.probe(path)

        def frames(self, path: Path, facts: Any, wanted: np.ndarray) -> Any:
            opened = IN_PROCESS.frames(path, facts, wanted)
            return opened if path.stem != "b" else Breaking(opened, len(wanted) - 2)

    class Breaking:
        def __init__(self, opened: Any, after: int) -> None:
            self.opened, self.after = opened, after

        def __enter__(self) -> Any:
            self.pictures = self.opened.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.opened.__exit__(*error)

        def __iter__(self) -> Any:
            for place, picture in enumerate(self.pictures):
                if place == self.after:
                    raise VideoError("decode", "unreadable", "its end is damaged")
                yield picture

    from pipeline.features.stream import IN_PROCESS

    monkeypatch.setattr(shards, "shared_decoder", Decoder)
    _, failed = shard_work.make(shard_work.job(tmp_path / "s"))
    assert [(failure.video, failure.reason) for failure in failed] == [("b", "unreadable")]
    shard_work.make(shard_work.job(tmp_path / "without", ("a", "c")))
    assert files(tmp_path / "s") == files(tmp_path / "without")


def test_a_reduction_that_fails_closes_the_video(
    shard_work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is left in the middle: the decoder must be free for the next video."""

    class Failing(Reduction):
        def apply(self, rows: np.ndarray) -> Any:
            if rows.mean() > BRIGHT:
                raise VideoError("encode", "not-finite", "its reduced features are not finite")
            return super().apply(rows)

    monkeypatch.setattr(
        shards,
        "load_product_reduction",
        lambda product, *rest: Failing(None, int8=True) if product == "appearance" else None,
    )
    _, failed = shard_work.make(shard_work.job(tmp_path / "s"))
    assert [failure.video for failure in failed] == ["b"]
    shard_work.make(shard_work.job(tmp_path / "without", ("a", "c")))
    assert files(tmp_path / "s") == files(tmp_path / "without")


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_a_shard_of_other_settings_is_replaced(shard_work: Work, tmp_path: Path, kind: Any) -> None:
    """A worker of a dead run, with other settings, put it there under the same name."""
    shard_work.make(shard_work.job(tmp_path / "s", format=kind, batch_size=3))
    infos, _ = shard_work.make(
        shard_work.job(tmp_path / "s", format=kind), lambda product, bright: 0.5
    )
    expected, _ = shard_work.make(
        shard_work.job(tmp_path / "fresh", format=kind), lambda product, bright: 0.5
    )
    assert infos == expected
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_a_shard_that_is_there_is_kept(shard_work: Work, tmp_path: Path, kind: Any) -> None:
    """Another run of the task was first: nothing is looked at again; what is lacking is made."""
    first, _ = shard_work.make(shard_work.job(tmp_path / "s", format=kind))
    before = files(tmp_path / "s")
    stamps = {
        path: path.stat().st_mtime_ns
        for path in tmp_path.joinpath("s").rglob("*")
        if path.is_file()
    }

    def never(product: str, bright: float) -> float:
        raise AssertionError(product)

    again, failed = shard_work.make(shard_work.job(tmp_path / "s", format=kind), never)
    assert (again, failed) == (first, [])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    path = get_shard_path(tmp_path / "s", "motion", NAME, kind)
    path.rename(tmp_path / "moved")

    def only_motion(product: str, bright: float) -> float:
        assert product == "motion"
        return 1

    again, failed = shard_work.make(shard_work.job(tmp_path / "s", format=kind), only_motion)
    assert (again, failed) == (first, [])
    assert files(tmp_path / "s") == before
    assert all(
        path.stat().st_mtime_ns == stamp
        for path, stamp in stamps.items()
        if "motion" not in path.parts
    )


def test_products_may_lack_different_videos(shard_work: Work, tmp_path: Path) -> None:
    job = shard_work.job(tmp_path / "s")
    job.missing.update({"motion": frozenset("c"), "swin": frozenset("ab"), "frames": frozenset()})
    infos, _ = shard_work.make(job)
    assert {product: info.videos for product, info in infos.items()} == {
        "appearance": VIDEOS,
        "motion": ("c",),
        "swin": ("a", "b"),
        "frames": (),
    }
    assert not get_shard_path(tmp_path / "s", "frames", NAME, "zarr").exists()
    assert len(shard_work.ticks) == 3


def test_a_shard_without_any_good_video_is_not_written(shard_work: Work, tmp_path: Path) -> None:
    for video in VIDEOS:
        (tmp_path / f"{video}.mp4").write_bytes(b"")
    infos, failed = shard_work.make(shard_work.job(tmp_path / "s"))
    assert [(failure.video, failure.reason) for failure in failed] == [
        (video, "empty") for video in VIDEOS
    ]
    assert [info.entries for info in infos.values()] == [0] * 4
    assert files(tmp_path / "s") == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, StvgError, RuntimeError])
def test_other_errors_end_the_task_and_leave_nothing(
    shard_work: Work, tmp_path: Path, error: type[BaseException]
) -> None:
    def trouble(product: str, bright: float) -> float:
        if bright > BRIGHT:
            raise error("not a video's fault")
        return 1

    with pytest.raises(error, match="not a video's fault"):
        shard_work.make(shard_work.job(tmp_path / "s"), trouble)
    assert files(tmp_path / "s") == {}
    infos, failed = shard_work.make(
        shard_work.job(tmp_path / "s")
    )  # and the decoder's process is free
    assert (failed, {info.videos for info in infos.values()}) == ([], {VIDEOS})


SAID = {"b": [("1", "who sits?"), ("0", "a dog")], "a": [("2", "a dog")]}


def text_job(tmp_path: Path) -> Job:
    config = ExtractConfig.model_validate({"backbones": "tiny", "weights": "tiny", "device": "cpu"})
    paths = {video: tmp_path / f"{video}.mp4" for video in SAID}
    return Job(
        tmp_path / "s",
        Shard(NAME, ("b", "a")),
        {"text": frozenset(SAID)},
        paths,
        SAID,
        config,
        {"text": {}},
    )


def test_sentences_stand_in_the_order_of_the_index(tmp_path: Path) -> None:
    infos, failed = extract_shard(text_job(tmp_path), lambda video, text: None)
    assert (failed, infos["text"].entries, infos["text"].videos) == ([], 3, ("a", "b"))
    table = read_table(get_shard_path(tmp_path / "s", "text", NAME, "hdf5"), "hdf5")
    assert [(place.key, place.video, place.facts["text"]) for place in table.entries] == [
        ("1", "b", "who sits?"),
        ("0", "b", "a dog"),
        ("2", "a", "a dog"),
    ]


def test_a_video_whose_sentences_fail_leaves_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(texts: list[str], *rest: Any) -> Any:
        yield from shards_encode_texts(texts[:1], *rest)
        if "who sits?" in texts:
            raise VideoError("encode", "out-of-memory", "it does not fit")
        yield from shards_encode_texts(texts[1:], *rest)

    shards_encode_texts = shards.encode_texts
    monkeypatch.setattr(shards, "encode_texts", encode)
    infos, failed = extract_shard(text_job(tmp_path), lambda video, text: None)
    assert [(failure.video, failure.reason, failure.path) for failure in failed] == [
        ("b", "out-of-memory", str(tmp_path / "b.mp4"))
    ]
    assert (infos["text"].videos, infos["text"].entries) == (("a",), 1)


def test_a_job_is_taken_apart_into_its_videos(shard_work: Work, tmp_path: Path) -> None:
    job = shard_work.job(tmp_path / "s")
    job.missing.update({"motion": frozenset("c"), "swin": frozenset(), "frames": frozenset("ab")})
    result, parts = job.split_unfinished({})
    assert result.shard == Shard(NAME, ())
    assert [part.shard.videos for part in parts] == [("a",), ("b",), ("c",)]
    assert [sorted(part.missing) for part in parts] == [
        ["appearance", "frames"],
        ["appearance", "frames"],
        ["appearance", "motion"],
    ]
    assert all(
        videos == frozenset(part.shard.videos) for part in parts for videos in part.missing.values()
    )
    assert len({job.shard.name, *(part.shard.name for part in parts)}) == 4
    assert [part.sentences for part in text_job(tmp_path).split_unfinished({})[1]] == [
        {"b": SAID["b"]},
        {"a": SAID["a"]},
    ]
    assert not any(part.sentences for part in parts)
    infos, _ = shard_work.make(shard_work.job(tmp_path / "s", ("a", "b")))
    result, parts = job.split_unfinished(
        {product: infos[product] for product in ("appearance", "motion")}
    )
    assert result.shard == Shard(NAME, ())
    assert [part.missing for part in parts] == [
        {"frames": frozenset("a")},
        {"frames": frozenset("b")},
        {"appearance": frozenset("c"), "motion": frozenset("c")},
    ]
    result, parts = shard_work.job(tmp_path / "s").split_unfinished(infos)
    assert (result.shard.videos, [part.shard.videos for part in parts]) == (("a", "b"), [("c",)])
