"""Print the imports between folders as a Mermaid graph: `python -m benchmarks.import_graph
[grounding|pipeline]`.

An arrow `a --> b` says that some module of `a` imports a module of `b`. Imports run downwards only: the layers in
`pyproject.toml` hold that, and `docs/architecture.md` shows this graph.
"""

from __future__ import annotations

import sys

import grimp

PACKAGES = ("grounding", "pipeline")


def folder_imports(package: str) -> list[tuple[str, str]]:
    """Return the pairs (importing, imported) of sub-packages and modules directly under a package,
    sorted.
    """
    graph = grimp.build_graph(package, include_external_packages=False, cache_dir=None)
    pairs = set()

    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            source, target = importer.split("."), imported.split(".")
            if len(source) > 1 and len(target) > 1 and source[1] != target[1]:
                pairs.add((source[1], target[1]))

    return sorted(pairs)


def find_implied_pairs(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the pairs that follow from a chain of two or more other pairs, so that a drawing can
    leave them out.
    """
    targets: dict[str, set[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, set()).add(target)

    def reachable(start: str) -> set[str]:
        visited: set[str] = set()
        waiting = [start]
        while waiting:
            for target in targets.get(waiting.pop(), ()):
                if target not in visited:
                    visited.add(target)
                    waiting.append(target)
        return visited

    return {
        (source, target)
        for source, target in pairs
        if any(target in reachable(other) for other in targets[source] - {target})
    }


def format_mermaid(package: str) -> str:
    """Return a package's folder imports as the text of a Mermaid graph; arrows that follow from
    others are left out.
    """
    pairs = folder_imports(package)
    shown = [pair for pair in pairs if pair not in find_implied_pairs(pairs)]
    return "\n".join(["graph TD", *(f"    {source} --> {target}" for source, target in shown)])


def main() -> None:
    """Print the graph of the packages named on the command line, by default of both."""
    for package in sys.argv[1:] or PACKAGES:
        print(f"%% {package}: {len(folder_imports(package))} imports between folders")
        print(format_mermaid(package))


if __name__ == "__main__":
    main()
