"""Raw annotations and videos → a validated query index, its boxes, and a report of every defect."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets import Parsed, Progress, parser_of, quiet
from pipeline.datasets.videos import fit_to_video, note_edit_lists, probe_videos
from pipeline.decode import VideoFacts
from pipeline.errors import VideoError
from pipeline.records import FORMAT, Query, Tracks, write_json, write_jsonl


@dataclass(frozen=True)
class PrepareReport:
    """What was written. `left_out`: entries and queries that are not in the index; `without_video`, `without_boxes`:
    queries in the index whose video, or whose truth's boxes, are not at hand."""

    dataset: str
    index_path: Path
    queries: int
    videos: int
    splits: dict[str, int]
    left_out: int
    without_video: int
    without_boxes: int
    defects: list[dict[str, Any]] = field(repr=False)

    @property
    def failures(self) -> int:
        """How many inputs failed: what is left out, and what is in the index with its video or its boxes absent."""
        return self.left_out + max(self.without_video, self.without_boxes)

    def exit_code(self, allow_failed: float = 0) -> int:
        """0, or 1 where more failed than allowed: a share of all inputs if below 1, else a count."""
        limit = allow_failed * (self.queries + self.left_out) if allow_failed < 1 else allow_failed
        return int(self.failures > limit)


def prepare(dataset: str, root: Path, index_path: Path, progress: Progress = quiet) -> PrepareReport:
    """Write `index_path`, and `tracks.npz` and `defects.json` beside it; `progress(done, total)` counts files, then videos.

    A query whose video cannot be used is left out, and named. Where a data set's annotations are at hand but none of
    its videos is, the index is written from the annotations alone.
    """
    parsed = parser_of(dataset)(Path(root), progress)
    facts = dict(parsed.facts)
    facts |= probe_videos(parsed.folder, {query.path for query in parsed.queries} - set(facts), progress)
    queries, without_video = _with_usable_videos(parsed, facts)
    note_edit_lists(facts, parsed.defects)
    report = PrepareReport(
        dataset=dataset,
        index_path=Path(index_path),
        queries=len(queries),
        videos=len({query.video for query in queries}),
        splits=dict(sorted(Counter(query.split for query in queries).items())),
        left_out=parsed.defects.excluded,
        without_video=without_video,
        without_boxes=sum(query.truth is not None and query.truth.track is None for query in queries),
        defects=parsed.defects.to_list(),
    )
    _write(report, queries, parsed.tracks)
    return report


def _with_usable_videos(parsed: Parsed, facts: dict[str, VideoFacts | VideoError]) -> tuple[list[Query], int]:
    """The queries that stay, and how many of them are without a video because there is none at all."""
    if parsed.queries and all(isinstance(found, VideoError) and found.reason == "missing" for found in facts.values()):
        videos = {query.video for query in parsed.queries}
        parsed.defects.add("no videos", str(parsed.folder), "not one video is there; kept as the annotations state them", count=len(videos))
        return parsed.queries, len(parsed.queries)
    kept = []
    for query in parsed.queries:
        found = facts[query.path]
        if isinstance(found, VideoError):
            parsed.defects.add(f"video {found.reason}", query.id, found.detail, excluded=True)
            continue
        fitted = fit_to_video(query, found, parsed.defects)
        if fitted is not None:
            kept.append(fitted)
    return kept, 0


def _write(report: PrepareReport, queries: list[Query], tracks: Tracks) -> None:
    """The three files, the index last: where it is, the others are."""
    used = Tracks({key: tracks[key] for key in sorted({q.truth.track for q in queries if q.truth and q.truth.track})})
    used.save(report.index_path.with_name("tracks.npz"))
    summary = {
        "format": FORMAT,
        "dataset": report.dataset,
        "queries": report.queries,
        "videos": report.videos,
        "splits": report.splits,
        "left_out": report.left_out,
        "without_video": report.without_video,
        "without_boxes": report.without_boxes,
        "defects": report.defects,
    }
    write_json(report.index_path.with_name("defects.json"), summary)
    write_jsonl(report.index_path, queries)
