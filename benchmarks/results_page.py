"""The results page: one table of all cases, then the description and hotspots of each case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABLE_HEADER = (
    "| case | of | way | time | ÷ first | ÷ floor | memory | ÷ first |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)
INTRO = """# Measurements

Every case first checks that the ways it compares give the same, then measures them in one run, in \
turns. A time is the median of its
rounds, a ratio the median of the rounds' ratios with the smallest and the largest; "first" is the \
first way of a group. The floor is
the longer of two: the operations a way needs at the machine's rate of matrix products (or of \
convolutions, where they are faster), and
the bytes it must read and write, each once, at its rate of copying; both rates are measured \
beside the case. A tap of a convolution on
padding is no operation. Operations, bytes, rounds and profiles are in the JSON file of the same \
name.
"""
COMMAND = "**Command**: `make bench`, or `.venv/bin/python -m benchmarks CASE …`"
MISSING = "–"


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the Markdown table of all cases.

    Args:
        results: Records by case, of `benchmarks.subprocess_runner.run_case`.

    Returns:
        Table with one row per variant of each case.
    """
    lines = [TABLE_HEADER]
    for name, case in results.items():
        for record in case["found"]:
            lines.append(_format_row(name, record))

    return "\n".join(lines)


def format_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the results page.

    Args:
        results: Records by case, of `benchmarks.subprocess_runner.run_case`.

    Returns:
        Markdown text.
    """
    notes = "\n\n".join(_format_notes(name, case) for name, case in results.items())
    return f"{INTRO}\n{format_table(results)}\n\n## Cases\n\n{notes}\n\n{COMMAND}\n"


def _format_row(name: str, record: Mapping[str, Any]) -> str:
    """Return the table row of one variant."""
    seconds = format_seconds(record["seconds"]) if "seconds" in record else MISSING
    floor = f"{record['floor']['ratio']:,.1f}" if "floor" in record else MISSING
    peak = format_bytes(record["peak_bytes"]) if "peak_bytes" in record else MISSING
    peak_ratio = f"{record['peak_ratio']:.2f}" if "peak_ratio" in record else MISSING

    ratio = MISSING
    if "ratio" in record:
        ratio = "{:.2f} ({:.2f} … {:.2f})".format(*record["ratio"])

    cells = [name, record["of"], record["way"], seconds, ratio, floor, peak, peak_ratio]
    return f"| {' | '.join(cells)} |"


def _format_notes(name: str, case: Mapping[str, Any]) -> str:
    """Return the section of one case: description, hotspots, machine, rates and date."""
    hotspot_lines = []
    for record in case["found"]:
        if "where_the_time_goes" in record:
            hotspots = _format_hotspots(record["where_the_time_goes"])
            hotspot_lines.append(f"- {record['of']} → {record['way']}: {hotspots}")

    hotspot_list = ""
    if hotspot_lines:
        hotspot_list = "\n\nWhere the time goes:\n\n" + "\n".join(hotspot_lines)

    rates = case["rates"]
    compute_rate = f"{rates['operations'] / 1e9:,.0f} GFLOP/s ({rates['precision']})"
    copy_rate = f"{rates['bytes'] / 1e9:.1f} GB/s"
    facts = (
        f"{case['where']}. Rates: {compute_rate} and {copy_rate}. "
        f"Load by other work before: {case['load_before']:.1f}. {case['date']}. "
        f"Took {case['took_seconds']:.0f} s."
    )
    return f"### {name}\n\n{case['compares']}{hotspot_list}\n\n{facts}"


def _format_hotspots(entries: list[Mapping[str, Any]], count: int = 4) -> str:
    """Return the first hotspots of at least half a percent, as one line."""
    return ", ".join(
        f"`{entry['what']}` {entry['share']:.0%}"
        for entry in entries[:count]
        if entry["share"] >= 0.005
    )


def format_seconds(seconds: float) -> str:
    """Format a duration in seconds, or in milliseconds if it is below one second.

    Args:
        seconds: The duration.

    Returns:
        Number and unit.
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def format_bytes(num_bytes: int) -> str:
    """Format an amount of memory in GiB, or in MiB if it is below one GiB.

    Args:
        num_bytes: Number of bytes.

    Returns:
        Number and unit.
    """
    if num_bytes >= 1 << 30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB"
