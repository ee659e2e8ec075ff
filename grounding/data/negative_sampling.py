"""Negative queries for training: videos paired with a sentence of another video.

At test time most videos, and most windows of a long video, do not contain the event. For a negative
pair the target is an empty span. Without negatives, scores of different windows are not comparable:
every training window contained its event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from grounding.data.dataset import GroundingDataset
from grounding.data.sample import Sample
from grounding.data.text_mirroring import mirror_left_right
from grounding.structures.targets import Targets
from pipeline.records import Query

MAX_CANDIDATES = 16
"""Largest number of sentences that a negative is chosen from."""
NUM_DRAWS = 4 * MAX_CANDIDATES
"""Queries drawn to find the candidates."""


class NegativeSentenceSampler:
    """Replaces the sentence of some samples: a function of seed, epoch and query alone.

    A candidate belongs to another video and differs from all sentences of this video. It may still
    be true here, but rarely is. Of 1 to `MAX_CANDIDATES` drawn candidates, the negative is the one
    that shares most words with the query's own sentence. So negatives are hard, where only a color
    or a movement differs, and easy, where nothing agrees.

    Args:
        rate: Fraction of samples that become negatives.
        seed: Seed of training.
        dataset: The features.
        queries: All queries of the training split.
        allow_flip: Images may be flipped: mirrored sentences of this video are no candidates.
    """

    def __init__(
        self,
        rate: float,
        seed: int,
        dataset: GroundingDataset,
        queries: Sequence[Query],
        allow_flip: bool = False,
    ) -> None:
        self.rate = rate
        self.seed = seed
        self.dataset = dataset
        self.queries = queries
        self._video_sentences: dict[str, set[str]] = {}
        for query in queries:
            sentences = self._video_sentences.setdefault(query.video, set())
            sentences.add(query.text)
            mirrored = mirror_left_right(query.text) if allow_flip else None
            if mirrored:
                sentences.add(mirrored)

    def __call__(
        self, sample: Sample, targets: Targets, epoch: int, query_index: int
    ) -> tuple[Sample, Targets]:
        """Keep a sample, or turn it into a negative.

        Args:
            sample: The sample.
            targets: Its targets, a batch of one.
            epoch: The epoch.
            query_index: Index of the query in the training split.

        Returns:
            The sample and the targets of this epoch.
        """
        rng = np.random.default_rng([self.seed, epoch, 3, query_index])
        if rng.random() >= self.rate:
            return sample, targets

        # Draw the candidates. There are none where videos share most of their sentences.
        candidates = self._draw_candidates(sample.query, rng)
        if not candidates:
            return sample, targets

        # Choose the candidate that shares most words with the query.
        words = _split_words(sample.query)

        def count_shared_words(query: Query) -> int:
            return len(words & _split_words(query))

        negative = max(candidates, key=count_shared_words)
        sample = replace(sample, text=self.dataset.load_text(negative))
        return sample, empty_targets(targets)

    def _draw_candidates(self, query: Query, rng: np.random.Generator) -> list[Query]:
        """Draw at most `MAX_CANDIDATES` queries whose sentences are not of this video."""
        draws = rng.integers(len(self.queries), size=NUM_DRAWS)
        max_candidates = int(rng.integers(1, MAX_CANDIDATES + 1))

        candidates: list[Query] = []
        video_sentences = self._video_sentences[query.video]
        for index in draws:
            candidate = self.queries[index]
            if candidate.text not in video_sentences:
                candidates.append(candidate)
            if len(candidates) == max_candidates:
                break
        return candidates


def _split_words(query: Query) -> set[str]:
    """Return the words of a query's sentence, in lower case."""
    return set(query.text.lower().split())


def empty_targets(targets: Targets) -> Targets:
    """Return the targets of a negative: an empty span, without frames, clips and boxes.

    Args:
        targets: The targets of the query's own sentence.

    Returns:
        The targets of the negative, of equal shapes.
    """
    return replace(
        targets,
        span=torch.zeros_like(targets.span),
        box_mask=torch.zeros_like(targets.box_mask),
        frame_labels=torch.zeros_like(targets.frame_labels),
        clip_labels=torch.zeros_like(targets.clip_labels),
        clip_box_mask=torch.zeros_like(targets.clip_box_mask),
    )
