"""Sampling of frames and clips, and their positions in time.

Pure arithmetic: no video is opened here. A relative position τ ∈ [0, 1) refers to a segment
`[begin, end)` of frames. Clip k of n covers τ ∈ [k/n, (k+1)/n).
"""

from __future__ import annotations

import math

import numpy as np


def sample_grid(seconds: np.ndarray, fps: float) -> np.ndarray:
    """Sample the frames nearest to a regular grid of times.

    The grid is 0, 1/fps, 2/fps, … after the first frame. Presentation times, and not frame
    indices, decide, so that videos of variable frame rate are sampled correctly.

    Args:
        seconds: `[n]`, ascending presentation times of all frames.
        fps: Grid points per second.

    Returns:
        int64 `[m]`, ascending frame indices without repeats.
    """
    if len(seconds) == 0:
        return np.zeros(0, np.int64)

    # 1e-6 tolerates rounding errors of a last grid point on the last frame.
    count = math.floor((seconds[-1] - seconds[0]) * fps + 1e-6) + 1
    times = seconds[0] + np.arange(count) / fps  # [count]
    return np.unique(find_nearest_frames(seconds, times))


def find_nearest_frames(seconds: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Find the nearest frame of each time.

    Args:
        seconds: `[n]`, ascending presentation times of all frames, n ≥ 1.
        times: `[m]`, times to look up, in seconds.

    Returns:
        int64 `[m]`, frame indices; the earlier of two equally near frames.
    """
    seconds = np.asarray(seconds, np.float64)
    times = np.asarray(times, np.float64)

    # `times[i]` lies between the frames `earlier[i]` and `later[i]`, except at both ends.
    later = np.clip(np.searchsorted(seconds, times), 1, max(len(seconds) - 1, 1))
    earlier = later - 1
    if len(seconds) == 1:
        return np.zeros(times.shape, np.int64)

    is_later_nearer = seconds[later] - times < times - seconds[earlier] - 1e-9
    return np.where(is_later_nearer, later, earlier)


def compute_clip_centers(seconds: np.ndarray, stride_seconds: float) -> np.ndarray:
    """Compute the center times of the motion clips of a video.

    Clip k stands for `[k·stride, (k+1)·stride)` seconds after the first frame; its center is
    the middle of this interval.

    Args:
        seconds: `[n]`, ascending presentation times of all frames.
        stride_seconds: Seconds between the centers of neighboring clips.

    Returns:
        `[m]`, times in seconds, m ≥ 1.
    """
    duration = float(seconds[-1] - seconds[0]) if len(seconds) else 0.0
    count = max(1, math.ceil(duration / stride_seconds - 1e-6))
    return seconds[0] + (np.arange(count) + 0.5) * stride_seconds


def sample_clip_frames(
    seconds: np.ndarray, center: float, clip_seconds: float, count: int
) -> np.ndarray:
    """Sample the frames of one motion clip.

    Frame i stands for the i-th of `count` equal parts of the clip, at the middle of the part.
    Times before the first or after the last frame are clamped to this frame.

    Args:
        seconds: `[n]`, ascending presentation times of all frames.
        center: Time of the clip's center in seconds.
        clip_seconds: Duration of the clip in seconds.
        count: Number of frames of the clip.

    Returns:
        int64 `[count]`, frame indices.
    """
    offsets = (np.arange(count) + 0.5) / count - 0.5  # [count], in clip durations
    times = center + offsets * clip_seconds
    return find_nearest_frames(seconds, times)


def sample_bin_centers(num_items: int, count: int) -> np.ndarray:
    """Sample items at the centers of equal bins.

    Args:
        num_items: Number of items to choose from.
        count: Number of samples.

    Returns:
        int64 `[count]`, ascending indices; with repeats if `num_items < count`.
    """
    indices = ((np.arange(count) + 0.5) * num_items / count).astype(np.int64)
    return np.minimum(indices, num_items - 1)


def plan_passes(num_items: int, count: int) -> list[np.ndarray]:
    """Distribute the items of a segment over forward passes at test time (methods: **Test**).

    There are P = ⌈n/count⌉ regular passes. Pass p takes the items ⌊(k + (p + .5)/P)·n/count⌋
    for k in 0..count−1. Rounding may skip items: additional passes take these. The caller
    averages items of several passes.

    Args:
        num_items: Number of items n, frames or clips.
        count: Items per pass.

    Returns:
        One int64 array `[count]` of ascending item indices for each pass. Together the passes
        contain every item.
    """
    num_passes = max(1, math.ceil(num_items / count))
    slots = np.arange(count)

    # Regular passes: the same grid of slots, shifted by a part of a slot in each pass.
    passes = []
    for index in range(num_passes):
        shift = (index + 0.5) / num_passes
        items = ((slots + shift) * num_items / count).astype(np.int64)  # [count]
        passes.append(np.minimum(items, num_items - 1))

    # Additional passes for skipped items, filled up by repeating them.
    missed = np.setdiff1d(np.arange(num_items), np.concatenate(passes))
    if len(missed):
        num_extra = math.ceil(len(missed) / count)
        for part in np.array_split(missed, num_extra):
            passes.append(np.sort(np.resize(part, count)))
    return passes


def compute_pool_bins(num_items: int, count: int) -> list[tuple[int, int]]:
    """Compute the bins that pool clips to a fixed number, by 2D-TAN's rule.

    Args:
        num_items: Number of available clips.
        count: Number of bins.

    Returns:
        `[begin, end)` of each bin. A bin is never empty: with fewer clips than bins it holds
        the nearest clip.
    """
    edges = np.round(np.arange(count + 1) * num_items / count).astype(np.int64)  # [count + 1]
    begins = np.minimum(edges[:-1], num_items - 1)

    bins = []
    for begin, end in zip(begins, edges[1:], strict=True):
        bins.append((int(begin), int(max(begin + 1, end))))
    return bins


def compute_relative_positions(frames: np.ndarray, segment: tuple[int, int]) -> np.ndarray:
    """Compute the relative positions of frames in a segment.

    Args:
        frames: `[n]`, frame indices of the video.
        segment: Frames `[begin, end)` of the video.

    Returns:
        float64 `[n]`, τ of the frames' middles: (f + ½ − begin) / (end − begin).
    """
    begin, end = segment
    return (np.asarray(frames, np.float64) + 0.5 - begin) / (end - begin)


def label_frames(frames: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Label the frames inside a span.

    Args:
        frames: `[n]`, frame indices.
        span: Frames `[begin, end)` of the event.

    Returns:
        bool `[n]`. If the span contains no frame, the frame nearest to its middle is labeled.
    """
    frames = np.asarray(frames)
    begin, end = span

    labels = (frames >= begin) & (frames < end)
    if not labels.any():
        distances = np.abs(frames + 0.5 - (begin + end) / 2)
        labels[np.argmin(distances)] = True
    return labels


def label_clips(span_tau: tuple[float, float], num_clips: int) -> np.ndarray:
    """Label the clips of which a span covers at least half.

    Args:
        span_tau: Relative begin and end of the span, in τ.
        num_clips: Number of equal clips of the segment.

    Returns:
        bool `[num_clips]`. If no clip is covered by half, the clip nearest to the span's middle
        is labeled.
    """
    begin_tau, end_tau = span_tau
    edges = np.arange(num_clips + 1) / num_clips  # [num_clips + 1]

    # The covered share of each clip.
    overlap = np.minimum(edges[1:], end_tau) - np.maximum(edges[:-1], begin_tau)
    coverage = np.clip(overlap, 0, None) * num_clips  # [num_clips]

    labels = coverage >= 0.5 - 1e-9
    if not labels.any():
        centers = (edges[1:] + edges[:-1]) / 2
        distances = np.abs(centers - sum(span_tau) / 2)
        labels[np.argmin(distances)] = True
    return labels


def span_to_frames(begin_tau: float, end_tau: float, segment: tuple[int, int]) -> tuple[int, int]:
    """Convert a relative span to frames.

    Args:
        begin_tau: Relative begin of the span in the segment.
        end_tau: Relative end of the span in the segment.
        segment: Frames `[begin, end)` of the video.

    Returns:
        Frames `[begin, end)` of the video: rounded, inside the segment, at least one frame long.
    """
    first, last = segment
    length = last - first

    begin = first + min(max(round(begin_tau * length), 0), length - 1)
    end = first + min(max(round(end_tau * length), 0), length)
    return begin, max(end, begin + 1)
