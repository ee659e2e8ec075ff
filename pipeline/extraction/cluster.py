"""Jobs on Dask: a cluster of processes on this machine, or a scheduler that is there already. A task is one shard.

Only the store remembers what is done: a task may run twice, and the first one to publish its shard wins.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from uuid import uuid4

from pipeline.errors import InputError, VideoError
from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.plan import Job
from pipeline.extraction.provenance import refuse_unlike_worker, runs_on_gpu
from pipeline.extraction.shard_task import Made, Tick, make_shard, shards_there
from pipeline.records import Failure
from pipeline.weights.sources import located

GPU = {"GPU": 1}
"""What a task that runs networks on a GPU asks of the workers of another scheduler: `dask worker … --resources GPU=1`."""
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
"""A worker keeps the memory of tensors that are gone: to get it anew, page by page, costs a third of the time. Tasks run in
a thread, whose own arena would never keep large blocks: there is but one arena."""
WORKERS_PER_GPU = 3
"""Processes that share one GPU, so that one encodes while another waits for its decoder."""


def work(jobs: Sequence[Job], config: ExtractConfig, count: Tick) -> Iterator[tuple[Job, Made]]:
    """Run the jobs and yield each with its result as it ends; `count` is called after every video.

    A job whose workers died again and again, Dask's retries included, is taken apart: in the end each of its videos runs
    alone, and fails if its workers die then too.
    """
    if config.workers == 0:
        for job in jobs:
            yield job, make_shard(job, count)
        return
    topic = f"stvg-extract-{uuid4().hex}"  # of this run alone: others may use the same scheduler
    with _client(config) as client:
        from distributed import as_completed

        client.subscribe_topic(topic, lambda event: count(*event[1]))
        needs = GPU if config.scheduler and runs_on_gpu(config) else None

        def submit(job: Job) -> Any:
            return client.submit(_make_shard_on_worker, _located(job), topic, pure=False, resources=needs)

        left, suspects = {submit(job): job for job in jobs}, list[Job]()
        for future in as_completed(left):
            job = left.pop(future)  # Dask computes a result again that is still wanted when the worker that holds it dies
            made = _result(future)
            if made is None:
                there = shards_there(job)
                job, alone = job.taken_apart(there)
                made = there, []
                suspects += alone
            yield job, made
        for job in suspects:  # one at a time: Dask blames all tasks that a dead worker had
            made = _result(submit(job))
            yield job, made if made is not None else (shards_there(job), [_died(job)])


def _located(job: Job) -> Job:
    """The job with absolute paths: workers of another scheduler run in another folder."""
    if job.config.scheduler is None:
        return job
    weights = job.config.weights
    absolute = located(weights) if isinstance(weights, str) else {product: located(source) for product, source in weights.items()}
    config = job.config.model_copy(update={"weights": absolute})
    return replace(job, store=job.store.absolute(), paths={video: path.absolute() for video, path in job.paths.items()}, config=config)


def _result(future: Any) -> Made | None:
    """What a job gave; None where its workers died."""
    from distributed.scheduler import KilledWorker

    try:
        made: Made = future.result()
    except KilledWorker:
        return None
    return made


def _died(job: Job) -> Failure:
    (video,) = job.shard.videos
    what = "its sentences were" if job.of_text else "this video was"
    detail = (
        f"{job.paths[video]}: the worker process died each time {what} encoded: killed, or out of memory; "
        "run again with fewer --workers or a smaller batch"
    )
    return job.failure(video, VideoError("worker", "died", detail))


@contextmanager
def _client(config: ExtractConfig) -> Iterator[Any]:
    """A client of the named scheduler, or of a cluster of processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    if config.scheduler:
        try:
            client = Client(config.scheduler)
        except (OSError, ValueError) as error:
            raise InputError(f"no Dask scheduler answers at {config.scheduler} ({error}): start one, or leave out --scheduler") from None
        with client:
            yield client
        return
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "error", **MEMORY}
    dask.config.set({"distributed.logging.distributed": "error", "distributed.nanny.pre-spawn-environ": environment})
    # A shard that waits on a worker counts among those that killed it: let them wait at the scheduler.
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    # The cluster gives a worker up that is away this long after a death, though it be away for another death: never.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"})
    with (
        LocalCluster(n_workers=_processes(config), threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _processes(config: ExtractConfig) -> int:
    """How many workers: by default one per core, which each computes on, or a few per GPU."""
    cores = os.cpu_count() or 1
    if runs_on_gpu(config):
        import torch

        return config.workers or max(1, min(cores // 2, WORKERS_PER_GPU * torch.cuda.device_count()))
    return config.workers or cores


def _make_shard_on_worker(job: Job, topic: str) -> Made:
    from distributed import get_worker

    if job.config.scheduler is None:
        _end_at_once()
    else:
        refuse_unlike_worker(job)
    return make_shard(_on_own_gpu(job, get_worker().name), lambda video, text: get_worker().log_event(topic, (video, text)))


@cache
def _end_at_once() -> None:
    """Let this process end without taking its libraries apart, which costs seconds; decoders, registered later, are ended before."""
    atexit.register(os._exit, 0)


def _on_own_gpu(job: Job, worker: object) -> Job:
    """The job on the GPU that this worker of a local cluster shares; several GPUs are dealt out by the worker's number."""
    import torch

    if job.config.device not in ("auto", "cuda") or not isinstance(worker, int) or torch.cuda.device_count() < 2:
        return job
    return replace(job, config=job.config.model_copy(update={"device": f"cuda:{worker % torch.cuda.device_count()}"}))
