"""Print the imports between folders as a Mermaid graph.

    python -m benchmarks.import_graph [grounding|pipeline]

An arrow `a --> b` says that some module of `a` imports a module of `b`. Imports run downwards only:
the layers in `pyproject.toml` hold that, and `docs/architecture.md` shows this graph.
"""

from __future__ import annotations

import sys

import grimp

PACKAGES = ("grounding", "pipeline")


def folder_imports(package: str) -> list[tuple[str, str]]:
    """List the imports between sub-packages and modules directly under a package.

    Args:
        package: Name of the package.

    Returns:
        Sorted pairs (importing, imported).
    """
    graph = grimp.build_graph(package, include_external_packages=False, cache_dir=None)
    pairs = set()

    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            source = importer.split(".")
            target = imported.split(".")
            if len(source) > 1 and len(target) > 1 and source[1] != target[1]:
                pairs.add((source[1], target[1]))

    return sorted(pairs)


def find_implied_pairs(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Find the pairs that follow from a chain of other pairs, so that a drawing can omit them.

    Args:
        pairs: Pairs (importing, imported).

    Returns:
        The pairs that a chain of two or more other pairs implies.
    """
    targets: dict[str, set[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, set()).add(target)

    def find_reachable(start: str) -> set[str]:
        visited: set[str] = set()
        waiting = [start]
        while waiting:
            for target in targets.get(waiting.pop(), ()):
                if target not in visited:
                    visited.add(target)
                    waiting.append(target)
        return visited

    implied = set()
    for source, target in pairs:
        siblings = targets[source] - {target}
        if any(target in find_reachable(sibling) for sibling in siblings):
            implied.add((source, target))

    return implied


def format_mermaid(package: str) -> str:
    """Format the imports between a package's folders as a Mermaid graph.

    Args:
        package: Name of the package.

    Returns:
        Text of the graph, without arrows that follow from other arrows.
    """
    pairs = folder_imports(package)
    implied = find_implied_pairs(pairs)
    arrows = [
        f"    {source} --> {target}" for source, target in pairs if (source, target) not in implied
    ]
    return "\n".join(["graph TD", *arrows])


def main() -> None:
    """Print the graph of the packages named on the command line, by default of both."""
    for package in sys.argv[1:] or PACKAGES:
        print(f"%% {package}: {len(folder_imports(package))} imports between folders")
        print(format_mermaid(package))


if __name__ == "__main__":
    main()
