"""All videos of an index into a store: whatever happens on the way, it ends the same, and what
failed is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed  # noqa: F401 - its settings exist before they are changed
import numpy as np
import psutil
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from cli.extract import _warn_failures, app
from pipeline.errors import InputError, StoreError
from pipeline.extraction import file_digests as seen_module
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.dry_run import estimate_run, estimate_stored_bytes
from pipeline.extraction.plan import estimate_product_bytes
from pipeline.extraction.run import ExtractionReport, run_extraction
from pipeline.extraction.shard_task import get_encoder
from pipeline.features.stream import extract_video
from pipeline.io.jsonl import read_jsonl, write_jsonl
from pipeline.records import Failure, Query
from pipeline.store import Store
from pipeline.tracks import Tracks
from tests.forked_commands import get_fork_server, list_forked_processes

pytestmark = pytest.mark.usefixtures("one_thread")
VIDEOS = ("a", "b", "c", "d")
FRAMES = 12
BASE: dict[str, Any] = {
    "backbones": "tiny",
    "weights": "random:0",
    "products": ("appearance", "text"),
    "sampling": {"short_side": 32, "clip_seconds": 0.4, "clip_stride_seconds": 0.2},
    "shard_mb": 1,
    "workers": 0,
}
Data = Callable[..., Path]


def settings(**changes: Any) -> ExtractConfig:
    return ExtractConfig.model_validate(BASE | changes)


def query(video: str, **changes: Any) -> Query:
    """The index says the videos are longer than they are, so that two fill a shard."""
    fields: dict[str, Any] = {
        "id": f"{video}-0",
        "video": video,
        "path": f"{video}.mp4",
        "fps": 25,
        "frame_count": 50,
        "size": (128, 48),
    }
    return Query(
        **fields
        | {"segment": (0, FRAMES), "text": f"what moves in {video}?", "split": "test"}
        | changes
    )


def write_index(folder: Path, queries: list[Query]) -> Path:
    write_jsonl(folder / "index.jsonl", queries)
    Tracks().save(folder / "tracks.npz")
    return folder / "index.jsonl"


@pytest.fixture(scope="module")
def video_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Four small videos that differ."""
    from fractions import Fraction

    import av

    folder = tmp_path_factory.mktemp("originals")
    for shift, name in enumerate(VIDEOS):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 128, 48, "yuv420p"
            stream.time_base = Fraction(1, 25)
            for number in range(FRAMES):
                picture = np.full((48, 128, 3), 40 * shift, np.uint8)
                picture[10:30, 8 * number : 8 * number + 20] = 255 - 30 * shift
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return {name: (folder / f"{name}.mp4").read_bytes() for name in VIDEOS}


