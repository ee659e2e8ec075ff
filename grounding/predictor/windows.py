"""A long video in windows as long as what a run was trained on, and its features in stretches: a few windows' rows at a time.

Each window is asked about as a video of its own would be. Half of it is the next one's too, so an event of up to half a window's
length lies whole in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grounding.data.feature_reduction import apply_reduction
from grounding.data.sources import FeatureSource, InMemorySource
from pipeline.features.reduction import Reduction
from pipeline.features.stream import FeatureStream
from pipeline.records import Span
from pipeline.store import Entry


@dataclass(frozen=True)
class WindowBatch:
    """Windows `[begin, end)` that are asked about together, and the features of their frames by product."""

    windows: tuple[Span, ...]
    features: dict[str, FeatureSource]


def plan_windows(frame_edges: np.ndarray, window_seconds: float) -> list[Span]:
    """The frames `[begin, end)` of windows of `seconds` that together cover a video; the whole of one that is no longer.

    Each begins at most half a window after the one before, all equally far apart; the last one ends with the video. Frame n is
    shown from `frame_edges[n]` to `frame_edges[n + 1]`, so at a variable rate windows have unequal numbers of frames.
    """
    count, length = len(frame_edges) - 1, float(frame_edges[-1])
    if (
        length <= window_seconds + length / count
    ):  # a frame more: a container's last one may be said to last longer
        return [(0, count)]
    begins = np.linspace(
        0, length - window_seconds, math.ceil((length - window_seconds) / (window_seconds / 2)) + 1
    )
    firsts = np.searchsorted(frame_edges, begins + 1e-6, "right") - 1
    ends = np.searchsorted(frame_edges, begins + window_seconds - 1e-6)
    return list(dict.fromkeys(zip(firsts.tolist(), [*ends[:-1].tolist(), count], strict=True)))


def read_window_batches(
    key: str, products: Mapping[str, FeatureSource], windows: Sequence[Span], windows_per_batch: int
) -> Iterator[WindowBatch]:
    """The stretches of a video whose features lie somewhere whole: each reads the rows it needs."""
    columns = {name: product.columns(key) for name, product in products.items()}
    frames = {name: own["frame"] for name, own in columns.items()}
    for group in _group_windows(windows, windows_per_batch):
        features: dict[str, FeatureSource] = {}
        for name, product in products.items():
            rows = slice(*_find_window_rows(frames[name], group))
            read = product.read(
                key, None if len(windows) == 1 else np.arange(rows.start, rows.stop)
            )
            own = {
                column: values[rows]
                for column, values in columns[name].items()
                if len(values) == len(frames[name])
            }
            features[name] = InMemorySource([Entry(key, key, read, own, product.facts(key))])
        yield WindowBatch(group, features)


def stream_window_batches(
    key: str,
    stream: FeatureStream,
    reductions: Mapping[str, Reduction | None],
    windows: Sequence[Span],
    windows_per_batch: int,
) -> Iterator[WindowBatch]:
    """The same while the video is decoded: a stretch comes as soon as its features are made, and they are dropped after it."""
    held = {name: RowBuffer() for name in stream.builders}
    groups = _group_windows(windows, windows_per_batch)
    waiting = next(groups, None)

    def cut(group: tuple[Span, ...]) -> WindowBatch:
        return WindowBatch(
            group,
            {
                name: InMemorySource([own.build_entry(key, group, stream.initial_facts)])
                for name, own in held.items()
            },
        )

    for name, rows in stream:
        made = held[name].total_rows
        held[name].append(
            apply_reduction(rows, reductions[name]),
            stream.builders[name].columns(made, made + len(rows)),
        )
        while waiting is not None and all(
            own.last_frame >= waiting[-1][1] for own in held.values()
        ):
            yield cut(waiting)
            if (waiting := next(groups, None)) is not None:
                for own in held.values():
                    own.discard_before(waiting[0][0])
    for group in [] if waiting is None else [waiting, *groups]:
        yield cut(group)


class RowBuffer:
    """The rows of one product, in the blocks they came in, that windows still to come need; `end`: rows that came in all."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self.total_rows = 0

    @property
    def last_frame(self) -> int:
        """The frame that the last row shows."""
        return int(self._blocks[-1][1]["frame"][-1]) if self._blocks else -1

    def append(self, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        self._blocks.append((rows, columns))
        self.total_rows += len(rows)

    def discard_before(self, frame: int) -> None:
        """Forget the blocks before the one with the last row of an earlier frame."""
        while len(self._blocks) > 1 and self._blocks[1][1]["frame"][0] < frame:
            del self._blocks[0]

    def build_entry(self, key: str, windows: Sequence[Span], facts: dict[str, Any]) -> Entry:
        rows, columns = zip(*self._blocks, strict=True)
        frames = np.concatenate([own["frame"] for own in columns])
        around = slice(*_find_window_rows(frames, windows))
        joined = {
            name: np.concatenate([own[name] for own in columns])[around] for name in columns[0]
        }
        return Entry(
            key, key, (rows[0] if len(rows) == 1 else np.concatenate(rows))[around], joined, facts
        )


def _group_windows(windows: Sequence[Span], windows_per_batch: int) -> Iterator[tuple[Span, ...]]:
    return (
        tuple(windows[begin : begin + windows_per_batch])
        for begin in range(0, len(windows), windows_per_batch)
    )


def _find_window_rows(frame_indices: np.ndarray, windows: Sequence[Span]) -> tuple[int, int]:
    """The rows `[begin, end)` of frames in windows, and of one frame more on either side: the nearest, should a window have none.

    `frames` `[n]` ascend; several rows may show one.
    """
    inside = np.searchsorted(frame_indices, (windows[0][0], windows[-1][1]))
    first, last = (
        frame_indices[max(inside[0] - 1, 0)],
        frame_indices[min(inside[1], len(frame_indices) - 1)],
    )
    return int(np.searchsorted(frame_indices, first)), int(
        np.searchsorted(frame_indices, last, "right")
    )
