"""What answers are judged by, and the answers: read from an index, from predictions, or from the challenge's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grounding.evaluation.hcstvg_challenge import FIRST_FRAME, read_challenge
from grounding.metrics.protocols import GroundTruthTubes
from grounding.structures.tubes import Tubes
from pipeline.errors import InputError
from pipeline.io.jsonl import read_jsonl
from pipeline.records import Prediction, Query
from pipeline.tracks import Tracks


@dataclass(frozen=True)
class GroundTruth:
    """One split's true tubes, and what is known about the queries.

    An index gives all of it; the challenge's file only the tubes, so that there are no baselines, forms or tags.
    """

    true_tubes: GroundTruthTubes
    queries: Sequence[Query] = ()
    tracks: Tracks = field(default_factory=Tracks)
    train_queries: Sequence[Query] = ()
    dataset_name: str | None = None

    @property
    def query_ids(self) -> list[str]:
        """All that may be answered, with or without a truth."""
        return [query.id for query in self.queries] or list(self.true_tubes.tubes.ids)

    @property
    def video_by_query(self) -> dict[str, str]:
        """Each query's video; in the challenge's file every id is one."""
        return {query.id: query.video for query in self.queries} or {
            name: name for name in self.true_tubes.tubes.ids
        }


def load_ground_truth(path: Path, split: str, first_frame: int = FIRST_FRAME) -> GroundTruth:
    """The truth in an index (`tracks.npz` beside it) or, where the name ends in .json, in the challenge's file (all of it)."""
    if path.suffix == ".json":
        return GroundTruth(GroundTruthTubes(read_challenge(path, first_frame)))
    queries, tracks = read_index(path)
    return ground_truth_for_split(queries, tracks, split, read_dataset_name(path))


def ground_truth_for_split(
    queries: Sequence[Query], tracks: Tracks, split: str, dataset_name: str | None = None
) -> GroundTruth:
    """The exam of one split of an index."""
    judged = select_split(queries, split)
    train = [query for query in queries if query.split == "train"]
    return GroundTruth(
        GroundTruthTubes.from_index(judged, tracks, dataset_name),
        judged,
        tracks,
        train,
        dataset_name,
    )


def read_dataset_name(index: Path) -> str | None:
    """The data set's name, from what lies beside its index: a store's manifest or prepare's report; None where neither does."""
    for name in ("manifest.json", "defects.json"):
        try:
            found = json.loads(index.with_name(name).read_bytes())["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(found, str):
            return found
    return None


def read_tubes(path: Path, first_frame: int = FIRST_FRAME) -> Tubes:
    """Predicted tubes from a file of one JSON object per line or, where the name ends in .json, the challenge's."""
    if path.suffix == ".json":
        return read_challenge(path, first_frame)
    try:
        return Tubes.from_predictions(read_jsonl(path, Prediction))
    except InputError as error:
        place = "" if str(path) in str(error) else f"{path}: "
        raise InputError(f"{place}{error}; the challenge's file must end in .json") from None


def read_index(path: Path) -> tuple[list[Query], Tracks]:
    """An index and the boxes beside it (`tracks.npz`, which only an index with boxes needs)."""
    queries = list(read_jsonl(path, Query))
    boxed = any(query.truth is not None and query.truth.track is not None for query in queries)
    return queries, Tracks.load(path.with_name("tracks.npz")) if boxed else Tracks()


def select_split(queries: Sequence[Query], split: str) -> list[Query]:
    """The queries of one split; a split that is not there is refused with those that are."""
    found = [query for query in queries if query.split == split]
    if not found:
        raise InputError(
            f"no query is of split {split!r}; the index has {', '.join(sorted({query.split for query in queries})) or 'none'}"
        )
    return found
