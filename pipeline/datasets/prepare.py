"""Preparation of a data set: a validated query index, its boxes, and a report of all defects."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets import ParsedDataset, ProgressCallback, get_parser, ignore_progress
from pipeline.datasets.parsed import NO_SPLIT, ProbeResults
from pipeline.datasets.video_checks import fit_to_video, log_edit_lists, probe_videos
from pipeline.errors import InputError, VideoError
from pipeline.io.jsonl import write_json, write_jsonl
from pipeline.io.strict_json import parse_json, read_lines
from pipeline.records import FORMAT, Query
from pipeline.tracks import Tracks


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split.

    Attributes:
        queries: Queries in the index.
        videos: Videos of these queries.
        left_out: Excluded queries by kind of defect, the most frequent first.
        without_video: Queries in the index that have no video.
        without_boxes: Queries in the index whose ground truth has no boxes.
    """

    queries: int
    videos: int
    left_out: dict[str, int]
    without_video: int
    without_boxes: int


@dataclass(frozen=True)
class PrepareReport:
    """The counts and defects of a prepared data set.

    Attributes:
        dataset: Name of the data set.
        index_path: The written index.
        queries: Queries in the index.
        videos: Videos of these queries.
        checked_videos: Videos whose files were opened.
        edit_lists: Checked videos whose container hides some of their frames.
        split_counts: Counts by split. Entries excluded before their split was known are in the
            split `?`.
        defects: Defects by kind, as `DefectLog.to_list` returns them.
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
        """Number of queries in the index, for each split that has some."""
        result = {}
        for split, counts in self.split_counts.items():
            if counts.queries:
                result[split] = counts.queries
        return result

    @property
    def num_excluded(self) -> int:
        """Number of excluded queries; an unreadable entry counts as one query."""
        return sum(sum(counts.left_out.values()) for counts in self.split_counts.values())

    @property
    def without_video(self) -> int:
        """Number of queries in the index that have no video."""
        return sum(counts.without_video for counts in self.split_counts.values())

    @property
    def without_boxes(self) -> int:
        """Number of queries in the index whose ground truth has no boxes."""
        return sum(counts.without_boxes for counts in self.split_counts.values())

    @property
    def num_failures(self) -> int:
        """Number of failed queries: excluded, or in the index without their video or boxes."""
        return self.num_excluded + max(self.without_video, self.without_boxes)

    def exit_code(self, allow_failed: float = 0) -> int:
        """Return the exit code of the command.

        Args:
            allow_failed: Allowed failures: a share of all queries if below 1, else a count.

        Returns:
            1 if more queries failed than allowed, else 0.
        """
        limit = allow_failed
        if allow_failed < 1:
            limit = allow_failed * (self.queries + self.num_excluded)
        return int(self.num_failures > limit)


def prepare(
    dataset: str, root: Path, index_path: Path, progress: ProgressCallback = ignore_progress
) -> PrepareReport:
    """Parse a data set, check its videos, and write its index.

    `tracks.npz` and `defects.json` are written next to the index. A query with an unusable video is
    excluded and named in the report. If no video exists at all, the index is written from the
    annotations alone.

    Args:
        dataset: Name of the data set.
        root: Folder of the data set; for `jsonl`, the file.
        index_path: The index to write, a `.jsonl` file.
        progress: Called as `progress(done, total)`, first for files, then for videos.

    Returns:
        The report.

    Raises:
        InputError: The name is unknown, `index_path` would overwrite another file, or the
            annotations are missing or not in the data set's format.
    """
    root = Path(root)
    index_path = Path(index_path)
    check_index_path(index_path, root)
    parsed_dataset = get_parser(dataset)(root, progress)
    return write_index(dataset, parsed_dataset, index_path, progress)


def check_index_path(path: Path, root: Path) -> None:
    """Check that writing an index destroys no other file.

    Args:
        path: The index to write.
        root: Folder or file of the data set.

    Raises:
        InputError: The path is not a `.jsonl` file, is the data set's own file, or is an existing
            file that is not an index.
    """
    if path.suffix != ".jsonl":
        raise InputError(
            f"the index {path} must be called <name>.jsonl, so that it cannot overwrite a file "
            f"of another kind; change --index"
        )
    if path.exists() and not path.is_file():
        raise InputError(f"the index {path} is a folder or a device; give a file with --index")
    if path.exists() and root.exists() and path.samefile(root):
        raise InputError(
            f"the index {path} is the data set's own file; give another file with --index"
        )
    if path.is_file() and not _is_index(path):
        raise InputError(
            f"{path} exists and is not an index, so it is not overwritten; "
            f"give another file with --index"
        )


def _is_index(path: Path) -> bool:
    """Return True if the first line is a record of an index, or if the file has no line."""
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
    """Check a parsed data set against its videos, and write its index.

    Args:
        dataset: Name of the data set.
        parsed_dataset: The parsed data set; defects are added to its log.
        index_path: The index to write.
        progress: Called as `progress(done, total)` after each probed video.

    Returns:
        The report.
    """
    # Probe the videos that the parser has not probed.
    probe_results = dict(parsed_dataset.probe_results)
    query_paths = {query.path for query in parsed_dataset.queries}
    missing_paths = query_paths - set(probe_results)
    probe_results |= probe_videos(parsed_dataset.folder, missing_paths, progress)

    # Exclude queries with unusable videos.
    split_by_id = {query.id: query.split for query in parsed_dataset.queries}
    queries, has_no_videos = _select_usable_queries(parsed_dataset, probe_results)
    log_edit_lists(probe_results, parsed_dataset.defects)

    num_checked = 0
    for result in probe_results.values():
        is_missing = isinstance(result, VideoError) and result.reason == "missing"
        num_checked += not is_missing

    defects = parsed_dataset.defects.to_list()
    report = PrepareReport(
        dataset=dataset,
        index_path=index_path,
        queries=len(queries),
        videos=len({query.video for query in queries}),
        checked_videos=num_checked,
        edit_lists=parsed_dataset.defects.count("edit list"),
        split_counts=_count_splits(queries, defects, split_by_id, has_no_videos),
        defects=defects,
    )
    _write_files(report, queries, parsed_dataset.tracks)
    return report


def _select_usable_queries(
    parsed: ParsedDataset, probe_results: ProbeResults
) -> tuple[list[Query], bool]:
    """Return the usable queries, fitted to their videos, and True if no video exists at all."""
    # Without any video, the annotations alone make the index.
    has_no_videos = bool(parsed.queries) and all(
        isinstance(result, VideoError) and result.reason == "missing"
        for result in probe_results.values()
    )
    if has_no_videos:
        videos = {query.video for query in parsed.queries}
        detail = "no video was found; queries are kept as annotated"
        parsed.defects.add("no videos", str(parsed.folder), detail, count=len(videos))
        return parsed.queries, True

    queries = []
    for query in parsed.queries:
        result = probe_results[query.path]
        if isinstance(result, VideoError):
            parsed.defects.add(f"video {result.reason}", query.id, result.detail, excluded=True)
            continue
        fitted_query = fit_to_video(query, result, parsed.defects)
        if fitted_query is not None:
            queries.append(fitted_query)
    return queries, False


def _count_splits(
    queries: list[Query],
    defects: list[dict[str, Any]],
    split_by_id: dict[str, str],
    has_no_videos: bool,
) -> dict[str, SplitCounts]:
    """Count queries and excluded queries by split; `split_by_id` holds all annotated queries."""
    queries_by_split: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        queries_by_split[query.split].append(query)
    left_out = _count_excluded(defects, split_by_id)

    split_counts = {}
    for split in sorted({*queries_by_split, *left_out}):
        split_queries = queries_by_split[split]
        num_without_boxes = 0
        for query in split_queries:
            if query.truth is not None and query.truth.track is None:
                num_without_boxes += 1

        split_counts[split] = SplitCounts(
            queries=len(split_queries),
            videos=len({query.video for query in split_queries}),
            left_out=dict(left_out[split].most_common()),
            without_video=len(split_queries) if has_no_videos else 0,
            without_boxes=num_without_boxes,
        )
    return split_counts


def _count_excluded(
    defects: list[dict[str, Any]], split_by_id: dict[str, str]
) -> dict[str, Counter[str]]:
    """Count the excluded queries of each split by kind of defect."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for defect in defects:
        for entry in defect["entries"]:
            if entry["outcome"] != "left out":
                continue

            # Defects found after parsing have no split; their entries are query ids.
            split = entry["split"]
            if split == NO_SPLIT:
                split = split_by_id.get(entry["entry"], NO_SPLIT)
            counts[split][defect["kind"]] += entry["count"]
    return counts


def _write_files(report: PrepareReport, queries: list[Query], tracks: Tracks) -> None:
    """Write tracks, defects and index; the index last, so that it implies the other two."""
    # Keep only the tracks of queries in the index.
    track_keys = set()
    for query in queries:
        if query.truth and query.truth.track:
            track_keys.add(query.truth.track)
    used_tracks = Tracks({key: tracks[key] for key in sorted(track_keys)})
    used_tracks.save(report.index_path.with_name("tracks.npz"))

    totals = {split: asdict(counts) for split, counts in report.split_counts.items()}
    summary = {
        "format": FORMAT,
        "dataset": report.dataset,
        "queries": report.queries,
        "videos": report.videos,
        "checked_videos": report.checked_videos,
        "edit_lists": report.edit_lists,
        "splits": report.queries_by_split,
        "totals": totals,
        "left_out": report.num_excluded,
        "without_video": report.without_video,
        "without_boxes": report.without_boxes,
        "defects": report.defects,
    }
    write_json(report.index_path.with_name("defects.json"), summary)

    write_jsonl(report.index_path, queries)
