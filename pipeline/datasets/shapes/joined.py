"""Long videos of concatenated `shapes` clips, with hidden events that occur nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.datasets.shapes.make import ShapesConfig, count_videos, scene_seed, video_id
from pipeline.datasets.shapes.scene import Scene, make_scene
from pipeline.datasets.shapes.sentences import PHRASES
from pipeline.records import Query, Span


@dataclass(frozen=True)
class HiddenEvent:
    """A sentence that is true of one span of the long video only.

    Attributes:
        query: The query about the event's own clip.
        span: Frames `[begin, end)` of the event in the long video.
    """

    query: Query
    span: Span


@dataclass(frozen=True)
class ConcatenatedScenes:
    """The clips of a long video.

    Attributes:
        clips: Video ids of the clips, in order.
        first_frames: First frame of each clip in the long video.
        hidden_events: The hidden events.
    """

    clips: tuple[str, ...]
    first_frames: tuple[int, ...]
    hidden_events: tuple[HiddenEvent, ...]


def concatenate_scenes(
    root: Path, queries: Sequence[Query], seed: int, seconds: float, num_hidden: int = 1
) -> ConcatenatedScenes:
    """Choose clips of a long video, in random order.

    The sentence of a hidden event is true of no other clip. Other clips may show two of its color,
    shape and motion. Clips repeat if there are too few.

    Args:
        root: Folder of the generated data set.
        queries: Queries that may be hidden, if they are declarative. All clips are of the splits of
            these queries.
        seed: Seed of the random generator.
        seconds: Approximate duration of the long video.
        num_hidden: Number of hidden events. There are fewer if too few sentences exclude each
            other.

    Returns:
        The clips and the hidden events.
    """
    rng = np.random.default_rng([seed, 3])
    config = ShapesConfig.model_validate(json.loads((root / "shapes.json").read_text()))

    # The first digit of a video id encodes the split.
    split_prefixes = tuple(video_id(query.split, 0)[0] for query in queries)
    scenes = {}
    for clip, scene in build_all_scenes(config).items():
        if clip.startswith(split_prefixes):
            scenes[clip] = scene

    hidden_queries = _choose_hidden_queries(queries, scenes, num_hidden, rng)
    clips = [query.video for query in hidden_queries]

    # Fill the video with clips of which no hidden sentence is true.
    other_clips = _list_unrelated_clips(hidden_queries, scenes)
    hidden_frames = sum(query.frame_count for query in hidden_queries)
    remaining_frames = seconds * config.fps - hidden_frames
    while remaining_frames > 0:
        for index in rng.permutation(len(other_clips)).tolist():
            if remaining_frames > 0:
                clip = other_clips[index]
                clips.append(clip)
                remaining_frames -= scenes[clip].frame_count

    # Shuffle the clips; `order[position]` is an index into `clips`.
    order = rng.permutation(len(clips)).tolist()
    ordered_clips = [clips[index] for index in order]
    frame_counts = [scenes[clip].frame_count for clip in ordered_clips]
    edges = np.cumsum([0, *frame_counts]).tolist()  # [number of clips + 1]

    # The hidden queries' clips are the first of `clips`.
    hidden_events = []
    for index, query in enumerate(hidden_queries):
        assert query.truth is not None
        first_frame = edges[order.index(index)]
        begin, end = query.truth.span
        hidden_events.append(HiddenEvent(query, (first_frame + begin, first_frame + end)))

    return ConcatenatedScenes(tuple(ordered_clips), tuple(edges[:-1]), tuple(hidden_events))


def _choose_hidden_queries(
    queries: Sequence[Query], scenes: dict[str, Scene], num_hidden: int, rng: np.random.Generator
) -> list[Query]:
    """Choose declarative queries of which none is true of another's clip."""
    candidates = []
    for query in queries:
        if query.form == "declarative" and query.truth is not None:
            candidates.append(query)

    hidden_queries: list[Query] = []
    for index in rng.permutation(len(candidates)).tolist():
        query = candidates[index]
        is_ambiguous = any(
            _is_true_of_scene(query.text, scenes[other.video])
            or _is_true_of_scene(other.text, scenes[query.video])
            for other in hidden_queries
        )
        if not is_ambiguous and len(hidden_queries) < num_hidden:
            hidden_queries.append(query)
    return hidden_queries


def _list_unrelated_clips(hidden_queries: list[Query], scenes: dict[str, Scene]) -> list[str]:
    """List the clips of which no hidden sentence is true."""
    clips = []
    for clip, scene in scenes.items():
        if not any(_is_true_of_scene(query.text, scene) for query in hidden_queries):
            clips.append(clip)
    return clips


@lru_cache(maxsize=1)
def build_all_scenes(config: ShapesConfig) -> dict[str, Scene]:
    """Sample the scene of every video of a data set.

    Args:
        config: Size of the data set.

    Returns:
        The scenes by video id.
    """
    size = (config.width, config.height)
    scenes = {}
    for split, video_count in count_videos(config).items():
        for index in range(video_count):
            seed = scene_seed(config.seed, split, index)
            scene = make_scene(seed, size, config.fps, config.seconds)
            scenes[video_id(split, index)] = scene
    return scenes


def _is_true_of_scene(text: str, scene: Scene) -> bool:
    """Return True if a declarative sentence is true of an object in the scene."""
    for scene_object in scene.objects:
        for motion in scene_object.motions:
            for phrase in PHRASES[motion]:
                if text == f"the {scene_object.color} {scene_object.shape} {phrase}.":
                    return True
    return False


def concatenate_videos(path: Path, clips: Sequence[Path]) -> None:
    """Concatenate videos of equal encoding by copying their packets.

    Args:
        path: File to write.
        clips: Files of the clips, in order.
    """
    import av

    with av.open(str(path), "w") as container:
        output_stream = None
        clip_begin = 0  # in units of the streams' time base
        for clip in clips:
            with av.open(str(clip)) as source:
                input_stream = source.streams.video[0]
                if output_stream is None:
                    output_stream = container.add_stream_from_template(input_stream)

                # The last packet of demux is empty: it only flushes a decoder.
                packets = [packet for packet in source.demux(input_stream) if packet.size]
                for packet in packets:
                    packet.pts = (packet.pts or 0) + clip_begin
                    packet.dts = (packet.dts or 0) + clip_begin
                    packet.stream = output_stream
                    container.mux(packet)
                clip_begin += sum(packet.duration or 0 for packet in packets)