@pytest.fixture
def data_dir(tmp_path: Path, video_files: dict[str, bytes]) -> Path:
    """A folder of four videos with an index of one sentence about each."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in video_files.items():
        (folder / f"{name}.mp4").write_bytes(content)
    write_index(folder, [query(video) for video in VIDEOS])
    return folder


def extract(
    data: Path,
    store: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **changes: Any,
) -> ExtractionReport:
    return run_extraction(data / "index.jsonl", data, "jsonl", store, settings(**changes), progress)


def told(data: Path, store: Path, **changes: Any) -> list[str]:
    """What a run says."""
    lines: list[str] = []
    run_extraction(
        data / "index.jsonl", data, "jsonl", store, settings(**changes), on_message=lines.append
    )
    return lines


def files(store: Path) -> dict[str, str]:
    """Digests of all that a store holds, locks aside."""
    paths = [
        path
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ("lock", "lock.json")
    ]
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def ledger(store: Path) -> dict[str, tuple[str, int]]:
    """video → (reason, attempts)."""
    return {
        failure.video: (failure.reason, failure.attempts)
        for failure in read_jsonl(store / "failures.jsonl", Failure)
    }


def entries(store: Path, product: str) -> list[str]:
    """The videos of every entry of a product that counts, entries that stand twice included."""
    from pipeline.store.shard import read_table

    own = Store(store).products[product]
    suffix = {"zarr": ".zarr", "hdf5": ".h5"}[own.kind]
    tables = [
        (read_table(store / product / f"{name}{suffix}", own.kind), info)
        for name, info in own.shards.items()
    ]
    return sorted(
        place.video
        for table, info in tables
        for place in table.entries
        if place.key not in info.dropped
    )


class StopError(Exception):
    pass


def stop_after(videos: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= videos:
            raise StopError

    return progress


def test_every_product_holds_every_video(data_dir: Path, tmp_path: Path) -> None:
    recorded: list[tuple[int, int]] = []
    products = ("appearance", "motion", "text", "frames")
    report = extract(
        data_dir,
        tmp_path / "s",
        lambda done, total: recorded.append((done, total)),
        products=products,
    )
    assert (report.videos, report.failures, report.shards_written, report.exit_code(0)) == (
        4,
        [],
        7,
        0,
    )
    assert recorded == [*((done, 4) for done in range(5)), (4, 4)]
    for product in products:
        assert entries(tmp_path / "s", product) == list(VIDEOS)
    store = Store(tmp_path / "s")
    assert store.verify() == []
    assert store.index_path.read_bytes() == (data_dir / "index.jsonl").read_bytes()
    assert ledger(tmp_path / "s") == {}
    config = settings()
    encoders = {
        product: get_encoder(product, config) for product in ("appearance", "motion", "frames")
    }
    expected = extract_video(data_dir / "c.mp4", config.sampling, encoders)
    for product, (rows, columns) in expected.products.items():
        reader = store.open(product)
        assert np.array_equal(reader.read("c"), rows)
        assert all(
            np.array_equal(reader.columns("c")[name], values) for name, values in columns.items()
        )
        assert reader.facts("c") == expected.facts
    assert store.open("text").facts("c-0") == {"text": "what moves in c?"}


def test_a_second_run_does_nothing(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/*")}
    report = extract(data_dir, tmp_path / "s")
    assert (report.shards_written, report.failures) == (0, [])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/*")} == before


@pytest.mark.parametrize("videos", [1, 2, 3, 4])
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    data_dir: Path, tmp_path: Path, videos: int
) -> None:
    extract(data_dir, tmp_path / "whole")
    with pytest.raises(StopError):
        extract(data_dir, tmp_path / "s", stop_after(videos))
    extract(data_dir, tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_a_shard_that_a_killed_run_left_unlisted_is_taken_up(
    data_dir: Path, tmp_path: Path
) -> None:
    extract(data_dir, tmp_path / "s")
    complete = files(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    manifest["products"]["appearance"]["shards"].popitem()
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    assert extract(data_dir, tmp_path / "s").shards_written == 0
    assert files(tmp_path / "s") == complete


def test_bad_videos_are_named_and_the_rest_goes_on(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    (data_dir / "a.mp4").unlink()
    (data_dir / "b.mp4").write_bytes(b"")
    (data_dir / "d.mp4").write_bytes(video_files["d"][: len(video_files["d"]) // 2])
    report = extract(data_dir, tmp_path / "s")
    assert ledger(tmp_path / "s") == {"a": ("missing", 1), "b": ("empty", 1), "d": ("truncated", 1)}
    assert [failure.video for failure in report.failures] == ["a", "b", "d"]
    assert "a.mp4 does not exist" in report.failures[0].detail
    assert [entries(tmp_path / "s", product) for product in ("appearance", "text")] == [
        ["c"],
        list(VIDEOS),
    ]
    assert extract(data_dir, tmp_path / "s").shards_written == 0
    assert {attempts for _, attempts in ledger(tmp_path / "s").values()} == {2}


def test_a_repaired_video_lands_in_an_overlay_shard(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    (data_dir / "d.mp4").write_bytes(b"")
    extract(data_dir, tmp_path / "s")
    first = set(Store(tmp_path / "s").products["appearance"].shards)
    (data_dir / "d.mp4").write_bytes(video_files["d"])
    recorded: list[tuple[int, int]] = []
    report = extract(data_dir, tmp_path / "s", lambda done, total: recorded.append((done, total)))
    assert (report.failures, report.shards_written, recorded[-1]) == ([], 1, (1, 1))
    shards = Store(tmp_path / "s").products["appearance"].shards
    assert first < set(shards)
    assert [info.videos for name, info in shards.items() if name not in first] == [("d",)]
    assert ledger(tmp_path / "s") == {}
    assert extract(data_dir, tmp_path / "s").shards_written == 0


def test_an_overlay_shard_with_a_failure_left_behind_is_retried(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    """Two of a shard failed, one is repaired, the run is killed before it lists the overlay: the
    other is not forgotten.
    """
    for name in ("b", "c"):
        (data_dir / f"{name}.mp4").write_bytes(b"")
    extract(data_dir, tmp_path / "s")
    (data_dir / "b.mp4").write_bytes(video_files["b"])
    extract(data_dir, tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    product = manifest["products"]["appearance"]
    product["shards"] = {
        name: info for name, info in product["shards"].items() if info["videos"] != ["b"]
    }
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    extract(data_dir, tmp_path / "s")
    assert ledger(tmp_path / "s") == {"c": ("empty", 3)}
    assert entries(tmp_path / "s", "appearance") == ["a", "b", "d"]


def test_the_ledger_of_a_stopped_run_keeps_what_it_did_not_reach(
    data_dir: Path, tmp_path: Path
) -> None:
    for name in ("a", "d"):
        (data_dir / f"{name}.mp4").write_bytes(b"")
    extract(data_dir, tmp_path / "s")
    with pytest.raises(StopError):
        extract(data_dir, tmp_path / "s", stop_after(1))
    assert ledger(tmp_path / "s") == {"a": ("empty", 1), "d": ("empty", 1)}


def test_failures_outlive_a_run_of_other_products(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "a.mp4").unlink()
    extract(data_dir, tmp_path / "s", products=("appearance",))
    report = extract(data_dir, tmp_path / "s", products=("text",))
    assert ledger(tmp_path / "s") == {"a": ("missing", 1)}
    assert len(report.failures) == 1


def test_a_product_added_later_equals_one_made_at_once(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "whole", products=("appearance", "frames"))
    extract(data_dir, tmp_path / "s", products=("frames",))
    before = files(tmp_path / "s" / "frames")
    assert extract(data_dir, tmp_path / "s", products=("appearance", "frames")).shards_written == 2
    assert files(tmp_path / "s" / "frames") == before
    assert {**files(tmp_path / "s"), "manifest.json": ""} == {
        **files(tmp_path / "whole"),
        "manifest.json": "",
    }
    assert Store(tmp_path / "s").products == Store(tmp_path / "whole").products


def test_no_entry_stands_twice_when_products_lack_different_videos(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    """`a` was missing when appearance was made: now appearance lacks one video of the shard, frames
    both.
    """
    (data_dir / "a.mp4").unlink()
    extract(data_dir, tmp_path / "s", products=("appearance",))
    (data_dir / "a.mp4").write_bytes(video_files["a"])
    extract(data_dir, tmp_path / "s", products=("appearance", "frames"))
    assert [entries(tmp_path / "s", product) for product in ("appearance", "frames")] == [
        list(VIDEOS)
    ] * 2
    write_index(data_dir, [query(video) for video in (*VIDEOS, "b2")])
    (data_dir / "b2.mp4").write_bytes(video_files["a"])
    extract(data_dir, tmp_path / "s", products=("frames",))
    extract(data_dir, tmp_path / "s", products=("appearance", "frames"))
    assert [entries(tmp_path / "s", product) for product in ("appearance", "frames")] == [
        sorted((*VIDEOS, "b2"))
    ] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": "random:1"},
            r"product 'appearance' was made with other settings: weights is \"random:0\" in "
            r"the store, \"random:1\" was",
        ),
        (
            {"sampling": {"short_side": 48}},
            r"sampling.short_side is 32 in the store, 48 was asked for",
        ),
        (
            {"products": ("frames",), "sampling": {"short_side": 32, "jpeg_quality": 50}},
            r"'frames'.*sampling.jpeg_quality is 90 in the store, 50",
        ),
        (
            {"products": ("text",), "weights": {"text": "tiny"}},
            r"'text'.*weights is \"random:0\" in the store, \"tiny\" was asked for",
        ),
        ({"format": "hdf5"}, r"kind is \"zarr\" in the store, \"hdf5\" was asked for"),
    ],
)
def test_a_store_made_otherwise_is_refused_or_remade(
    data_dir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    extract(data_dir, tmp_path / "s", products=("appearance", "text", "frames"))
    before = files(tmp_path / "s")
    with pytest.raises(StoreError, match=message):
        extract(data_dir, tmp_path / "s", **changes)
    with pytest.raises(StoreError, match=message):
        estimate_run(
            data_dir / "index.jsonl", data_dir, "jsonl", tmp_path / "s", settings(**changes)
        )
    assert files(tmp_path / "s") == before
    extract(data_dir, tmp_path / "s", replace=True, **changes)
    extract(data_dir, tmp_path / "fresh", **changes)
    for product in changes.get("products", ("appearance",)):
        assert files(tmp_path / "s" / product) == files(tmp_path / "fresh" / product)


def test_other_backbones_are_refused(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "s", products=("appearance",))
    with pytest.raises(
        StoreError,
        match=r"'appearance' was made with other settings: backbone is \"tiny\" in the store, "
        r"\"full\" was asked for",
    ):
        extract(data_dir, tmp_path / "s", products=("appearance",), backbones="full")


def test_another_data_set_is_refused(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "s", products=("text",))
    for attempt in (run_extraction, estimate_run):
        with pytest.raises(
            StoreError, match="holds dataset 'jsonl', not 'vidstg': extract into another --store"
        ):
            attempt(data_dir / "index.jsonl", data_dir, "vidstg", tmp_path / "s", settings())


def test_a_changed_video_is_made_anew_and_nothing_beside_it(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    products = ("appearance", "motion", "frames")
    for (
        product
    ) in products:  # one after the other, so that a product is looked at in every shape of job
        extract(data_dir, tmp_path / "s", products=(product,))
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/*.zarr")}
    (data_dir / "a.mp4").write_bytes(video_files["c"])
    lines = told(data_dir, tmp_path / "s", products=products)
    assert {
        f"{product}: 1 videos are made anew: what they were made of has changed"
        for product in products
    } < set(lines)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    extract(data_dir, tmp_path / "fresh", products=products)
    for product in products:
        assert entries(tmp_path / "s", product) == list(VIDEOS)
        result, good = (Store(path).open(product) for path in (tmp_path / "s", tmp_path / "fresh"))
        assert all(np.array_equal(result.read(video), good.read(video)) for video in VIDEOS)
        assert all(result.facts(video) == good.facts(video) for video in VIDEOS)
    assert Store(tmp_path / "s").verify() == []
    assert extract(data_dir, tmp_path / "s", products=products).shards_written == 0


def test_a_video_may_change_again_and_with_its_neighbours(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    """Alone in its overlay, which goes; then with all others of the first shard, which goes too."""
    extract(data_dir, tmp_path / "s")
    for changed in ({"a": "c"}, {"a": "d"}, {"a": "b", "b": "a"}, {"b": "c", "d": "a"}):
        for name, other in changed.items():
            (data_dir / f"{name}.mp4").write_bytes(video_files[other])
        extract(data_dir, tmp_path / "s")
        extract(data_dir, tmp_path / "fresh", replace=True)
        assert entries(tmp_path / "s", "appearance") == list(VIDEOS)
        result, good = (
            Store(path).open("appearance") for path in (tmp_path / "s", tmp_path / "fresh")
        )
        assert all(np.array_equal(result.read(video), good.read(video)) for video in VIDEOS)
        assert extract(data_dir, tmp_path / "s").shards_written == 0


def test_a_changed_video_that_cannot_be_decoded_is_in_the_ledger(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    extract(data_dir, tmp_path / "s")
    (data_dir / "a.mp4").write_bytes(b"")
    for attempts in (1, 2):
        assert extract(data_dir, tmp_path / "s").shards_written == 0
        assert ledger(tmp_path / "s") == {"a": ("empty", attempts)}
        assert entries(tmp_path / "s", "appearance") == ["b", "c", "d"]
    (data_dir / "a.mp4").write_bytes(video_files["a"])
    assert extract(data_dir, tmp_path / "s").failures == []
    assert entries(tmp_path / "s", "appearance") == list(VIDEOS)


@pytest.mark.parametrize("videos", [1, 2])
def test_stopped_while_changed_videos_are_made_anew(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes], videos: int
) -> None:
    for name in ("whole", "s"):
        extract(data_dir, tmp_path / name)
    for name, other in {"a": "c", "d": "b"}.items():
        (data_dir / f"{name}.mp4").write_bytes(video_files[other])
    extract(data_dir, tmp_path / "whole")
    with pytest.raises(StopError):
        extract(data_dir, tmp_path / "s", stop_after(videos))
    extract(data_dir, tmp_path / "s")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_a_vanished_video_keeps_its_features(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "s")
    (data_dir / "a.mp4").unlink()
    report = extract(data_dir, tmp_path / "s")
    assert (report.shards_written, report.failures) == (0, [])


def test_a_changed_video_costs_no_other_that_is_gone(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    """All four share a shard: deleting it would lose what cannot be made again."""
    extract(data_dir, tmp_path / "s", shard_mb=64)
    before = Store(tmp_path / "s").open("appearance").read("b")
    (data_dir / "a.mp4").write_bytes(video_files["c"])
    (data_dir / "b.mp4").unlink()
    report = extract(data_dir, tmp_path / "s", shard_mb=64)
    assert (report.shards_written, report.failures) == (1, [])
    after = Store(tmp_path / "s").open("appearance")
    assert np.array_equal(after.read("b"), before)
    assert np.array_equal(after.read("a"), after.read("c"))


def test_each_video_file_is_read_once(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all products of a run; and by later runs only if it has changed, once there are enough to
    remember them.
    """
    products = ("appearance", "frames")
    extract(data_dir, tmp_path / "s", products=products)
    read: list[str] = []
    digest = seen_module.compute_file_digest
    monkeypatch.setattr(
        seen_module, "compute_file_digest", lambda path: [read.append(path.stem), digest(path)][1]
    )
    extract(data_dir, tmp_path / "s", products=products)
    assert read == list(VIDEOS)
    assert not (tmp_path / "s" / seen_module.CACHE_FILE_NAME).exists()
    monkeypatch.setattr(seen_module, "MIN_CACHED_FILES", 4)
    for changed, later in ((0, [*VIDEOS]), (0, []), (1, ["b"])):
        read.clear()
        os.utime(data_dir / "b.mp4", ns=(changed, changed))
        extract(data_dir, tmp_path / "s", products=products)
        assert read == later


