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

from grounding.data.dataset import FeatureSet
from grounding.data.sample import Sample
from grounding.data.text_mirroring import mirrored
from grounding.structures.targets import Targets
from pipeline.records import Query

MOST = 16
"""Sentences that one is chosen from, at most."""
TRIES = 4 * MOST
"""Queries that are drawn to find them."""


class Absence:
    """Gives this share of the samples another video's sentence: a function of seed, epoch and query, whatever the batches and processes.

    That sentence was written of another video and differs from all that were written of this one; that it is true here, too, is not
    known to be wrong, only rare. Of one to `MOST` that are drawn it is the one that shares the most words with the query's own: what
    is alike but for a colour or a movement is what scores must tell apart, and what has nothing in common is there as well. Where
    pictures may be `flipped`, what was written of this one is not asked with its left and right exchanged either.
    """

    def __init__(self, share: float, seed: int, features: FeatureSet, queries: Sequence[Query], flipped: bool = False) -> None:
        self.share, self.seed, self.features, self.queries = share, seed, features, queries
        self._own: dict[str, set[str]] = {}
        for query in queries:
            own = self._own.setdefault(query.video, set())
            own.add(query.text)
            if flipped and (told := mirrored(query.text)):
                own.add(told)

    def __call__(self, sample: Sample, truth: Targets, epoch: int, number: int) -> tuple[Sample, Targets]:
        """A sample and what is true of it, as they are in an epoch; `number` is the query's place among all."""
        random = np.random.default_rng([self.seed, epoch, 3, number])
        if random.random() >= self.share:
            return sample, truth
        drawn = (self.queries[place] for place in random.integers(len(self.queries), size=TRIES))
        own = self._own[sample.query.video]
        foreign = list(islice((query for query in drawn if query.text not in own), int(random.integers(1, MOST + 1))))
        if not foreign:  # where videos share most of their sentences
            return sample, truth
        words = set(sample.query.text.lower().split())
        nearest = max(foreign, key=lambda query: len(words & set(query.text.lower().split())))
        return replace(sample, text=self.features.words(nearest)), nothing(truth)


def nothing(truth: Targets) -> Targets:
    """What is true of a video and a sentence of something else: a span without length, and no frame, clip or box in it."""
    return replace(truth, **{name: torch.zeros_like(getattr(truth, name)) for name in ("span", "boxed", "frames", "clips", "clip_boxed")})
