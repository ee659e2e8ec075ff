"""The page of results: one table of all cases, and under it what each compares and where its time
goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TABLE_HEADER = "| case | of | way | time | ÷ first | ÷ floor | memory | ÷ first |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
INTRO = """# Measurements

Every case first checks that the ways it compares give the same, then measures them in one run, in turns. A time is the median of its
rounds, a ratio the median of the rounds' ratios with the smallest and the largest; "first" is the first way of a group. The floor is
the longer of two: the operations a way needs at the machine's rate of matrix products (or of convolutions, where they are faster), and
the bytes it must read and write, each once, at its rate of copying; both rates are measured beside the case. A tap of a convolution on
padding is no operation. Operations, bytes, rounds and profiles are in the JSON file of the same name.
"""


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each way of each case."""
    return "\n".join(
        [
            TABLE_HEADER,
            *(
                _format_row(name, record)
                for name, case in results.items()
                for record in case["found"]
            ),
        ]
    )


def format_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    notes = "\n\n".join(_format_notes(name, case) for name, case in results.items())
    return f"{INTRO}\n{format_table(results)}\n\n## Cases\n\n{notes}\n\n**Command**: `make bench`, or `.venv/bin/python -m benchmarks CASE …`\n"


def _format_row(name: str, record: Mapping[str, Any]) -> str:
    ratio = "{:.2f} ({:.2f} … {:.2f})".format(*record["ratio"]) if "ratio" in record else "–"
    floor = f"{record['floor']['ratio']:,.1f}" if "floor" in record else "–"
    peak = format_bytes(record["peak_bytes"]) if "peak_bytes" in record else "–"
    times = f"{record['peak_ratio']:.2f}" if "peak_ratio" in record else "–"
    seconds = format_seconds(record["seconds"]) if "seconds" in record else "–"
    return f"| {name} | {record['of']} | {record['way']} | {seconds} | {ratio} | {floor} | {peak} | {times} |"


def _format_notes(name: str, case: Mapping[str, Any]) -> str:
    goes_to = [record for record in case["found"] if "where_the_time_goes" in record]
    tops = [
        f"- {record['of']} → {record['way']}: {_format_hotspots(record['where_the_time_goes'])}"
        for record in goes_to
    ]
    speed = f"{case['rates']['operations'] / 1e9:,.0f} GFLOP/s ({case['rates']['precision']}) and {case['rates']['bytes'] / 1e9:.1f} GB/s"
    goes = "\n\nWhere the time goes:\n\n" + "\n".join(tops) if tops else ""
    facts = f"{case['where']}. Rates: {speed}. Load by other work before: {case['load_before']:.1f}. {case['date']}."
    return f"### {name}\n\n{case['compares']}{goes}\n\n{facts} Took {case['took_seconds']:.0f} s."


def _format_hotspots(entries: list[Mapping[str, Any]], count: int = 4) -> str:
    return ", ".join(
        f"`{entry['what']}` {entry['share']:.0%}"
        for entry in entries[:count]
        if entry["share"] >= 0.005
    )


def format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def format_bytes(num_bytes: int) -> str:
    return (
        f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 1 << 30 else f"{num_bytes / 2**20:,.1f} MiB"
    )