def test_threads_do_not_change_a_bit(data_dir: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            extract(data_dir, tmp_path / str(threads))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert files(tmp_path / "1") == files(tmp_path / "2")


@pytest.mark.parametrize(
    "queries",
    [
        [query("a", text="another"), query("b"), query("c"), query("d")],
        [query("a"), query("a", id="a-1"), query("b"), query("c"), query("d")],
        [query("a"), query("b", id="c-0"), query("c", id="b-0"), query("d")],
        [query("b", id="a-0"), query("c"), query("d")],
    ],
    ids=["changed", "added", "swapped", "moved to another video"],
)
def test_changed_sentences_are_encoded_anew(
    data_dir: Path, tmp_path: Path, queries: list[Query]
) -> None:
    extract(data_dir, tmp_path / "s", products=("text",))
    write_index(data_dir, queries)
    extract(data_dir, tmp_path / "fresh", products=("text",))
    lines = told(data_dir, tmp_path / "s", products=("text",))
    assert (
        "text: 4 sentences in 1 shards are made anew: what they were made of has changed" in lines
        or len(queries) != 4
    )
    assert files(tmp_path / "s") == files(tmp_path / "fresh")
    assert extract(data_dir, tmp_path / "s", products=("text",)).shards_written == 0


def test_fixing_a_truth_invalidates_nothing(data_dir: Path, tmp_path: Path) -> None:
    extract(data_dir, tmp_path / "s")
    write_index(data_dir, [query(video, truth={"span": (2, 5)}) for video in VIDEOS])
    assert extract(data_dir, tmp_path / "s").shards_written == 0
    assert (tmp_path / "s" / "index.jsonl").read_bytes() == (data_dir / "index.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("failed", "allowed", "code"),
    [(1, 0, 1), (1, 1, 0), (2, 1, 1), (1, 0.25, 0), (2, 0.25, 1), (0, 0, 0)],
)
def test_allowed_failures_are_a_count_or_a_share(failed: int, allowed: float, code: int) -> None:
    failure = Failure(video="a", path="a.mp4", stage="open", reason="missing", detail="gone")
    assert ExtractionReport(videos=4, failures=[failure] * failed).exit_code(allowed) == code


def test_unknown_products_and_weights_are_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="unknown product 'sound'; the products are appearance, motion, text, swin, frames",
    ):
        extract(data_dir, tmp_path / "s", products=("sound",))
    with pytest.raises(
        InputError,
        match="weights are given for 'apperance'; products with weights are appearance, "
        "motion, text",
    ):
        extract(data_dir, tmp_path / "s", weights={"apperance": "random:0"})
    with pytest.raises(InputError, match="shipped weights fit --backbones tiny only"):
        extract(data_dir, tmp_path / "s", backbones="full", weights="tiny")
    with pytest.raises(
        InputError,
        match="no weights are named for appearance: add --weights appearance=…, for example app",
    ):
        extract(data_dir, tmp_path / "s", backbones="full", weights={"text": "random:0"})
    assert not (tmp_path / "s").exists()


