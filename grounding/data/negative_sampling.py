"""Sentences of which nothing in the video is true, for training: what is asked of many videos, or of a long one's windows, is true of few.

Of a sentence that is not true a network learns only that nothing answers it. Without, scores of two windows say little about which of them
shows the event: nothing that was learned from had a window without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from grounding.data.dataset import GroundingDataset
from grounding.data.sample import Sample
from grounding.data.text_mirroring import mirror_left_right
from grounding.structures.targets import Targets
from pipeline.records import Query

MAX_CANDIDATES = 16
"""Sentences that one is chosen from, at most."""
NUM_DRAWS = 4 * MAX_CANDIDATES
"""Queries that are drawn to find them."""


class NegativeSentenceSampler:
    """Gives this share of the samples another video's sentence: a function of seed, epoch and query, whatever the batches and processes.

    That sentence was written of another video and differs from all that were written of this one; that it is true here, too, is not
    known to be wrong, only rare. Of one to `MOST` that are drawn it is the one that shares the most words with the query's own: what
    is alike but for a colour or a movement is what scores must tell apart, and what has nothing in common is there as well. Where
    pictures may be `flipped`, what was written of this one is not asked with its left and right exchanged either.
    """

    def __init__(
        self,
        rate: float,
        seed: int,
        dataset: GroundingDataset,
        queries: Sequence[Query],
        allow_flip: bool = False,
    ) -> None:
        self.rate, self.seed, self.dataset, self.queries = rate, seed, dataset, queries
        self._video_sentences: dict[str, set[str]] = {}
        for query in queries:
            own = self._video_sentences.setdefault(query.video, set())
            own.add(query.text)
            if allow_flip and (told := mirror_left_right(query.text)):
                own.add(told)

    def __call__(
        self, sample: Sample, targets: Targets, epoch: int, query_index: int
    ) -> tuple[Sample, Targets]:
        """A sample and what is true of it, as they are in an epoch; `number` is the query's place among all."""
        random = np.random.default_rng([self.seed, epoch, 3, query_index])
        if random.random() >= self.rate:
            return sample, targets
        drawn = (
            self.queries[place] for place in random.integers(len(self.queries), size=NUM_DRAWS)
        )
        own = self._video_sentences[sample.query.video]
        foreign = list(
            islice(
                (query for query in drawn if query.text not in own),
                int(random.integers(1, MAX_CANDIDATES + 1)),
            )
        )
        if not foreign:  # where videos share most of their sentences
            return sample, targets
        words = set(sample.query.text.lower().split())
        nearest = max(foreign, key=lambda query: len(words & set(query.text.lower().split())))
        return replace(sample, text=self.dataset.text_features(nearest)), empty_targets(targets)


def empty_targets(targets: Targets) -> Targets:
    """What is true of a video and a sentence of something else: a span without length, and no frame, clip or box in it."""
    return replace(
        targets,
        **{
            name: torch.zeros_like(getattr(targets, name))
            for name in ("span", "box_mask", "frame_labels", "clip_labels", "clip_box_mask")
        },
    )
