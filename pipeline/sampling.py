"""Which frames and clips are taken, and where they lie in time. Pure arithmetic: no video is opened here.

τ ∈ [0, 1) is a place in a segment `[begin, end)`; clip k of n covers [k/n, (k+1)/n).
"""

from __future__ import annotations

import math

import numpy as np


def sample_grid(seconds: np.ndarray, fps: float) -> np.ndarray:
    """Frame numbers nearest to the times 0, 1/fps, 2/fps, … after the first frame; ascending, each once.

    `seconds` `[n]` are the frames' own presentation times, so a variable rate is read right.
    """
    if len(seconds) == 0:
        return np.zeros(0, np.int64)
    count = math.floor((seconds[-1] - seconds[0]) * fps + 1e-6) + 1
    return np.unique(find_nearest_frames(seconds, seconds[0] + np.arange(count) / fps))


def find_nearest_frames(seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each wanted time the number of the frame nearest to it (the earlier one of two equally near)."""
    seconds = np.asarray(seconds, np.float64)
    times = np.asarray(times, np.float64)
    right = np.clip(np.searchsorted(seconds, times), 1, max(len(seconds) - 1, 1))
    left = right - 1
    if len(seconds) == 1:
        return np.zeros(times.shape, np.int64)
    return np.where(seconds[right] - times < times - seconds[left] - 1e-9, right, left)


def compute_clip_centers(seconds: np.ndarray, stride_seconds: float) -> np.ndarray:
    """Centres in seconds of clips laid `every` seconds from the first frame's time to the last frame's.

    Clip k stands for `[k·every, (k+1)·every)` after the first frame; its centre is the middle of that.
    """
    length = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
    count = max(1, math.ceil(length / stride_seconds - 1e-6))
    return seconds[0] + (np.arange(count) + 0.5) * stride_seconds


def sample_clip_frames(
    seconds: np.ndarray, center: float, clip_seconds: float, count: int
) -> np.ndarray:
    """The `count` frames of one clip: nearest to times evenly spread over `span` seconds around `centre`.

    Times before the first or after the last frame clamp to that frame. Frame i of the clip stands for the
    i-th of `count` equal parts of the span, at its middle.
    """
    times = center + ((np.arange(count) + 0.5) / count - 0.5) * clip_seconds
    return find_nearest_frames(seconds, times)


def sample_bin_centers(num_items: int, count: int) -> np.ndarray:
    """Indices of `count` samples at the centres of equal parts of `available` items (`[count]`, repeats if short)."""
    return np.minimum(
        ((np.arange(count) + 0.5) * num_items / count).astype(np.int64), num_items - 1
    )


def plan_passes(num_items: int, count: int) -> list[np.ndarray]:
    """Test-time passes (methods: **Test**): index lists of `count` that together see every one of n items.

    P = ⌈n/count⌉ passes, pass p taking ⌊(k + (p + .5)/P)·n/count⌋ for k in 0..count−1; what rounding missed is seen by
    further passes. Items seen twice are averaged by the caller.
    """
    total = max(1, math.ceil(num_items / count))
    places = np.arange(count)
    taken = [
        np.minimum(
            ((places + (p + 0.5) / total) * num_items / count).astype(np.int64), num_items - 1
        )
        for p in range(total)
    ]
    missed = np.setdiff1d(np.arange(num_items), np.concatenate(taken))
    if len(missed):
        extra = [
            np.sort(np.resize(part, count))
            for part in np.array_split(missed, math.ceil(len(missed) / count))
        ]
        taken.extend(extra)
    return taken


def compute_pool_bins(num_items: int, count: int) -> list[tuple[int, int]]:
    """2D-TAN's rule for bringing `available` clips to `count`: bin k is `[begin, end)`, the nearest one when short."""
    edges = np.round(np.arange(count + 1) * num_items / count).astype(np.int64)
    begins = np.minimum(edges[:-1], num_items - 1)
    return [(int(b), int(max(b + 1, e))) for b, e in zip(begins, edges[1:], strict=True)]


def normalized_position(frames: np.ndarray, segment: tuple[int, int]) -> np.ndarray:
    """τ of frames in a segment: the middle of frame f is at (f + ½ − begin) / (end − begin)."""
    begin, end = segment
    return (np.asarray(frames, np.float64) + 0.5 - begin) / (end - begin)


def label_frames(frames: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Labels `[n]` of frames in `[begin, end)`; where none is, the one nearest the span's middle."""
    frames = np.asarray(frames)
    inside = (frames >= span[0]) & (frames < span[1])
    if not inside.any():
        inside[np.argmin(np.abs(frames + 0.5 - (span[0] + span[1]) / 2))] = True
    return inside


def label_clips(span_tau: tuple[float, float], num_clips: int) -> np.ndarray:
    """Labels `[clips]` of clips covered at least half by the span (in τ); where none is, the one nearest its middle."""
    edges = np.arange(num_clips + 1) / num_clips
    covered = (
        np.clip(np.minimum(edges[1:], span_tau[1]) - np.maximum(edges[:-1], span_tau[0]), 0, None)
        * num_clips
    )
    inside = covered >= 0.5 - 1e-9
    if not inside.any():
        inside[np.argmin(np.abs((edges[1:] + edges[:-1]) / 2 - sum(span_tau) / 2))] = True
    return inside


def span_to_frames(begin_tau: float, end_tau: float, segment: tuple[int, int]) -> tuple[int, int]:
    """A span in τ as frames `[begin, end)` of the video: rounded, inside the segment, at least one frame long."""
    first, last = segment
    length = last - first
    begin = first + min(max(round(begin_tau * length), 0), length - 1)
    end = first + min(max(round(end_tau * length), 0), length)
    return begin, max(end, begin + 1)
