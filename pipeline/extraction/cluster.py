"""Jobs on Dask: a cluster of processes on this machine, or a running scheduler. One task per shard.

Only the store records what is finished. A task may run twice; the first one to publish its shard
wins.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
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
"""Resources that a GPU task requests from workers of another scheduler.

Such workers are started with `dask worker … --resources GPU=1`.
"""
MALLOC_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
}
"""Environment that lets a worker keep the memory of freed tensors.

Getting the memory from the kernel again, page by page, costs a third of the time. Tasks run in a
thread, whose own arena would never keep large blocks, so there is one arena only.
"""
WORKERS_PER_GPU = 3
"""Processes that share one GPU, so that one encodes while another waits for its decoder."""
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DASK_LOGGING__DISTRIBUTED": "error",
    **MALLOC_ENVIRONMENT,
}
"""Environment of the workers on this machine."""
DASK_SETTINGS = {
    "distributed.logging.distributed": "error",
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # When a worker dies, each task assigned to it counts one death. Tasks therefore wait at the
    # scheduler, and a worker has only the task that it runs.
    "distributed.scheduler.worker-saturation": 1.0,
    # A dead worker is restarted. By default the cluster gives a worker up that does not return
    # within this time, even if it died again meanwhile.
    "distributed.deploy.lost-worker-timeout": "1000 days",
}
"""Dask's settings for a cluster on this machine."""


def run_jobs(
    jobs: Sequence[Job], config: ExtractConfig, on_video: VideoCallback
) -> Iterator[tuple[Job, JobResult]]:
    """Run jobs, and yield their results as they end.

    A job whose workers died, also in Dask's retries, is split. In the end each of its videos runs
    alone, and fails if its workers die again.

    Args:
        jobs: the jobs.
        config: section `extract`.
        on_video: called after each video.

    Yields:
        A job and its result. A split job is yielded with its finished videos, followed later by a
        job for each other video.

    Raises:
        InputError: no scheduler answers at the given address.
    """
    if config.workers == 0:
        for job in jobs:
            yield job, extract_shard(job, on_video)
        return

    # The topic belongs to this run alone: other runs may use the same scheduler.
    topic = f"stvg-extract-{uuid4().hex}"
    with _open_client(config) as client:
        from distributed import as_completed

        client.subscribe_topic(topic, lambda event: on_video(*event[1]))
        resources = GPU_RESOURCES if config.scheduler and runs_on_gpu(config) else None

        def submit(job: Job) -> Any:
            return client.submit(
                _extract_shard_on_worker,
                _make_paths_absolute(job),
                topic,
                pure=False,
                resources=resources,
            )

        jobs_by_future = {submit(job): job for job in jobs}
        single_video_jobs: list[Job] = []
        for future in as_completed(jobs_by_future):
            # The future is released here. Dask would compute a result that is still wanted again
            # if the worker with the result died.
            job = jobs_by_future.pop(future)
            result = _get_result(future)
            if result is None:
                shard_infos = existing_shards(job)
                job, unfinished_jobs = job.split_unfinished(shard_infos)
                single_video_jobs += unfinished_jobs
                result = (shard_infos, [])
            yield job, result

        # Single videos run one at a time: Dask blames a dead worker on all of its tasks.
        for job in single_video_jobs:
            result = _get_result(submit(job))
            if result is None:
                result = (existing_shards(job), [_build_worker_failure(job)])
            yield job, result


def _make_paths_absolute(job: Job) -> Job:
    """Return the job with absolute paths: workers of another scheduler have another directory."""
    if job.config.scheduler is None:
        return job

    weights = job.config.weights
    absolute_weights: str | dict[str, str]
    if isinstance(weights, str):
        absolute_weights = absolute_source(weights)
    else:
        absolute_weights = {product: absolute_source(source) for product, source in weights.items()}

    return replace(
        job,
        store=job.store.absolute(),
        paths={video: path.absolute() for video, path in job.paths.items()},
        config=job.config.model_copy(update={"weights": absolute_weights}),
    )


def _get_result(future: Any) -> JobResult | None:
    """Return the result of a job, or None if its workers died."""
    from distributed.scheduler import KilledWorker

    try:
        result: JobResult = future.result()
    except KilledWorker:
        return None
    return result


def _build_worker_failure(job: Job) -> Failure:
    """Return the failure of the only video of a job whose workers died."""
    (video,) = job.shard.videos
    subject = "its sentences were" if job.is_text else "this video was"
    detail = (
        f"{job.paths[video]}: the worker process died each time {subject} encoded: killed, or out "
        "of memory; run again with fewer --workers or a smaller batch"
    )
    return job.build_failure(video, VideoError("worker", "died", detail))


@contextmanager
def _open_client(config: ExtractConfig) -> Iterator[Any]:
    """Yield a client of the given scheduler, or of a cluster of processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    if config.scheduler:
        try:
            client = Client(config.scheduler)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers at {config.scheduler} ({error}): start one, "
                "or leave out --scheduler"
            ) from None
        with client:
            yield client
        return

    # Dask keeps the given dictionaries and may change them.
    dask.config.set(deepcopy(DASK_SETTINGS))
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
    """Return the number of workers: by default one per core, or several per GPU."""
    if config.workers:
        return config.workers
    num_cores = os.cpu_count() or 1
    if not runs_on_gpu(config):
        return num_cores

    import torch

    # A worker on a GPU has a decoder beside it, hence two cores per worker.
    return max(1, min(num_cores // 2, WORKERS_PER_GPU * torch.cuda.device_count()))


def _extract_shard_on_worker(job: Job, topic: str) -> JobResult:
    """Run a job in a worker process, and report its videos to the run's topic."""
    from distributed import get_worker

    if job.config.scheduler is None:
        _register_fast_exit()
    else:
        check_worker_environment(job)

    def report_video(video: str, is_text: bool) -> None:
        get_worker().log_event(topic, (video, is_text))

    return extract_shard(_assign_gpu(job, get_worker().name), report_video)


@cache
def _register_fast_exit() -> None:
    """Let this process end without unloading its libraries, which takes seconds.

    Exit handlers run in reverse order: decoders, which are registered later, are ended before.
    """
    atexit.register(os._exit, 0)


def _assign_gpu(job: Job, worker: object) -> Job:
    """Return the job on the GPU of a worker of a local cluster; workers are assigned in turn."""
    import torch

    num_gpus = torch.cuda.device_count()
    if job.config.device not in ("auto", "cuda") or not isinstance(worker, int) or num_gpus < 2:
        return job
    device = f"cuda:{worker % num_gpus}"
    return replace(job, config=job.config.model_copy(update={"device": device}))
