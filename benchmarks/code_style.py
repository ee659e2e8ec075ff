"""Measure the density, names and documentation of code.

    python -m benchmarks.code_style [FOLDER ...]

Prints one column per folder. The figures indicate a trend and gate nothing: readable code goes
before a figure.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

EVERYDAY_WORDS = frozenset(
    [
        "own",
        "found",
        "place",
        "seen",
        "told",
        "held",
        "look",
        "looks",
        "heard",
        "asked",
        "made",
        "known",
        "apart",
        "together",
        "least",
        "theirs",
        "ours",
        "kept",
        "drawn",
        "built",
        "given",
        "whole",
        "there",
        "wanted",
        "taken",
        "shown",
        "answer",
        "answers",
        "many",
        "much",
        "one",
        "other",
        "others",
        "rest",
        "same",
        "such",
        "then",
        "thing",
        "things",
        "what",
        "where",
        "which",
        "who",
        "why",
        "how",
        "about",
        "again",
        "ahead",
        "alike",
        "both",
        "each",
        "few",
        "left",
        "most",
        "near",
        "next",
    ]
)
"""Everyday words that carry no information as the whole name of a variable."""

RELATIVE_WORDS = re.compile(r"\b(what|which|that|where)\b", re.IGNORECASE)
SECTIONS = re.compile(r"^\s*(Args|Arguments|Returns|Yields|Raises|Attributes):", re.MULTILINE)
LONG_LINE = 120
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Counts:
    """Everything counted over the files of one folder."""

    lines: int = 0
    code_lines: int = 0
    code_characters: int = 0
    long_lines: int = 0
    comment_lines: int = 0
    comprehensions: int = 0
    tuple_assignments: int = 0
    bound_names: int = 0
    everyday_names: int = 0
    docstring_words: int = 0
    relative_words: int = 0
    functions: int = 0
    documented_functions: int = 0
    sectioned_functions: int = 0
    function_lines: int = 0
    blank_function_lines: int = 0
    nodes_per_line: list[float] = field(default_factory=list)

    def rows(self) -> dict[str, float]:
        """Return the figures by name."""
        thousand = max(self.code_lines, 1) / 1000

        return {
            "characters per line of code": self.code_characters / max(self.code_lines, 1),
            f"lines longer than {LONG_LINE}, %": 100 * self.long_lines / max(self.lines, 1),
            "blank lines inside functions of 12 lines and more, %": 100
            * self.blank_function_lines
            / max(self.function_lines, 1),
            "comment lines per 1,000 lines of code": self.comment_lines / thousand,
            "comprehensions per 1,000 lines of code": self.comprehensions / thousand,
            "`a, b = c, d` per 1,000 lines of code": self.tuple_assignments / thousand,
            "bound names that are one everyday word, %": 100
            * self.everyday_names
            / max(self.bound_names, 1),
            "what/which/that/where per 100 words of docstring": 100
            * self.relative_words
            / max(self.docstring_words, 1),
            "functions with a docstring, %": 100
            * self.documented_functions
            / max(self.functions, 1),
            "... of these with Args/Returns/Raises, %": 100
            * self.sectioned_functions
            / max(self.documented_functions, 1),
            "syntax nodes per line of function, median": statistics.median(
                self.nodes_per_line or [0.0]
            ),
        }


def count_file(path: Path, counts: Counts) -> None:
    """Add one source file to the counts.

    Args:
        path: Path of the file.
        counts: Counts to update.
    """
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    tree = ast.parse(source)

    comment_lines = _comment_lines(path)
    docstring_lines = set(_docstring_lines(tree))

    counts.lines += len(lines)
    counts.long_lines += sum(len(line) > LONG_LINE for line in lines)
    counts.comment_lines += len(comment_lines)

    for line_number, line in enumerate(lines, start=1):
        is_text = line_number in comment_lines or line_number in docstring_lines
        if line.strip() and not is_text:
            counts.code_lines += 1
            counts.code_characters += len(line)

    for node in ast.walk(tree):
        _count_node(node, counts)
        if isinstance(node, Function):
            _count_function(node, lines, counts)


def _comment_lines(path: Path) -> set[int]:
    """Return the numbers of the lines that are a comment alone."""
    with path.open("rb") as file:
        return {
            token.start[0]
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
        }


def _docstring_lines(tree: ast.AST) -> Iterator[int]:
    """Yield the numbers of the lines of strings that stand alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _count_node(node: ast.AST, counts: Counts) -> None:
    """Add one node of a syntax tree to the counts."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        counts.comprehensions += 1

    if (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    ):
        counts.tuple_assignments += 1

    for name in _names_bound(node):
        counts.bound_names += 1
        counts.everyday_names += name.strip("_").lower() in EVERYDAY_WORDS


def _names_bound(node: ast.AST) -> Iterator[str]:
    """Yield the names of variables, parameters, functions, classes and attributes a node binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, Function | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr


def _count_function(function: Function, lines: list[str], counts: Counts) -> None:
    """Add a function: its docstring, blank lines and density."""
    docstring = ast.get_docstring(function)
    counts.functions += 1
    if docstring:
        counts.documented_functions += 1
        counts.sectioned_functions += bool(SECTIONS.search(docstring))
        counts.docstring_words += len(docstring.split())
        counts.relative_words += len(RELATIVE_WORDS.findall(docstring))

    body = function.body[1:] if docstring else function.body
    if not body:
        return

    first_line = body[0].lineno
    last_line = function.end_lineno or body[-1].lineno
    body_lines = lines[first_line - 1 : last_line]
    filled_lines = [line for line in body_lines if line.strip()]

    if len(body_lines) >= 12:
        counts.function_lines += len(body_lines)
        counts.blank_function_lines += len(body_lines) - len(filled_lines)

    if len(body_lines) >= 8:
        nodes = sum(1 for statement in body for _ in ast.walk(statement))
        counts.nodes_per_line.append(nodes / len(filled_lines))


def measure(folder: Path) -> dict[str, float]:
    """Measure all Python files of a folder and its sub-folders.

    Args:
        folder: Path of the folder.

    Returns:
        Figures by name.
    """
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        count_file(path, counts)
    return counts.rows()


def main() -> None:
    """Print a Markdown table with one column per folder."""
    folders = sys.argv[1:] or ["grounding", "pipeline", "cli", "tests"]
    columns = [measure(Path(folder)) for folder in folders]

    print(f"| measured over all `.py` files | {' | '.join(folders)} |")
    print("| --- |" + " --- |" * len(folders))
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1f}' for column in columns)} |")


if __name__ == "__main__":
    main()
