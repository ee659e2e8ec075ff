"""Long videos made by joining the clips of a made `shapes`, with events hidden in them that happen nowhere else in the video."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.datasets.shapes.make import SPLITS, ShapesConfig, scene_seed, video_id
from pipeline.datasets.shapes.scene import Scene, make_scene
from pipeline.datasets.shapes.sentences import PHRASES
from pipeline.records import Query, Span


@dataclass(frozen=True)
class HiddenEvent:
    """A sentence that is true of the frames `span` `[begin, end)` of the joined video alone, and the `query` it is in its own clip."""

    query: Query
    span: Span


@dataclass(frozen=True)
class ConcatenatedScenes:
    """The clips' ids in order, the frame that each begins with, and what is hidden in them."""

    clips: tuple[str, ...]
    first_frames: tuple[int, ...]
    hidden_events: tuple[HiddenEvent, ...]


def concatenate_scenes(
    root: Path, queries: Sequence[Query], seed: int, seconds: float, num_hidden: int = 1
) -> ConcatenatedScenes:
    """Clips of together about `seconds` in random order, among them `hidden` with a declarative query's event that is in none of
    the others; these may have two of its colour, shape and motion. Clips repeat where there are too few.

    `queries` are those that may be hidden, `root` the data set; all clips are of the queries' splits. Fewer are hidden where no more
    can be.
    """
    rng, config = (
        np.random.default_rng([seed, 3]),
        ShapesConfig.model_validate(json.loads((root / "shapes.json").read_text())),
    )
    splits = tuple(video_id(query.split, 0)[0] for query in queries)
    scenes = {
        clip: scene for clip, scene in build_all_scenes(config).items() if clip.startswith(splits)
    }
    said = [query for query in queries if query.form == "declarative" and query.truth is not None]
    chosen: list[Query] = []
    for place in rng.permutation(len(said)).tolist():
        query = said[place]
        alone = not any(
            _is_true_of_scene(query.text, scenes[other.video])
            or _is_true_of_scene(other.text, scenes[query.video])
            for other in chosen
        )
        if alone and len(chosen) < num_hidden:
            chosen.append(query)
    others = [
        clip
        for clip, scene in scenes.items()
        if not any(_is_true_of_scene(query.text, scene) for query in chosen)
    ]
    clips, left = (
        [query.video for query in chosen],
        seconds * config.fps - sum(query.frame_count for query in chosen),
    )
    while left > 0:
        for place in rng.permutation(len(others)).tolist():
            if left > 0:
                clips.append(others[place])
                left -= scenes[others[place]].frame_count
    order = rng.permutation(len(clips)).tolist()
    begins = np.cumsum([0, *(scenes[clips[place]].frame_count for place in order)]).tolist()
    found = []
    for place, query in enumerate(chosen):
        assert query.truth is not None
        first = begins[order.index(place)]
        found.append(HiddenEvent(query, (first + query.truth.span[0], first + query.truth.span[1])))
    return ConcatenatedScenes(
        tuple(clips[place] for place in order), tuple(begins[:-1]), tuple(found)
    )


@lru_cache(maxsize=1)
def build_all_scenes(config: ShapesConfig) -> dict[str, Scene]:
    """The scene of every clip of a data set, by the clip's id."""
    counts = {"train": config.train_videos, "val": config.val_videos, "test": config.test_videos}
    size = (config.width, config.height)
    return {
        video_id(split, index): make_scene(
            scene_seed(config.seed, split, index), size, config.fps, config.seconds
        )
        for split in SPLITS
        for index in range(counts[split])
    }


def _is_true_of_scene(text: str, scene: Scene) -> bool:
    """Whether a declarative sentence is true of anything in a scene."""
    said = (
        f"the {thing.color} {thing.shape} {phrase}."
        for thing in scene.objects
        for motion in thing.motions
        for phrase in PHRASES[motion]
    )
    return text in said


def concatenate_videos(path: Path, clips: Sequence[Path]) -> None:
    """Join videos that were encoded alike, by copying their packets."""
    import av

    with av.open(str(path), "w") as container:
        stream, begin = None, 0
        for clip in clips:
            with av.open(str(clip)) as source:
                own = source.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(own)
                packets = [packet for packet in source.demux(own) if packet.size]
                for packet in packets:
                    packet.pts, packet.dts = (packet.pts or 0) + begin, (packet.dts or 0) + begin
                    packet.stream = stream
                    container.mux(packet)
                begin += sum(packet.duration or 0 for packet in packets)
