"""Windows of a long video, and the features of a few windows at a time.

A window is as long as the segments the run was trained on, and is grounded like a video of its own.
Consecutive windows overlap by half. So an event of up to half a window's length is complete in one
window.
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
    """Windows that are grounded together.

    Attributes:
        windows: Frames `[begin, end)` of each window.
        features: Product name → features of the windows' frames.
    """

    windows: tuple[Span, ...]
    features: dict[str, FeatureSource]


def plan_windows(frame_edges: np.ndarray, window_seconds: float) -> list[Span]:
    """Return windows that cover a video.

    Windows begin at equal distances of at most half a window; the last window ends with the video.
    With a variable frame rate, windows have unequal numbers of frames.

    Args:
        frame_edges: `[frame_count + 1]`; frame n is shown from second `frame_edges[n]` to second
            `frame_edges[n + 1]`.
        window_seconds: Length of a window.

    Returns:
        Frames `[begin, end)` of each window; one window for a video that is no longer.
    """
    frame_count = len(frame_edges) - 1
    video_seconds = float(frame_edges[-1])

    # One frame of tolerance: some containers overstate the duration of the last frame.
    if video_seconds <= window_seconds + video_seconds / frame_count:
        return [(0, frame_count)]

    last_start = video_seconds - window_seconds
    num_windows = math.ceil(last_start / (window_seconds / 2)) + 1
    starts = np.linspace(0, last_start, num_windows)  # seconds

    # Seconds to frames. The margin absorbs rounding errors of the edges.
    begins = np.searchsorted(frame_edges, starts + 1e-6, "right") - 1
    ends = np.searchsorted(frame_edges, starts + window_seconds - 1e-6)
    ends[-1] = frame_count

    # Long frames can give equal windows.
    windows = zip(begins.tolist(), ends.tolist(), strict=True)
    return list(dict.fromkeys(windows))


def read_window_batches(
    key: str, products: Mapping[str, FeatureSource], windows: Sequence[Span], windows_per_batch: int
) -> Iterator[WindowBatch]:
    """Read the features of windows from complete products.

    Args:
        key: The video's key in the products.
        products: Product name → features of the video.
        windows: Windows, in order.
        windows_per_batch: Windows per batch.

    Yields:
        Batches of windows, each with the rows that its windows need.
    """
    columns_by_product = {name: product.columns(key) for name, product in products.items()}
    for group in _group_windows(windows, windows_per_batch):
        features: dict[str, FeatureSource] = {}
        for name, product in products.items():
            columns = columns_by_product[name]
            frames = columns["frame"]
            begin, end = _find_window_rows(frames, group)

            # A single window takes all rows: no index is needed.
            indices = None if len(windows) == 1 else np.arange(begin, end)
            rows = product.read(key, indices)
            row_columns = {}
            for column, values in columns.items():
                # Columns of another length describe the video, not its rows.
                if len(values) == len(frames):
                    row_columns[column] = values[begin:end]
            entry = Entry(key, key, rows, row_columns, product.facts(key))
            features[name] = InMemorySource([entry])
        yield WindowBatch(group, features)


def stream_window_batches(
    key: str,
    stream: FeatureStream,
    reductions: Mapping[str, Reduction | None],
    windows: Sequence[Span],
    windows_per_batch: int,
) -> Iterator[WindowBatch]:
    """Compute the features of windows while the video is decoded.

    A batch is yielded as soon as its features are complete. Rows that later windows do not need are
    dropped.

    Args:
        key: Key of the video's entries.
        stream: Features of the video, row block by row block.
        reductions: Product name → reduction of the product's features, or None.
        windows: Windows, in order.
        windows_per_batch: Windows per batch.

    Yields:
        Batches of windows with their features.
    """
    buffers = {name: RowBuffer() for name in stream.builders}
    groups = _group_windows(windows, windows_per_batch)
    pending = next(groups, None)

    for name, rows in stream:
        buffer = buffers[name]
        begin = buffer.total_rows
        columns = stream.builders[name].columns(begin, begin + len(rows))
        buffer.append(apply_reduction(rows, reductions[name]), columns)

        # One block of rows can complete several batches.
        while pending is not None and _has_passed(buffers, pending[-1][1]):
            yield _build_window_batch(key, pending, buffers, stream.initial_facts)
            pending = next(groups, None)
            if pending is not None:
                for other in buffers.values():
                    other.discard_before(pending[0][0])

    # The video has ended: the remaining windows are complete.
    while pending is not None:
        yield _build_window_batch(key, pending, buffers, stream.initial_facts)
        pending = next(groups, None)


class RowBuffer:
    """The most recent rows of one product, in the blocks they were computed in.

    Attributes:
        total_rows: Number of rows that were appended, including dropped ones.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self.total_rows = 0

    @property
    def last_frame(self) -> int:
        """Video frame of the last row, −1 without rows."""
        if not self._blocks:
            return -1
        _, columns = self._blocks[-1]
        return int(columns["frame"][-1])

    def append(self, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Append a block of rows.

        Args:
            rows: `[n, …]`, features.
            columns: Column name → `[n]`, with the video frames in `frame`.
        """
        self._blocks.append((rows, columns))
        self.total_rows += len(rows)

    def discard_before(self, frame: int) -> None:
        """Drop the blocks before the block with the last row of an earlier frame.

        Args:
            frame: First video frame of the next window.
        """
        while len(self._blocks) > 1 and self._blocks[1][1]["frame"][0] < frame:
            del self._blocks[0]

    def build_entry(self, key: str, windows: Sequence[Span], facts: dict[str, Any]) -> Entry:
        """Build an entry with the rows of windows.

        Args:
            key: Key of the entry.
            windows: Consecutive windows whose rows are in the buffer.
            facts: Facts of the entry.

        Returns:
            The entry.
        """
        block_rows, block_columns = zip(*self._blocks, strict=True)
        columns = {}
        for name in block_columns[0]:
            columns[name] = np.concatenate([block[name] for block in block_columns])
        begin, end = _find_window_rows(columns["frame"], windows)

        # A single block needs no copy.
        rows = block_rows[0] if len(block_rows) == 1 else np.concatenate(block_rows)
        window_columns = {name: values[begin:end] for name, values in columns.items()}
        return Entry(key, key, rows[begin:end], window_columns, facts)


def _has_passed(buffers: Mapping[str, RowBuffer], frame: int) -> bool:
    """Return True if all products have a row of this frame or a later one."""
    return all(buffer.last_frame >= frame for buffer in buffers.values())


def _build_window_batch(
    key: str, group: tuple[Span, ...], buffers: Mapping[str, RowBuffer], facts: dict[str, Any]
) -> WindowBatch:
    """Return a batch of windows with the buffered features."""
    features: dict[str, FeatureSource] = {}
    for name, buffer in buffers.items():
        features[name] = InMemorySource([buffer.build_entry(key, group, facts)])
    return WindowBatch(group, features)


def _group_windows(windows: Sequence[Span], windows_per_batch: int) -> Iterator[tuple[Span, ...]]:
    """Yield consecutive windows in groups."""
    for begin in range(0, len(windows), windows_per_batch):
        yield tuple(windows[begin : begin + windows_per_batch])


def _find_window_rows(frame_indices: np.ndarray, windows: Sequence[Span]) -> tuple[int, int]:
    """Return the rows `[begin, end)` of consecutive windows, with one more frame on each side.

    A window without rows uses the nearest frame. `frame_indices` `[n]` ascend; several rows may
    belong to one frame.
    """
    window_begin = windows[0][0]
    window_end = windows[-1][1]
    begin, end = np.searchsorted(frame_indices, (window_begin, window_end))
    first_frame = frame_indices[max(begin - 1, 0)]
    last_frame = frame_indices[min(end, len(frame_indices) - 1)]
    first_row = int(np.searchsorted(frame_indices, first_frame))
    end_row = int(np.searchsorted(frame_indices, last_frame, "right"))
    return first_row, end_row
