"""HC-STVG's annotation files: search for the file of each split, and check of the version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.datasets.file_search import describe_root_problem
from pipeline.errors import InputError
from pipeline.io.strict_json import read_json

V1_FIELDS = {"caption", "width", "height"}
"""Fields that only files of version 1 have."""
V2_FIELDS = {"English", "img_size", "ed_frame"}
"""Fields that only files of version 2 have."""
ANNOTATION_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "1": {"train": ("train.json",), "test": ("test.json",)},
    "2": {
        "train": ("trainv2.json", "train_v2.json", "train.json"),
        "val": ("valv2.json", "val_v2.json", "val.json"),
        "test": ("testv2.json", "test_v2.json", "queryv2.json", "query_v2.json", "test.json"),
    },
}
"""Possible file names of each split, by version.

The first name with a file is used; of several files with this name, the first folder's.
"""
ANNOTATION_FOLDERS = (".", "annotations", "annos", "annos/hcstvg_v{version}", "anno_v{version}")
EXPECTED_LAYOUT = """{root} {problem}. Put there
  {files}
      its sentences and boxes (any of them; also in annotations/ or annos/)
  video/**/*.mp4, *.mkv
      its videos (any folders below {root} will do)
or give another folder with --root."""


def find_annotation_files(version: str, root: Path) -> dict[str, Path]:
    """Search for the annotation file of each split.

    Args:
        version: "1" or "2".
        root: Folder of the data set.

    Returns:
        The file of each split that has one.

    Raises:
        InputError: No split has a file; the message describes the expected layout.
    """
    folders = [root / folder.format(version=version) for folder in ANNOTATION_FOLDERS]
    files = {}
    for split, names in ANNOTATION_FILES[version].items():
        path = _find_first_file(folders, names)
        if path is not None:
            files[split] = path

    if not files:
        names_by_split = ANNOTATION_FILES[version].values()
        expected_names = ", ".join(names[0] for names in names_by_split)
        problem = describe_root_problem(root, f"holds no HC-STVG v{version} annotations")
        raise InputError(EXPECTED_LAYOUT.format(root=root, problem=problem, files=expected_names))
    return files


def _find_first_file(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    """Return the first existing file, in the order of the names, then of the folders."""
    for name in names:
        for folder in folders:
            path = folder / name
            if path.is_file():
                return path
    return None


def load_entries(version: str, path: Path, root: Path) -> dict[str, Any]:
    """Load the entries of one annotation file, not validated.

    Args:
        version: The expected version, "1" or "2".
        path: The file.
        root: Folder of the data set.

    Returns:
        The entries by the video's file name.

    Raises:
        InputError: The file is not an object of entries, or belongs to the other version.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must hold an object with an entry for each video, "
            f"not {type(content).__name__}; download it again"
        )
    _check_version(version, path, root, content)
    return content


def _check_version(version: str, path: Path, root: Path, content: dict[str, Any]) -> None:
    """Raise an InputError if most entries have the form of the other version only.

    A path that names the expected version is trusted.
    """
    other_version = {"1": "2", "2": "1"}[version]
    count = sum(_detect_version(entry) == other_version for entry in content.values())
    is_majority = count * 2 > len(content)

    if is_majority and f"v{version}" not in str(path.relative_to(root)):
        raise InputError(
            f"{path} is a file of HC-STVG v{other_version}: {count} of its {len(content)} entries "
            f"have the form of this version only; read it with --dataset hcstvg-v{other_version}, "
            f"or give the folder of v{version} with --root"
        )


def _detect_version(entry: object) -> str | None:
    """Return the only version that has entries of this form; None if both or neither have.

    Bare sentences, entries without ground truth and entries with `ed_frame` are of version 2.
    """
    if isinstance(entry, str):
        return "2"
    if not isinstance(entry, dict):
        return None

    fields = set(entry)
    has_v1_fields = bool(fields & V1_FIELDS)
    has_v2_fields = bool(fields & V2_FIELDS)

    if has_v1_fields and not has_v2_fields and "bbox" in fields:
        return "1"
    if has_v2_fields and not has_v1_fields and ("ed_frame" in fields or "bbox" not in fields):
        return "2"
    return None
