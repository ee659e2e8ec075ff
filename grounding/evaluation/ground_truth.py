"""Ground truth of an evaluation, and predicted tubes, read from indexes and from files."""

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
    """Ground truth of one split, with its queries.

    An index gives all attributes. A file of the HC-STVG challenge gives only `true_tubes`, so that
    there are no baselines, forms or tags.

    Attributes:
        true_tubes: True tubes, and the data that protocols need.
        queries: Queries of the split.
        tracks: Boxes of all queries of the index.
        train_queries: Queries of the train split.
        dataset_name: Name of the data set, if it is known.
    """

    true_tubes: GroundTruthTubes
    queries: Sequence[Query] = ()
    tracks: Tracks = field(default_factory=Tracks)
    train_queries: Sequence[Query] = ()
    dataset_name: str | None = None

    @property
    def is_unlabeled(self) -> bool:
        """True if the split has queries and none has a ground truth, as in HC-STVG v2's test."""
        return bool(self.queries) and not len(self.true_tubes.tubes)

    @property
    def query_ids(self) -> list[str]:
        """Ids of all queries, with or without ground truth."""
        if self.queries:
            return [query.id for query in self.queries]
        return list(self.true_tubes.tubes.ids)

    @property
    def video_by_query(self) -> dict[str, str]:
        """Video of each query, by query id; in the challenge's file every id is a video."""
        if self.queries:
            return {query.id: query.video for query in self.queries}
        return {query_id: query_id for query_id in self.true_tubes.tubes.ids}


def load_ground_truth(path: Path, split: str, first_frame: int = FIRST_FRAME) -> GroundTruth:
    """Load the ground truth of a split.

    Args:
        path: An index, with `tracks.npz` beside it, or a .json file of the HC-STVG challenge.
        split: Split of the index. A challenge file is loaded as a whole.
        first_frame: Number of a video's first frame in a challenge file.

    Returns:
        The ground truth.

    Raises:
        InputError: The file cannot be read, or the index has no such split.
    """
    if path.suffix == ".json":
        return GroundTruth(GroundTruthTubes(read_challenge(path, first_frame)))

    queries, tracks = read_index(path)
    return ground_truth_for_split(queries, tracks, split, read_dataset_name(path))


def ground_truth_for_split(
    queries: Sequence[Query], tracks: Tracks, split: str, dataset_name: str | None = None
) -> GroundTruth:
    """Build the ground truth of one split of an index.

    Args:
        queries: All queries of the index.
        tracks: Boxes of the queries.
        split: The split.
        dataset_name: Name of the data set, if it is known.

    Returns:
        The ground truth.

    Raises:
        InputError: The index has no such split.
    """
    split_queries = select_split(queries, split)
    train_queries = [query for query in queries if query.split == "train"]
    return GroundTruth(
        true_tubes=GroundTruthTubes.from_index(split_queries, tracks, dataset_name),
        queries=split_queries,
        tracks=tracks,
        train_queries=train_queries,
        dataset_name=dataset_name,
    )


def read_dataset_name(index: Path) -> str | None:
    """Read the data set's name from the files beside an index.

    Args:
        index: The index. A store has `manifest.json` beside it, and stvg-prepare writes
            `defects.json` beside it.

    Returns:
        The name; None if neither file has one.
    """
    for file_name in ("manifest.json", "defects.json"):
        try:
            dataset_name = json.loads(index.with_name(file_name).read_bytes())["dataset"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(dataset_name, str):
            return dataset_name
    return None


def read_tubes(path: Path, first_frame: int = FIRST_FRAME) -> Tubes:
    """Read predicted tubes from a file.

    Args:
        path: One JSON object per line, or a .json file of the HC-STVG challenge.
        first_frame: Number of a video's first frame in a challenge file.

    Returns:
        The tubes.

    Raises:
        InputError: The file cannot be read; the message names the file.
    """
    if path.suffix == ".json":
        return read_challenge(path, first_frame)

    try:
        return Tubes.from_predictions(read_jsonl(path, Prediction))
    except InputError as error:
        prefix = "" if str(path) in str(error) else f"{path}: "
        raise InputError(f"{prefix}{error}; the challenge's file must end in .json") from None


def read_index(path: Path) -> tuple[list[Query], Tracks]:
    """Read an index and its boxes.

    Args:
        path: The index. If any query has boxes, `tracks.npz` must be beside it.

    Returns:
        The queries, and their boxes.

    Raises:
        InputError: A file cannot be read.
    """
    queries = list(read_jsonl(path, Query))
    has_boxes = any(query.truth is not None and query.truth.track is not None for query in queries)
    tracks = Tracks.load(path.with_name("tracks.npz")) if has_boxes else Tracks()
    return queries, tracks


def select_split(queries: Sequence[Query], split: str) -> list[Query]:
    """Select the queries of one split.

    Args:
        queries: All queries of an index.
        split: The split.

    Returns:
        Queries of the split, in order.

    Raises:
        InputError: The split has no query; the message lists the splits.
    """
    split_queries = [query for query in queries if query.split == split]
    if not split_queries:
        splits = ", ".join(sorted({query.split for query in queries})) or "none"
        raise InputError(f"no query is of split {split!r}; the index has {splits}")
    return split_queries
