"""The ledger of failed videos, `failures.jsonl`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.extraction.plan import Job, VideoIndex
from pipeline.features.products import VISUAL_PRODUCTS
from pipeline.records import Failure
from pipeline.store import Store, StoreWriter


class FailureLedger:
    """The current failures at any moment of a run.

    A failure is current if this run found it, or if an earlier run found it and the video was not
    tried again yet.

    Args:
        writer: writer of the store.
        store: directory of the store.
        index: the index.
        jobs: the jobs of this run.
    """

    def __init__(
        self, writer: StoreWriter, store: Path, index: VideoIndex, jobs: Sequence[Job]
    ) -> None:
        self._writer = writer
        self._previous_failures = {failure.video: failure for failure in writer.read_failures()}
        self._new_failures: dict[str, Failure] = {}

        # Number of unfinished jobs by video. Sentences are encoded without the video.
        self._remaining_jobs: dict[str, int] = defaultdict(int)
        for job in jobs:
            for video in _get_decoded_videos(job):
                self._remaining_jobs[video] += 1

        # Videos that this run does not try, though a product of the store lacks them.
        stored_videos = [
            product.videos
            for name, product in Store(store).products.items()
            if name in VISUAL_PRODUCTS
        ]
        self._untried_videos = set()
        for video in self._previous_failures:
            is_stored = all(video in videos for videos in stored_videos)
            if video in index.paths and not is_stored and video not in self._remaining_jobs:
                self._untried_videos.add(video)
        self.write()

    def record_job(self, job: Job, failures: Sequence[Failure]) -> None:
        """Record the end of a job, and write the ledger.

        Args:
            job: the job.
            failures: the videos of the job that failed.
        """
        for video in _get_decoded_videos(job):
            self._remaining_jobs[video] -= 1
        for failure in failures:
            previous = self._previous_failures.get(failure.video)
            attempts = previous.attempts + 1 if previous else 1
            self._new_failures[failure.video] = failure.model_copy(update={"attempts": attempts})
        self.write()

    def write(self) -> list[Failure]:
        """Replace the ledger on disk.

        Returns:
            The current failures, sorted by video.
        """
        pending_videos = set(self._untried_videos)
        for video, num_jobs in self._remaining_jobs.items():
            if num_jobs:
                pending_videos.add(video)

        current = {
            video: failure
            for video, failure in self._previous_failures.items()
            if video in pending_videos
        }
        current |= self._new_failures
        self._writer.write_failures(current.values())
        return [current[video] for video in sorted(current)]


def _get_decoded_videos(job: Job) -> tuple[str, ...]:
    """Return the videos that a job decodes: none if it encodes sentences."""
    return () if job.is_text else job.shard.videos
