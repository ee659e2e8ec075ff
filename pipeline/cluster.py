"""Jobs on Dask: a cluster of processes on this machine, or a scheduler that is there already. A task is one shard.

Only the store remembers what is done: a task may run twice, and the first one to publish its shard wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipeline.errors import InputError
from pipeline.jobs import ExtractConfig, Job
from pipeline.records import Failure
from pipeline.shards import Made, make_shard
from pipeline.weights import device_of, located

PROGRESS_TOPIC = "videos"
GPU = {"GPU": 1}
"""What a worker offers, and a task that runs networks on a GPU asks for: `dask worker … --resources GPU=1`."""
WORKERS_PER_GPU = 3
"""Processes that share one GPU, so that one encodes while another waits for its decoder."""


def work(jobs: Sequence[Job], config: ExtractConfig, count: Callable[[], None]) -> Iterator[tuple[Job, Made]]:
    """Run the jobs and yield each with its result as it ends; `count` is called after every video."""
    if config.workers == 0:
        for job in jobs:
            yield job, make_shard(job, count)
        return
    on_gpu = config.device.startswith("cuda") or (config.scheduler is None and device_of(config.device).type == "cuda")
    with _client(config, on_gpu) as client:
        from distributed import as_completed

        client.subscribe_topic(PROGRESS_TOPIC, lambda event: count())
        needs = GPU if on_gpu else None
        futures = {client.submit(_make_shard_on_worker, _located(job), pure=False, resources=needs): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], _result(future, futures[future])


def _located(job: Job) -> Job:
    """The job with absolute paths: workers of another scheduler run in another folder."""
    if job.config.scheduler is None:
        return job
    weights = job.config.weights
    absolute = located(weights) if isinstance(weights, str) else {product: located(source) for product, source in weights.items()}
    config = job.config.model_copy(update={"weights": absolute})
    return replace(job, store=job.store.absolute(), paths={video: path.absolute() for video, path in job.paths.items()}, config=config)


def _result(future: Any, job: Job) -> Made:
    """What a job gave. A job whose workers died again and again, Dask's retries included, fails with all its videos."""
    from distributed.scheduler import KilledWorker

    try:
        made: Made = future.result()
    except KilledWorker:
        detail = (
            f"the worker process died each time shard {job.shard.name} ({len(job.shard.videos)} videos) was made: "
            "killed, or out of memory; run again with fewer --workers or a smaller batch"
        )
        return {}, [Failure(video=v, path=str(job.paths[v]), stage="worker", reason="died", detail=detail) for v in job.shard.videos]
    return made


@contextmanager
def _client(config: ExtractConfig, on_gpu: bool) -> Iterator[Any]:
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
    # Dask's own default trims the heap after every free, which costs a third of the time where tensors come and go.
    memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "error", **memory}
    dask.config.set({"distributed.logging.distributed": "error", "distributed.nanny.pre-spawn-environ": environment})
    resources = GPU if on_gpu else {}
    with (
        LocalCluster(
            n_workers=_processes(config, on_gpu), threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0, resources=resources
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _processes(config: ExtractConfig, on_gpu: bool) -> int:
    """How many workers: by default one per core, which each computes on, or a few per GPU."""
    cores = os.cpu_count() or 1
    if on_gpu:
        import torch

        return config.workers or max(1, min(cores // 2, WORKERS_PER_GPU * torch.cuda.device_count()))
    return config.workers or cores


def _make_shard_on_worker(job: Job) -> Made:
    from distributed import get_worker

    return make_shard(_on_own_gpu(job, get_worker().name), lambda: get_worker().log_event(PROGRESS_TOPIC, 1))


def _on_own_gpu(job: Job, worker: object) -> Job:
    """The job on the GPU that this worker of a local cluster shares; several GPUs are dealt out by the worker's number."""
    import torch

    if job.config.device not in ("auto", "cuda") or not isinstance(worker, int) or torch.cuda.device_count() < 2:
        return job
    return replace(job, config=job.config.model_copy(update={"device": f"cuda:{worker % torch.cuda.device_count()}"}))
