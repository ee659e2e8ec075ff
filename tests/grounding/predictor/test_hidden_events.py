"""Twenty hours of distractors with an event hidden in each: how often the best tubes of the whole
hour are of that event.

They are made of the features that `make demo` left (`store/`), clip after clip: decoding them would
take hours and give the same but at the cuts, where a motion clip sees both sides. The run that is
asked is trained here, as the demo's but on a share of absent sentences, too (docs/prediction.md);
`STVG_RUN` names another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grounding.predictor.grounder import Grounder, VideoFeatures, build_video_info
from grounding.systems.csdvl import CsdvlTrainConfig
from grounding.systems.registry import apply_preset
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import train
from pipeline.config import validate
from pipeline.datasets.shapes.joined import ConcatenatedScenes, HiddenEvent, concatenate_scenes
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Query
from pipeline.store import ProductReader, Store

ROOT = Path(__file__).parents[3]
HOURS, SECONDS, TOP, ABSENT = 20, 3600.0, 100, 0.5
pytestmark = pytest.mark.soak


class Spliced:
    """Clips of a store's product, one after the other, read as one video's
    (`grounding.data.sources.FeatureSource`).
    """

    def __init__(self, product: ProductReader, made: ConcatenatedScenes) -> None:
        self._product, self._clips = product, made.clips
        displayed = [
            product.columns(clip)["frame"] + begin
            for clip, begin in zip(made.clips, made.first_frames, strict=True)
        ]
        self._frames = np.concatenate(displayed)
        self._begins = np.cumsum([0, *map(len, displayed)])

    def __contains__(self, key: object) -> bool:
        return key == "hour"

    def shape(self, key: str) -> tuple[int, ...]:
        return (len(self._frames), *self._product.shape(self._clips[0])[1:])

    def facts(self, key: str) -> dict[str, Any]:
        return self._product.facts(self._clips[0])

    def columns(self, key: str) -> dict[str, np.ndarray]:
        return {"frame": self._frames}

    def read(self, key: str, indices: np.ndarray | None = None) -> np.ndarray:
        assert indices is not None
        places = np.searchsorted(self._begins, indices, "right") - 1
        parts = [
            self._product.read(self._clips[place], indices[places == place] - self._begins[place])
            for place in np.unique(places)
        ]
        return np.concatenate(parts)


@pytest.fixture(scope="module")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> Grounder:
    if not (ROOT / "store").is_dir():
        pytest.skip("there is no store: `make demo` makes store/")
    if named := os.environ.get("STVG_RUN"):
        return Grounder(Path(named), device="cpu", num_frames=36)
    run, given = (
        tmp_path_factory.mktemp("hidden") / "run",
        {"negative_rate": ABSENT, "seed": 0, "device": "cpu"},
    )
    config = validate(
        CsdvlTrainConfig, apply_preset(given, "shapes", "csdvl", ROOT / "store"), "test"
    )
    prepare_run_dir(ROOT / "store", run, config)
    train(ROOT / "store", run, config)
    return Grounder(run, device="cpu", num_frames=36)


def hours(grounder: Grounder) -> Iterator[tuple[VideoFeatures, HiddenEvent]]:
    store = Store(ROOT / "store")
    queries = [query for query in read_jsonl(store.index_path, Query) if query.split == "test"]
    for seed in range(HOURS):
        result = concatenate_scenes(ROOT / "data" / "shapes", queries, seed, SECONDS)
        products = {name: Spliced(store.open(name), result) for name in grounder.visual_products}
        count = (
            result.first_frames[-1]
            + products["appearance"]._product.facts(result.clips[-1])["frame_count"]
        )
        facts = products["appearance"].facts("hour") | {"frame_count": count}
        edges = np.arange(count + 1) / facts["fps"]
        yield (
            VideoFeatures(build_video_info(Path("hour"), facts), "hour", {**products}, edges),
            result.hidden_events[0],
        )


def test_an_event_hidden_in_an_hour_is_found_far_more_often_than_by_chance(
    grounder: Grounder,
) -> None:
    """Found: a tube with a tIoU above .3. Of about a thousand windows one or two show the event: by
    chance it is among the best ten in 0.2 hours of 20, in three with a probability of .1 %, and
    among the best hundred in 2. Two such runs reached 9 and 17, 5 and 16. All frames of a window
    are seen in one pass, which takes a third of the time.
    """
    places: list[int | None] = []
    for recorded, hidden in hours(grounder):
        prediction = grounder.ground_encoded(recorded, [hidden.query.text], top_k=TOP).queries[0]
        result = [
            tiou(tube.span_frames, hidden.span) > 0.3 for tube in (prediction, *prediction.others)
        ]
        places.append(result.index(True) + 1 if any(result) else None)
        print(f"{hidden.query.text} at {hidden.span[0] / 10:.0f} s: {places[-1]}")
    among = {
        best: sum(place is not None and place <= best for place in places) for best in (1, 10, TOP)
    }
    print(f"hours of {HOURS} in which it is among the best …: {among}")
    assert among[10] >= 3
    assert among[TOP] >= 12


def tiou(one: tuple[int, int], other: tuple[int, int]) -> float:
    common = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return common / (one[1] - one[0] + other[1] - other[0] - common)
