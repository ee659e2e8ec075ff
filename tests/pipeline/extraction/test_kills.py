"""Runs that are killed, stopped or starved at any moment, and videos that harm their decoder: the
store ends the same.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.run import run_extraction
from pipeline.io.jsonl import read_jsonl, write_jsonl
from pipeline.records import Failure, Query
from pipeline.store import Store
from pipeline.tracks import Tracks
from pipeline.video import process_decoder as child_module
from pipeline.video.process_decoder import ProcessDecoder

Extractions = Callable[..., Any]
PATIENCE = 120


def until(true: Callable[[], object], process: Any) -> None:
    """Wait for something, or for the end of the run."""
    end = time.monotonic() + PATIENCE
    while not true() and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.002)


def nothing_left(one: Any) -> None:
    """All that a dead run began must be dead too, or die now."""
    left = psutil.wait_procs(one.descendants(), timeout=10)[1]
    assert left == [], f"left behind: {left}"


def kill(process: Any) -> bool:
    """Whether it died of that."""
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


def works(decoder: psutil.Process) -> bool:
    """Whether its start is behind it: it is silent from then on, and dies with its parent even if
    something stops it.
    """
    try:
        return Path(f"/proc/{decoder.pid}/fd/2").readlink() == Path(os.devnull)
    except OSError:
        return False


def at_work(one: Any) -> list[psutil.Process]:
    """The decoders that answer requests."""
    return [decoder for decoder in one.decoders() if works(decoder)]


def leftovers(one: Any) -> list[Path]:
    return [path for path in one.store.rglob("*") if ".part" in path.name]


def workers(one: Any) -> list[psutil.Process]:
    """The Dask workers of a run."""
    return list(one.running("spawn_main"))


@pytest.fixture(scope="module")
def extraction_seconds(
    small_data: Path, full_extraction: Any, tmp_path_factory: pytest.TempPathFactory
) -> float:
    """How long an extraction takes."""
    began = time.monotonic()
    assert type(full_extraction)(small_data, tmp_path_factory.mktemp("timed") / "s").run() == 0
    return time.monotonic() - began


@pytest.mark.parametrize(("seed", "wanted"), [(0, 4), pytest.param(1, 40, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_the_same(
    make_extraction: Extractions,
    full_extraction: Any,
    extraction_seconds: float,
    seed: int,
    wanted: int,
) -> None:
    """Also while its decoder is stopped. No finished shard is made again."""
    random = np.random.default_rng(seed)
    kills, stores = 0, 0
    while kills < wanted:
        extraction, finished, code = make_extraction(f"s{stores}"), {}, None
        while code != 0:
            process = extraction.start()
            process.join(float(random.uniform(0, extraction_seconds)) if kills < wanted else None)
            for decoder in at_work(extraction) if random.random() < 0.5 else []:
                decoder.suspend()
            kills += kill(process)
            nothing_left(extraction)
            code = process.exitcode
            assert code in (0, -signal.SIGKILL), extraction.said.read_text()
            assert finished.items() <= extraction.finished().items()
            finished = extraction.finished()
        assert extraction.files() == full_extraction.files()
        assert leftovers(extraction) == []
        stores += 1


@pytest.mark.parametrize(("seed", "wanted"), [(0, 1), pytest.param(1, 24, marks=pytest.mark.soak)])
def test_killed_with_its_workers(make_extraction: Extractions, seed: int, wanted: int) -> None:
    """Two workers: now and then one of them is killed, then the first process, some time after the
    first decoder began.
    """
    random, here = np.random.default_rng(seed), make_extraction("here", products=("appearance",))
    assert here.run() == 0
    kills, stores = 0, 0
    while kills < wanted:
        extraction, finished, code = (
            make_extraction(f"s{stores}", products=("appearance",), workers=2),
            {},
            None,
        )
        while code != 0:
            process = extraction.start(workers=2 if kills < wanted else 0)
            if kills < wanted:
                until(extraction.decoders, process)
                process.join(float(random.uniform(0, 1)))
                victims = workers(extraction)
                if kills % 3 == 1 and process.is_alive() and victims:
                    victims[int(random.integers(len(victims)))].kill()
                    kills += 1
                    process.join(float(random.uniform(0, 3)))
                if kills < wanted:
                    kills += kill(process)
                    nothing_left(extraction)
            process.join()
            code = process.exitcode
            assert code in (0, -signal.SIGKILL), extraction.said.read_text()
            assert finished.items() <= extraction.finished().items()
            finished = extraction.finished()
        assert extraction.files() == here.files()
        assert leftovers(extraction) == []
        stores += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("count", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_stopped_by_a_signal_it_keeps_what_is_finished(
    make_extraction: Extractions, full_extraction: Any, number: int, count: int
) -> None:
    """Ctrl-C reaches the workers too."""
    extraction = make_extraction("s", workers=count)
    process = extraction.start()
    until(extraction.finished, process)
    finished = extraction.finished()
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    process.join(PATIENCE)
    assert process.exitcode == 128 + number, extraction.said.read_text()
    assert "stopped; run the same command again to go on" in extraction.said.read_text()
    assert count or "Traceback" not in extraction.said.read_text()
    nothing_left(extraction)
    assert Store(extraction.store).verify() == []
    assert count or leftovers(extraction) == []
    finished = {
        path: recorded
        for path, recorded in extraction.finished().items()
        if path in finished or count == 0
    }
    assert finished
    assert extraction.run(workers=0) == 0
    assert finished.items() <= extraction.finished().items()
    assert extraction.files() == full_extraction.files()


def test_a_second_run_is_refused_until_the_first_is_dead(
    make_extraction: Extractions, full_extraction: Any
) -> None:
    extraction = make_extraction("s")
    process = extraction.start()
    until(extraction.finished, process)
    os.kill(process.pid, signal.SIGSTOP)
    assert extraction.run() == 2
    said = extraction.said.read_text()
    assert f"error: store {extraction.store} is in use by pid {process.pid} on " in said
    assert f"(stvg-extract --dataset jsonl --root {extraction.data}/own.jsonl" in said
    assert "): wait until it ends, or stop it" in said
    assert kill(process)
    assert extraction.run() == 0, extraction.said.read_text()
    assert extraction.files() == full_extraction.files()


@pytest.mark.parametrize(("seed", "wanted"), [(0, 2), pytest.param(1, 20, marks=pytest.mark.soak)])
def test_a_decoder_killed_from_outside_costs_one_video(
    make_extraction: Extractions, full_extraction: Any, seed: int, wanted: int
) -> None:
    random = np.random.default_rng(seed)
    kills, stores = 0, 0
    while kills < wanted:
        extraction = make_extraction(f"s{stores}")
        process = extraction.start()
        until(lambda: at_work(extraction), process)  # noqa: B023
        process.join(float(random.uniform(0, 0.7)))
        for decoder in at_work(extraction):
            decoder.kill()
            kills += 1
        process.join()
        failed = {
            failure.video: failure.reason
            for failure in read_jsonl(extraction.store / "failures.jsonl", Failure)
        }
        assert (process.exitcode, set(failed.values())) in ((0, set()), (1, {"crashed"})), (
            extraction.said.read_text()
        )
        assert len(failed) <= 1
        assert extraction.run() == 0
        for product in ("appearance", "motion", "text"):
            result, good = (
                Store(path).open(product) for path in (extraction.store, full_extraction.store)
            )
            keys = sorted(good.keys())
            assert sorted(result.keys()) == keys
            for key in keys:
                assert np.array_equal(result.read(key), good.read(key))
        assert leftovers(extraction) == []
        stores += 1


HARM = """
import ctypes, os
from pipeline.video import frames, worker
whole = frames._convert_to_rgb
def upright(frame, facts):
    if frame.pts and facts.path.name == "v2.avi":
        ctypes.PyDLL(None).sleep(1000)
    if frame.pts and facts.path.name == "v5.avi":
        ctypes.string_at(0)
    return whole(frame, facts)
