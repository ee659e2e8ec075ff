"""Videos that a report or a figure shows. The command brings them: `grounding` reads no videos itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import VideoError


@dataclass(frozen=True)
class Footage:
    """One video: frame n is shown from `edges[n]` to `edges[n + 1]` seconds; `stamp` changes with the file."""

    path: str
    edges: np.ndarray = field(repr=False)
    stamp: str
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]
    """Ascending frame numbers → RGB pictures uint8 `[H, W, 3]`, one by one; VideoError where they cannot be decoded."""

    def pictures(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these ascending numbers; a VideoError where the video does not have them."""
        self.refuse_shorter(numbers[-1])
        return self.read(numbers)

    def refuse_shorter(self, number: int) -> None:
        """VideoError where there is no such frame."""
        count = len(self.edges) - 1
        if number >= count:
            raise VideoError("decode", "changed", f"{self.path} has {count} frames, the index says more")


FootageOf = Callable[[str], Footage]
"""A query's path → its video; a StvgError where it cannot be read."""
