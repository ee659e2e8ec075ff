"""HC-STVG's annotation files: where each split's may lie, and whether they are the version's that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.datasets.file_search import describe_root_problem
from pipeline.errors import InputError
from pipeline.io.strict_json import read_json

V1_FIELDS, V2_FIELDS = {"caption", "width", "height"}, {"English", "img_size", "ed_frame"}
"""The fields that only one version's files have."""
ANNOTATION_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "1": {"train": ("train.json",), "test": ("test.json",)},
    "2": {
        "train": ("trainv2.json", "train_v2.json", "train.json"),
        "val": ("valv2.json", "val_v2.json", "val.json"),
        "test": ("testv2.json", "test_v2.json", "queryv2.json", "query_v2.json", "test.json"),
    },
}
"""Each split's file by version; the first name that is found, then the first place, counts."""
ANNOTATION_FOLDERS = (".", "annotations", "annos", "annos/hcstvg_v{version}", "anno_v{version}")
EXPECTED_LAYOUT = """{root} {problem}. Put there
  {files}
      its sentences and boxes (any of them; also in annotations/ or annos/)
  video/**/*.mp4, *.mkv
      its videos (any folders below {root} will do)
or name another folder with --root."""


def find_annotation_files(version: str, root: Path) -> dict[str, Path]:
    """The file of each split that is there; an InputError says what to put below `root` where none is."""
    places = [root / place.format(version=version) for place in ANNOTATION_FOLDERS]
    found = {
        split: [place / name for name in names for place in places]
        for split, names in ANNOTATION_FILES[version].items()
    }
    files = {
        split: path
        for split, paths in found.items()
        if (path := next((path for path in paths if path.is_file()), None))
    }
    if not files:
        names = ", ".join(choices[0] for choices in ANNOTATION_FILES[version].values())
        problem = describe_root_problem(root, f"holds no HC-STVG v{version} annotations")
        raise InputError(EXPECTED_LAYOUT.format(root=root, problem=problem, files=names))
    return files


def load_entries(version: str, path: Path, root: Path) -> dict[str, Any]:
    """The entries of one file as they are written, by video; an InputError where it is no such file, or the other version's."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must hold an object with an entry for each video, not {type(content).__name__}; download it again"
        )
    _check_version(version, path, root, content)
    return content


def _check_version(version: str, path: Path, root: Path, content: dict[str, Any]) -> None:
    """An InputError where most entries are as only the other version writes them, in a file whose path does not name this one."""
    other = {"1": "2", "2": "1"}[version]
    count = sum(_detect_version(entry) == other for entry in content.values())
    if count * 2 > len(content) and f"v{version}" not in str(path.relative_to(root)):
        raise InputError(
            f"{path} is HC-STVG v{other}'s: {count} of its {len(content)} entries are as only that version writes them; "
            f"read it with --dataset hcstvg-v{other}, or name v{version}'s own folder with --root"
        )


def _detect_version(entry: object) -> str | None:
    """The version that alone writes such entries: without truth, or with `ed_frame`, the second; None where it cannot be told."""
    if not isinstance(entry, dict):
        return "2" if isinstance(entry, str) else None
    fields = set(entry)
    if "bbox" in fields and fields & V1_FIELDS and not fields & V2_FIELDS:
        return "1"
    return (
        "2"
        if fields & V2_FIELDS
        and not fields & V1_FIELDS
        and ("ed_frame" in fields or "bbox" not in fields)
        else None
    )