frames._convert_to_rgb = upright
worker.main()
"""


@pytest.fixture
def impatient_decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A decoder that is given up after a second."""
    with ProcessDecoder(frame_timeout=1, probe_timeout=5) as child:
        monkeypatch.setattr("pipeline.extraction.shard_task.shared_decoder", lambda: child)
        yield


@pytest.fixture
def harmed_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders begun from now on hang in `v2.avi`, holding the interpreter's lock, and crash in
    `v5.avi`.
    """
    monkeypatch.setattr(child_module, "WORKER_COMMAND", ("-c", HARM))


def index_of(folder: Path, paths: list[Path]) -> Path:
    """An index of one sentence about each video, as in `small_data`."""
    common = {
        "fps": 25,
        "frame_count": 50,
        "size": (128, 48),
        "segment": (0, 30),
        "split": "test",
        "text": "what is there?",
    }
    write_jsonl(
        folder / "index.jsonl",
        [Query(id=f"{path.stem}-0", video=path.stem, path=path.name, **common) for path in paths],
    )
    Tracks().save(folder / "tracks.npz")
    return folder / "index.jsonl"


@pytest.mark.usefixtures("one_thread", "harmed_decoders", "impatient_decoder")
def test_a_decoder_that_hangs_or_crashes_takes_no_other_video_along(
    make_extraction: Extractions, tmp_path: Path, make_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, extraction = tmp_path / "data", make_extraction("s", tmp_path / "data")
    data.mkdir()
    videos = [
        make_video(data / f"v{number}.avi", 30, codec="mpeg4", first=20 * number)
        for number in range(8)
    ]
    index = index_of(data, videos)
    config = ExtractConfig.model_validate(
        extraction.settings | {"products": ("appearance", "motion"), "shard_mb": 2}
    )
    report = run_extraction(index, data, "jsonl", extraction.store, config)
    assert {failure.video: failure.reason for failure in report.failures} == {
        "v2": "hung",
        "v5": "crashed",
    }
    assert report.failures == list(read_jsonl(extraction.store / "failures.jsonl", Failure))
    assert "SIGSEGV" in report.failures[1].detail
    held = {
        video
        for info in Store(extraction.store).products["motion"].shards.values()
        for video in info.videos
    }
    assert held == {f"v{number}" for number in (0, 1, 3, 4, 6, 7)}
    monkeypatch.undo()
    fewer = index_of(data, [video for video in videos if video.stem in held])
    run_extraction(fewer, data, "jsonl", tmp_path / "fewer", config)
    for product in ("appearance", "motion"):
        result, good = (
            Store(path).open(product) for path in (extraction.store, tmp_path / "fewer")
        )
        assert all(np.array_equal(result.read(video), good.read(video)) for video in held)
    assert (
        run_extraction(index_of(data, videos), data, "jsonl", extraction.store, config).failures
        == []
    )


ON_SMALL_DISK = """
import shutil, subprocess, sys
from pathlib import Path
from cli.extract import app
disk, size, *arguments = sys.argv[1:]
def mounted(options):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]).returncode == 0
def extract():
    try:
        app(arguments)
    except SystemExit as end:
        return end.code
