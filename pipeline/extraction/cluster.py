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
from pipeline.extraction.provenance import check_worker_environment, runs_on_gpu
from pipeline.extraction.shard_task import JobResult, VideoCallback, existing_shards, extract_shard
from pipeline.records import Failure
from pipeline.weights.sources import absolute_source

GPU_RESOURCES = {"GPU": 1}
"""What a task that runs networks on a GPU asks of the workers of another scheduler: `dask worker … --resources GPU=1`."""
MALLOC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
}
"""A worker keeps the memory of tensors that are gone: to get it anew, page by page, costs a third of the time. Tasks run in
a thread, whose own arena would never keep large blocks: there is but one arena."""
WORKERS_PER_GPU = 3
"""Processes that share one GPU, so that one encodes while another waits for its decoder."""


def run_jobs(
    jobs: Sequence[Job], config: ExtractConfig, on_video: VideoCallback
) -> Iterator[tuple[Job, JobResult]]:
    """Run the jobs and yield each with its result as it ends; `count` is called after every video.

    A job whose workers died again and again, Dask's retries included, is taken apart: in the end each of its videos runs
    alone, and fails if its workers die then too.
    """
    if config.workers == 0:
        for job in jobs:
            yield job, extract_shard(job, on_video)
        return
    topic = f"stvg-extract-{uuid4().hex}"  # of this run alone: others may use the same scheduler
    with _open_client(config) as client:
        from distributed import as_completed

        client.subscribe_topic(topic, lambda event: on_video(*event[1]))
        needs = GPU_RESOURCES if config.scheduler and runs_on_gpu(config) else None

        def submit(job: Job) -> Any:
            return client.submit(
                _extract_shard_on_worker,
                _make_paths_absolute(job),
                topic,
                pure=False,
                resources=needs,
            )

        left, suspects = {submit(job): job for job in jobs}, list[Job]()
        for future in as_completed(left):
            job = left.pop(
                future
            )  # Dask computes a result again that is still wanted when the worker that holds it dies
            made = _get_result(future)
            if made is None:
                there = existing_shards(job)
                job, alone = job.split_unfinished(there)
                made = there, []
                suspects += alone
            yield job, made
        for job in suspects:  # one at a time: Dask blames all tasks that a dead worker had
            made = _get_result(submit(job))
            yield (
                job,
                made if made is not None else (existing_shards(job), [_build_worker_failure(job)]),
            )


def _make_paths_absolute(job: Job) -> Job:
    """The job with absolute paths: workers of another scheduler run in another folder."""
    if job.config.scheduler is None:
        return job
    weights = job.config.weights
    absolute = (
        absolute_source(weights)
        if isinstance(weights, str)
        else {product: absolute_source(source) for product, source in weights.items()}
    )
    config = job.config.model_copy(update={"weights": absolute})
    return replace(
        job,
        store=job.store.absolute(),
        paths={video: path.absolute() for video, path in job.paths.items()},
        config=config,
    )


def _get_result(future: Any) -> JobResult | None:
    """What a job gave; None where its workers died."""
    from distributed.scheduler import KilledWorker

    try:
        made: JobResult = future.result()
    except KilledWorker:
        return None
    return made


def _build_worker_failure(job: Job) -> Failure:
    (video,) = job.shard.videos
    what = "its sentences were" if job.is_text else "this video was"
    detail = (
        f"{job.paths[video]}: the worker process died each time {what} encoded: killed, or out of memory; "
        "run again with fewer --workers or a smaller batch"
    )
    return job.build_failure(video, VideoError("worker", "died", detail))


@contextmanager
def _open_client(config: ExtractConfig) -> Iterator[Any]:
    """A client of the named scheduler, or of a cluster of processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    if config.scheduler:
        try:
            client = Client(config.scheduler)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {config.scheduler} ({error}): start one, or leave out --scheduler"
            ) from None
        with client:
            yield client
        return
    environment = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "DASK_LOGGING__DISTRIBUTED": "error",
        **MALLOC_ENVIRONMENT,
    }
    dask.config.set(
        {
            "distributed.logging.distributed": "error",
            "distributed.nanny.pre-spawn-environ": environment,
        }
    )
    # A shard that waits on a worker counts among those that killed it: let them wait at the scheduler.
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    # The cluster gives a worker up that is away this long after a death, though it be away for another death: never.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"})
    with (
        LocalCluster(
            n_workers=_count_workers(config),
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _count_workers(config: ExtractConfig) -> int:
    """How many workers: by default one per core, which each computes on, or a few per GPU."""
    cores = os.cpu_count() or 1
    if runs_on_gpu(config):
        import torch

        return config.workers or max(
            1, min(cores // 2, WORKERS_PER_GPU * torch.cuda.device_count())
        )
    return config.workers or cores


def _extract_shard_on_worker(job: Job, topic: str) -> JobResult:
    from distributed import get_worker

    if job.config.scheduler is None:
        _register_fast_exit()
    else:
        check_worker_environment(job)
    return extract_shard(
        _assign_gpu(job, get_worker().name),
        lambda video, text: get_worker().log_event(topic, (video, text)),
    )


@cache
def _register_fast_exit() -> None:
    """Let this process end without taking its libraries apart, which costs seconds; decoders, registered later, are ended before."""
    atexit.register(os._exit, 0)


def _assign_gpu(job: Job, worker: object) -> Job:
    """The job on the GPU that this worker of a local cluster shares; several GPUs are dealt out by the worker's number."""
    import torch

    if (
        job.config.device not in ("auto", "cuda")
        or not isinstance(worker, int)
        or torch.cuda.device_count() < 2
    ):
        return job
    return replace(
        job,
        config=job.config.model_copy(
            update={"device": f"cuda:{worker % torch.cuda.device_count()}"}
        ),
    )
