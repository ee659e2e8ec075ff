"""The digest of the code that trains: what changes it, and what leaves it alone."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from grounding.systems import checkpoint
from grounding.systems.checkpoint import compute_code_digest
from pipeline import sampling

REPOSITORY = Path(checkpoint.__file__).parents[2]
NINE_FOLDERS = [
    "structures",
    "modules",
    "models",
    "losses",
    "data",
    "metrics",
    "systems",
    "inference",
    "training",
]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source code, of which the digest is taken."""
    for package in ("grounding", "pipeline"):
        shutil.copytree(
            REPOSITORY / package,
            tmp_path / package,
            ignore=lambda _, names: [name for name in names if "." in name and name[-3:] != ".py"],
        )
    digest_file = tmp_path / "grounding" / "systems" / "checkpoint.py"
    monkeypatch.setattr(checkpoint, "__file__", str(digest_file))
    monkeypatch.setattr(sampling, "__file__", str(tmp_path / "pipeline" / "sampling.py"))
    return tmp_path


def reword(source: str) -> str:
    """Replace every docstring of a file, and add a comment before and after its code."""
    lines = source.splitlines()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docstrings = [
        node
        for node in nodes
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for node in sorted(docstrings, key=lambda node: -node.lineno):
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + '"""Other words."""']
    return "\n".join(["# another comment", *lines, "# another comment", ""])


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_copy_of_the_code_has_its_digest(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = compute_code_digest(), compute_code_digest(include_encoders=True)
    monkeypatch.undo()
    assert digests == (compute_code_digest(), compute_code_digest(include_encoders=True))
    assert digests[0] != digests[1]


def test_docstrings_and_comments_anywhere_keep_it(code: Path) -> None:
    digest = compute_code_digest(include_encoders=True)
    changed = 0
    for path in code.rglob("*.py"):
        source = path.read_text()
        path.write_text(reword(source))
        changed += path.read_text().count('"""Other words."""')
    assert changed > 1000
    assert compute_code_digest(include_encoders=True) == digest


def test_the_report_keeps_it(code: Path) -> None:
    """Changed statements, a new file, a file that is gone."""
    digest = compute_code_digest(include_encoders=True)
    files = sorted((code / "grounding" / "report").rglob("*.py"))
    assert len(files) > 5
    for path in files[1:]:
        append(path, "\nCHANGED = 1\n")
    files[0].unlink()
    (code / "grounding" / "report" / "new.py").write_text("NEW = 1\n")
    assert compute_code_digest(include_encoders=True) == digest


@pytest.mark.parametrize("folder", NINE_FOLDERS)
def test_a_statement_in_each_folder_that_trains_changes_it(code: Path, folder: str) -> None:
    digest = compute_code_digest()
    path = max((code / "grounding" / folder).rglob("*.py"), key=lambda path: path.stat().st_size)
    append(path, "\nCHANGED = 1\n")
    assert compute_code_digest() != digest


def test_a_changed_default_inside_a_function_changes_it(code: Path) -> None:
    digest = compute_code_digest()
    path = code / "grounding" / "training" / "lr_schedule.py"
    source = path.read_text()
    assert source.count("0.05") == 1
    path.write_text(source.replace("0.05", "0.06"))
    assert compute_code_digest() != digest


@pytest.mark.parametrize("folder", ["encoders", "features"])
def test_the_encoders_count_only_where_they_train(code: Path, folder: str) -> None:
    digests = compute_code_digest(), compute_code_digest(include_encoders=True)
    path = max((code / "pipeline" / folder).rglob("*.py"), key=lambda path: path.stat().st_size)
    append(path, "\nCHANGED = 1\n")
    assert compute_code_digest() == digests[0]
    assert compute_code_digest(include_encoders=True) != digests[1]