def test_a_device_that_is_not_here_or_not_said_is_refused(data_dir: Path, tmp_path: Path) -> None:
    for attempt in (
        extract,
        lambda *where, **changes: estimate_run(
            data_dir / "index.jsonl", data_dir, "jsonl", tmp_path / "s", settings(**changes)
        ),
    ):
        with pytest.raises(InputError, match="device 'foo' is not available"):
            attempt(data_dir, tmp_path / "s", device="foo")
        with pytest.raises(
            InputError,
            match=r"with --scheduler each worker would choose.*: add --set device=cpu or --set "
            r"device=cuda",
        ):
            attempt(data_dir, tmp_path / "s", scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"products": ()},
        {"shard_mb": 0},
        {"workers": -1},
        {"batch_size": 0},
        {"allow_failed": -1},
        {"sampling": {"fps": 0}},
        {"format": "npz"},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        settings(**changes)


def test_an_empty_index_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "index.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no query: run stvg-prepare again"):
        extract(data_dir, tmp_path / "s")


def test_an_index_without_tracks_is_refused(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "tracks.npz").unlink()
    with pytest.raises(InputError, match=r"tracks.npz does not exist: run stvg-prepare first"):
        extract(data_dir, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_two_workers_one_of_them_killed(data_dir: Path, tmp_path: Path) -> None:
    """Dask starts the worker anew and runs its shard again: the store is the one made in one
    process. No decoder stays behind.
    """
    extract(data_dir, tmp_path / "whole")
    killed: list[int] = []
    began: set[psutil.Process] = set()

    def kill_one(done: int, total: int) -> None:
        workers = list_forked_processes()
        began.update(process for worker in workers for process in (worker, *worker.children()))
        if done and not killed:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    get_fork_server()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        report = extract(data_dir, tmp_path / "s", kill_one, workers=2)
    assert len(killed) == 1
    assert (report.failures, report.shards_written) == ([], 3)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert len(began) > 2
    assert psutil.wait_procs(began, timeout=10)[1] == []


def test_the_survey_tells_what_a_run_will_do(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "a.mp4").unlink()
    result = estimate_run(
        data_dir / "index.jsonl", data_dir, "jsonl", tmp_path / "none" / "s", settings()
    )
    assert (
        result.videos,
        result.missing_files,
        result.pending_videos,
        result.pending_shards,
        result.pending_seconds,
    ) == (4, 1, 4, 3, 8)
    assert 4 * 98304 / 4 < result.estimated_bytes < 1e6
    assert result.free_bytes > 0
    assert not (tmp_path / "none").exists()
    assert extract(data_dir, tmp_path / "s").shards_written == 3
    before = files(tmp_path / "s")
    result = estimate_run(
        data_dir / "index.jsonl",
        data_dir,
        "jsonl",
        tmp_path / "s",
        settings(products=("appearance", "text", "frames")),
    )
    assert (result.pending_videos, result.pending_shards) == (4, 3)
    assert files(tmp_path / "s") == before


def test_the_survey_counts_what_has_changed_or_was_deleted(
    data_dir: Path, tmp_path: Path, video_files: dict[str, bytes]
) -> None:
    def lacking() -> tuple[int, int]:
        result = estimate_run(
            data_dir / "index.jsonl", data_dir, "jsonl", tmp_path / "s", settings()
        )
        return result.pending_videos, result.pending_shards

    extract(data_dir, tmp_path / "s")
    assert lacking() == (0, 0)
    (data_dir / "a.mp4").write_bytes(video_files["c"])
    assert lacking() == (1, 1)
    write_index(data_dir, [query(video, text="another") for video in VIDEOS])
    assert lacking() == (4, 2)
    shutil.rmtree(next((tmp_path / "s" / "appearance").glob("00001*")))
    assert lacking() == (4, 3)
    assert extract(data_dir, tmp_path / "s").shards_written == 3
    assert lacking() == (0, 0)


@pytest.mark.parametrize(
    ("product", "changes", "share"),
    [
        ("motion", {"sampling": BASE["sampling"] | {"pool_motion_2x2": True}}, 1 / 4),
        ("motion", {"reduce": {"motion": "pca:192"}}, 1 / 2),
        ("appearance", {"reduce": {"appearance": "int8"}}, 1 / 2),
        ("appearance", {"backbones": "full", "reduce": {"appearance": "mdetr:x+int8"}}, 1 / 16),
        ("swin", {"backbones": "full", "reduce": {"swin": "pca"}}, 1 / 3),
        ("text", {}, 1),
        ("frames", {}, 1),
    ],
)
def test_sizes_are_those_of_reduced_maps_and_the_plan_is_not(
    product: str, changes: dict[str, Any], share: float
) -> None:
    about, complete = (
        query("a"),
        settings(**{key: value for key, value in changes.items() if key == "backbones"}),
    )
    assert estimate_stored_bytes(about, product, settings(**changes), 3) == pytest.approx(
        share * estimate_product_bytes(about, product, complete, 3), rel=0.01
    )
    assert estimate_product_bytes(about, product, settings(**changes), 3) == pytest.approx(
        estimate_product_bytes(about, product, complete, 3)
    )


def command(data: Path, store: Path, *more: str) -> Any:
    config = data / "params.yaml"
    config.write_text(json.dumps({"extract": BASE}))
    options = [
        "--dataset",
        "jsonl",
        "--root",
        str(data / "own.jsonl"),
        "--index",
        str(data / "index.jsonl"),
        "--store",
        str(store),
    ]
    return CliRunner().invoke(app, [*options, "--config", str(config), *more])


def test_the_command_exits_1_where_videos_failed(data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "a.mp4").unlink()
    done = command(data_dir, tmp_path / "s")
    assert done.exit_code == 1
    assert "3 of 4 videos, 3 shards made, 1 failed" in done.stdout
    assert f"warning: {data_dir}/a.mp4 does not exist" in done.stderr
    assert command(data_dir, tmp_path / "s", "--set", "allow_failed=1").exit_code == 0
    assert ledger(tmp_path / "s") == {"a": ("missing", 2)}


def test_failures_are_told_in_a_line_each_up_to_twenty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    details = ["/d/0.mp4 is cut\nmore", "its frames\nare damaged", "", *["gone"] * 20]
    named = [
        Failure(video=f"v{n}", path=f"/d/{n}.mp4", stage="open", reason="bad", detail=text)
        for n, text in enumerate(details)
    ]
    _warn_failures(named, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "warning: /d/0.mp4 is cut",
        "warning: v1: its frames",
        "warning: v2: bad",
        "warning: v3: gone",
    ]
    assert lines[20:] == [f"warning: and 3 more videos failed: {tmp_path}/failures.jsonl lists all"]
    _warn_failures(named[:20], tmp_path)
    assert len(capsys.readouterr().err.splitlines()) == 20


@pytest.mark.parametrize(
    "options", [("--weights", "hf:nowhere"), ("--set", "device=foo"), ("--index", "nowhere.jsonl")]
)
def test_a_start_that_fails_on_its_input_leaves_nothing(
    data_dir: Path, tmp_path: Path, options: tuple[str, str]
) -> None:
    done = command(data_dir, tmp_path / "s", *options)
    assert done.exit_code == 2, done.stderr
    assert not (tmp_path / "s").exists()


def test_the_log_names_every_key(data_dir: Path, tmp_path: Path) -> None:
    assert (
        command(data_dir, tmp_path / "s", "--weights", "tiny", "--set", "products=[text]").exit_code
        == 0
    )
    assert "shipped text weights: loaded roberta." in (tmp_path / "s" / "log.txt").read_text()


def test_the_dry_run_writes_nothing(data_dir: Path, tmp_path: Path) -> None:
    done = command(data_dir, tmp_path / "s", "--dry-run")
    assert done.exit_code == 0
    assert "4 videos; to make: 3 shards of 4 videos, 0.0022 hours, about" in done.stdout
    assert "nothing was written" in done.stdout
    assert not (tmp_path / "s").exists()


def test_the_command_verifies(data_dir: Path, tmp_path: Path) -> None:
    command(data_dir, tmp_path / "s")
    assert command(data_dir, tmp_path / "s", "--verify").exit_code == 0
    shard = next((tmp_path / "s" / "text").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert command(data_dir, tmp_path / "s", "--verify").exit_code == 1


def test_weights_of_one_source_and_per_product_are_not_mixed(
    data_dir: Path, tmp_path: Path
) -> None:
    done = command(
        data_dir, tmp_path / "s", "--weights", "random:0", "--weights", "appearance=random:1"
    )
    assert done.exit_code == 2
    assert "mixes one source for all products with sources per product" in done.stderr
    assert (
        command(
            data_dir, tmp_path / "s", "--weights", "appearance=random:1", "--weights", "text=tiny"
        ).exit_code
        == 0
    )
    products = Store(tmp_path / "s").products
    assert [products[name].provenance["weights"] for name in ("appearance", "text")] == [
        "random:1",
        "tiny",
    ]
