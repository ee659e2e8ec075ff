"""Raw annotations and videos → a validated query index, its boxes, and a report of every defect."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets import ParsedDataset, ProgressCallback, get_parser, ignore_progress
from pipeline.datasets.parsed import NO_SPLIT
from pipeline.datasets.video_checks import fit_to_video, log_edit_lists, probe_videos
from pipeline.errors import InputError, VideoError
from pipeline.io.jsonl import write_json, write_jsonl
from pipeline.io.strict_json import parse_json, read_lines
from pipeline.records import FORMAT, Query
from pipeline.tracks import Tracks
from pipeline.video import VideoMetadata

ProbeResults = dict[str, VideoMetadata | VideoError]


@dataclass(frozen=True)
class SplitCounts:
    """One split: `queries` in the index, about so many `videos`; how many queries were `left_out`, by kind of defect; and how
    many of the index's queries have no video, or a truth without boxes.
    """

    queries: int
    videos: int
    left_out: dict[str, int]
    without_video: int
    without_boxes: int


@dataclass(frozen=True)
class PrepareReport:
    """What was written. `totals` by split (`?`: left out before its split was known); `checked`: videos whose files were
    looked at, `edit_lists`: those of them that hide frames.
    """

    dataset: str
    index_path: Path
    queries: int
    videos: int
    checked_videos: int
    edit_lists: int
    split_counts: dict[str, SplitCounts] = field(repr=False)
    defects: list[dict[str, Any]] = field(repr=False)

    @property
    def queries_by_split(self) -> dict[str, int]:
        """Queries in the index, by split."""
        return {split: total.queries for split, total in self.split_counts.items() if total.queries}

    @property
    def left_out(self) -> int:
        """Queries that are not in the index; an entry whose queries cannot be counted is one."""
        return sum(sum(total.left_out.values()) for total in self.split_counts.values())

    @property
    def without_video(self) -> int:
        """Queries in the index whose video is not at hand."""
        return sum(total.without_video for total in self.split_counts.values())

    @property
    def without_boxes(self) -> int:
        """Queries in the index whose truth is a span alone."""
        return sum(total.without_boxes for total in self.split_counts.values())

    @property
    def num_failures(self) -> int:
        """How many queries failed: those left out, and those in the index with their video or their boxes absent."""
        return self.left_out + max(self.without_video, self.without_boxes)

    def exit_code(self, allow_failed: float = 0) -> int:
        """0, or 1 where more failed than allowed: a share of all queries if below 1, else a count."""
        limit = allow_failed * (self.queries + self.left_out) if allow_failed < 1 else allow_failed
        return int(self.num_failures > limit)


def prepare(
    dataset: str, root: Path, index_path: Path, progress: ProgressCallback = ignore_progress
) -> PrepareReport:
    """Write `index_path`, and `tracks.npz` and `defects.json` beside it; `progress(done, total)` counts files, then videos.

    A query whose video cannot be used is left out, and named. Where a data set's annotations are at hand but none of
    its videos is, the index is written from the annotations alone.
    """
    root, index_path = Path(root), Path(index_path)
    check_index_path(index_path, root)
    return write_index(dataset, get_parser(dataset)(root, progress), index_path, progress)


def check_index_path(path: Path, root: Path) -> None:
    """An InputError where writing an index to `path` would destroy something else: `root`, or a file that is no index."""
    if path.suffix != ".jsonl":
        raise InputError(
            f"the index {path} must be called <name>.jsonl, so that no other file is taken for it; change --index"
        )
    if path.exists() and not path.is_file():
        raise InputError(f"the index {path} is a folder or a device; name a file with --index")
    if path.exists() and root.exists() and path.samefile(root):
        raise InputError(
            f"the index {path} is the data set's own file; name another file with --index"
        )
    if path.is_file() and not _is_index(path):
        raise InputError(
            f"{path} exists and is no index, so it is not written over; name another file with --index"
        )


def _is_index(path: Path) -> bool:
    """Whether the first line is a record of an index; a file without a line is an index of nothing."""
    for _, line in read_lines(path):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(record, dict) and "format" in record
    return True


def write_index(
    dataset: str,
    parsed_dataset: ParsedDataset,
    index_path: Path,
    progress: ProgressCallback = ignore_progress,
) -> PrepareReport:
    """The second half of `prepare`: hold what was parsed against its videos, and write the three files."""
    facts: ProbeResults = dict(parsed_dataset.probe_results)
    facts |= probe_videos(
        parsed_dataset.folder,
        {query.path for query in parsed_dataset.queries} - set(facts),
        progress,
    )
    known = {query.id: query.split for query in parsed_dataset.queries}
    queries, without_video = _select_usable_queries(parsed_dataset, facts)
    log_edit_lists(facts, parsed_dataset.defects)
    defects = parsed_dataset.defects.to_list()
    report = PrepareReport(
        dataset=dataset,
        index_path=index_path,
        queries=len(queries),
        videos=len({query.video for query in queries}),
        checked_videos=sum(
            isinstance(found, VideoMetadata) or found.reason != "missing"
            for found in facts.values()
        ),
        edit_lists=parsed_dataset.defects.count("edit list"),
        split_counts=_count_splits(queries, defects, known, without_video),
        defects=defects,
    )
    _write_files(report, queries, parsed_dataset.tracks)
    return report


def _count_splits(
    queries: list[Query], defects: list[dict[str, Any]], known: dict[str, str], no_videos: bool
) -> dict[str, SplitCounts]:
    """The totals by split; `known`: the split of every query the annotations hold, by id; `no_videos`: not one is there."""
    left_out: dict[str, Counter[str]] = defaultdict(Counter)
    for defect in defects:
        for item in defect["entries"]:
            if item["outcome"] == "left out":
                split = (
                    known.get(item["entry"], NO_SPLIT)
                    if item["split"] == NO_SPLIT
                    else item["split"]
                )
                left_out[split][defect["kind"]] += item["count"]
    by_split: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        by_split[query.split].append(query)
    return {
        split: SplitCounts(
            queries=len(by_split[split]),
            videos=len({query.video for query in by_split[split]}),
            left_out=dict(left_out[split].most_common()),
            without_video=len(by_split[split]) if no_videos else 0,
            without_boxes=sum(
                query.truth is not None and query.truth.track is None for query in by_split[split]
            ),
        )
        for split in sorted({*by_split, *left_out})
    }


def _select_usable_queries(parsed: ParsedDataset, facts: ProbeResults) -> tuple[list[Query], bool]:
    """The queries that stay, and whether they do without a video because there is none at all."""
    if parsed.queries and all(
        isinstance(found, VideoError) and found.reason == "missing" for found in facts.values()
    ):
        videos = {query.video for query in parsed.queries}
        parsed.defects.add(
            "no videos",
            str(parsed.folder),
            "not one video is there; kept as the annotations state them",
            count=len(videos),
        )
        return parsed.queries, True
    kept = []
    for query in parsed.queries:
        found = facts[query.path]
        if isinstance(found, VideoError):
            parsed.defects.add(f"video {found.reason}", query.id, found.detail, excluded=True)
            continue
        fitted = fit_to_video(query, found, parsed.defects)
        if fitted is not None:
            kept.append(fitted)
    return kept, False


def _write_files(report: PrepareReport, queries: list[Query], tracks: Tracks) -> None:
    """The three files, the index last: where it is, the others are."""
    used = Tracks(
        {
            key: tracks[key]
            for key in sorted({q.truth.track for q in queries if q.truth and q.truth.track})
        }
    )
    used.save(report.index_path.with_name("tracks.npz"))
    summary = {
        "format": FORMAT,
        "dataset": report.dataset,
        "queries": report.queries,
        "videos": report.videos,
        "checked_videos": report.checked_videos,
        "edit_lists": report.edit_lists,
        "splits": report.queries_by_split,
        "totals": {split: asdict(totals) for split, totals in report.split_counts.items()},
        "left_out": report.left_out,
        "without_video": report.without_video,
        "without_boxes": report.without_boxes,
        "defects": report.defects,
    }
    write_json(report.index_path.with_name("defects.json"), summary)
    write_jsonl(report.index_path, queries)