if not mounted(f"size={size}k"):
    sys.exit(77)
store = Path(disk, "store")
first = extract()
if store.exists():
    shutil.copytree(store, Path(disk).with_name("first"), copy_function=shutil.copy2)
mounted("remount,size=64m")
second = extract()
shutil.copytree(store, Path(disk).with_name("second"), copy_function=shutil.copy2)
print("codes", first, second)
"""


@pytest.mark.parametrize(
    "size",
    [
        1200,
        *(
            pytest.param(size, marks=pytest.mark.soak)
            for size in (4, 16, 40, 64, 100, 400, 800, 1600)
        ),
    ],
)
@pytest.mark.parametrize("count", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_disk_that_runs_full(
    make_extraction: Extractions, small_data: Path, tmp_path: Path, size: int, count: int
) -> None:
    """On a file system of a few KiB, which grows before the second run."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    here = make_extraction("here", products=("appearance", "motion"))
    assert here.run() == 0
    disk, config = tmp_path / "disk", tmp_path / "config.json"
    disk.mkdir()
    config.write_text(json.dumps({"extract": here.settings | {"workers": count}}))
    paths = {
        "root": small_data / "own.jsonl",
        "index": small_data / "index.jsonl",
        "store": disk / "store",
        "config": config,
    }
    arguments = [
        "--dataset",
        "jsonl",
        *(str(text) for name, path in paths.items() for text in (f"--{name}", path)),
    ]
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        ON_SMALL_DISK,
        str(disk),
        str(size),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr.split(":")[0]:
        pytest.skip("this machine lets no user mount a file system of his own")
    assert "codes 2 0" in done.stdout, done.stdout + done.stderr
    assert f"error: the disk of {disk}/store" in done.stderr
    assert "is full (" in done.stderr
    assert "Make room and run stvg-extract again: it goes on from there" in done.stderr
    assert count or "Traceback" not in done.stderr
    first, second = make_extraction("first"), make_extraction("second")
    assert size < 1000 or first.finished()
    assert {
        path.relative_to(first.store): recorded[1] for path, recorded in first.finished().items()
    }.items() <= {
        path.relative_to(second.store): recorded[1] for path, recorded in second.finished().items()
    }.items()
    assert leftovers(second) == []
    assert second.files() == here.files()


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A file with bytes changed, a block emptied, or its end cut off."""
    data, kind = bytearray(content), int(random.integers(3))
    begin = int(random.integers(len(data)))
    if kind == 0:
        for place in random.integers(0, len(data), int(random.integers(1, 50))):
            data[place] = int(random.integers(256))
    elif kind == 1:
        end = min(len(data), begin + int(random.integers(1, 500)))
        data[begin:end] = bytes(end - begin)
    else:
        del data[begin:]
    return bytes(data)


@pytest.mark.usefixtures("one_thread", "impatient_decoder")
@pytest.mark.parametrize("count", [16, pytest.param(500, marks=pytest.mark.soak)])
def test_each_mutant_is_in_the_store_or_in_the_ledger(
    make_extraction: Extractions, tmp_path: Path, make_video: Any, count: int
) -> None:
    data, extraction = (
        tmp_path / "data",
        make_extraction("s", tmp_path / "data", products=("appearance", "motion")),
    )
    data.mkdir()
    kinds = [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
        ("webm", "libvpx-vp9"),
        ("mpg", "mpeg2video"),
    ]
    contents = {
        suffix: make_video(data / f"sane.{suffix}", 30, codec=codec).read_bytes()
        for suffix, codec in kinds
    }
    random, paths = np.random.default_rng(0), [data / "sane.mp4"]
    for number in range(count):
        suffix = kinds[number % len(kinds)][0]
        paths.append(data / f"m{number:03d}.{suffix}")
        paths[-1].write_bytes(mutated(contents[suffix], random))
    report = run_extraction(
        index_of(data, paths),
        data,
        "jsonl",
        extraction.store,
        ExtractConfig.model_validate(extraction.settings),
    )
    failed = [failure.video for failure in report.failures]
    for product in ("appearance", "motion"):
        assert sorted([*failed, *Store(extraction.store).open(product).keys()]) == sorted(
            path.stem for path in paths
        )
    assert Store(extraction.store).verify() == []
    assert "sane" not in failed
    assert count // 8 < len(failed) < count, Counter(failure.reason for failure in report.failures)
