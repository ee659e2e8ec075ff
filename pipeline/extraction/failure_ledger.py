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
    """The failures that are current at any moment of a run: found by it, or known before and not yet tried again."""

    def __init__(
        self, writer: StoreWriter, store: Path, index: VideoIndex, jobs: Sequence[Job]
    ) -> None:
        self._writer = writer
        self._previous_failures = {failure.video: failure for failure in writer.read_failures()}
        self._new_failures: dict[str, Failure] = {}
        self._remaining_jobs: dict[str, int] = defaultdict(int)
        for job in jobs:
            for video in () if job.is_text else job.shard.videos:
                self._remaining_jobs[video] += 1
        made = [
            product.videos
            for name, product in Store(store).products.items()
            if name in VISUAL_PRODUCTS
        ]
        lacked = {
            video
            for video in self._previous_failures
            if video in index.paths and not all(video in videos for videos in made)
        }
        self._untried_videos = lacked - set(self._remaining_jobs)
        self.write()

    def record_job(self, job: Job, failures: Sequence[Failure]) -> None:
        """A job has ended, and these videos of it have failed."""
        for video in () if job.is_text else job.shard.videos:
            self._remaining_jobs[video] -= 1
        for failure in failures:
            before = self._previous_failures.get(failure.video)
            self._new_failures[failure.video] = failure.model_copy(
                update={"attempts": before.attempts + 1 if before else 1}
            )
        self.write()

    def write(self) -> list[Failure]:
        """Replace the ledger on disk; returns it, in the videos' order."""
        waiting = self._untried_videos | {
            video for video, left in self._remaining_jobs.items() if left
        }
        current = {
            video: failure for video, failure in self._previous_failures.items() if video in waiting
        } | self._new_failures
        self._writer.write_failures(current.values())
        return [current[video] for video in sorted(current)]
