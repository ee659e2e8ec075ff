"""The same bytes from one process, from workers on this machine and from a Dask cluster that loses
some of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.run import run_extraction
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Failure
from pipeline.store import Store
from tests.forked_commands import ForkedCommand, get_fork_server, wait_until

Extractions = Callable[..., Any]
PATIENCE = 60
QUICK = ("appearance",)
"""What takes workers the least to import."""


@dataclass
class Cluster:
    """A Dask scheduler and two workers, all in another folder than the test."""

    address: str
    workers: list[ForkedCommand]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder, output_path = tmp_path / "elsewhere", tmp_path / "cluster.txt"
    folder.mkdir()
    with ExitStack() as stack:

        def begin(role: str, *arguments: str) -> ForkedCommand:
            module = f"distributed.cli.dask_{role}"
            process = ForkedCommand(module, arguments, output_path, cwd=folder)
            stack.callback(process.kill)
            return process

        scheduler_options = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        begin("scheduler", *scheduler_options, "--scheduler-file", "file.json")
        wait_until((folder / "file.json").exists, PATIENCE)
        address = json.loads((folder / "file.json").read_text())["address"]
        worker_options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        yield Cluster(address, [begin("worker", address, *worker_options) for _ in range(2)])


def decoders(worker: ForkedCommand) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


def test_a_cluster_that_loses_a_worker(make_extraction: Extractions, cluster: Cluster) -> None:
    here = make_extraction("here", products=QUICK)
    assert here.run() == 0
    extraction = make_extraction("s", products=QUICK, workers=None, scheduler=cluster.address)
    process = extraction.start()
    wait_until(
        lambda: (decoders(cluster.workers[0]) and extraction.finished()) or not process.is_alive(),
        PATIENCE,
    )
    orphans = decoders(cluster.workers[0])
    assert process.is_alive(), extraction.said.read_text()
    cluster.workers[0].kill()
    process.join(PATIENCE)
    assert process.exitcode == 0, extraction.said.read_text()
    assert psutil.wait_procs(orphans, timeout=10)[1] == []
    assert extraction.files() == here.files()


DEADLY = """
import os, signal
from pipeline.extraction import shard_task
from pipeline.features import stream
class Deadly(stream.FeatureStream):
    def __init__(self, path, *rest):
        if path.stem == "v2":
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(path, *rest)
shard_task.FeatureStream = Deadly
"""
"""Run by each worker as it starts."""


def test_a_video_that_kills_its_workers_costs_no_other(
    make_extraction: Extractions, tmp_path: Path, small_data: Path
) -> None:
    """`v3` shares its shard; shards that were made, or waited, on a worker that died may be made
    again.
    """
    import dask
    import distributed  # noqa: F401 - its defaults are there before they are changed

    extraction, harm = make_extraction("s", products=QUICK, workers=1), tmp_path / "harm.py"
    harm.write_text(DEADLY)
    config = ExtractConfig.model_validate(extraction.settings)
    recorded: list[tuple[int, int]] = []
    get_fork_server()
    settings = {
        "distributed.worker.preload": [str(harm)],
        "distributed.worker.multiprocessing-method": "forkserver",
        "distributed.scheduler.allowed-failures": 0,
    }
    with dask.config.set(settings):
        report = run_extraction(
            small_data / "index.jsonl",
            small_data,
            "jsonl",
            extraction.store,
            config,
            lambda done, total: recorded.append((done, total)),
        )
    assert len(report.failures) == 1, report.failures
    (failure,) = report.failures
    assert (failure.video, failure.stage, failure.reason) == ("v2", "worker", "died")
    assert (
        f"{small_data}/v2.mp4: the worker process died each time this video was encoded"
        in failure.detail
    )
    assert list(read_jsonl(extraction.store / "failures.jsonl", Failure)) == report.failures
    held = [
        video
        for info in Store(extraction.store).products["appearance"].shards.values()
        for video in info.videos
    ]
    assert sorted(held) == [f"v{number}" for number in (0, 1, 3, 4, 5, 6, 7)]
    assert recorded[-1] == (8, 8)
    assert (
        run_extraction(
            small_data / "index.jsonl",
            small_data,
            "jsonl",
            extraction.store,
            config.model_copy(update={"workers": 0}),
        ).failures
        == []
    )
    assert sorted(Store(extraction.store).open("appearance").keys()) == [
        f"v{number}" for number in range(8)
    ]


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_give_the_same_bytes(
    make_extraction: Extractions, full_extraction: Any, workers: int
) -> None:
    extraction = make_extraction("s", workers=workers)
    assert extraction.run() == 0, extraction.said.read_text()
    assert extraction.files() == full_extraction.files()
