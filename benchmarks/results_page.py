"""The page of results: one table of all cases, and under it what each compares and where its time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = "| case | of | way | time | ÷ first | ÷ floor | memory | ÷ first |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
INTRO = """# Measurements

Every case first checks that the ways it compares give the same, then measures them in one run, in turns. A time is the median of its
rounds, a ratio the median of the rounds' ratios with the smallest and the largest; "first" is the first way of a group. The floor is
the longer of two: the operations a way needs at the machine's rate of matrix products (or of convolutions, where they are faster), and
the bytes it must read and write, each once, at its rate of copying; both rates are measured beside the case. A tap of a convolution on
padding is no operation. Operations, bytes, rounds and profiles are in the JSON file of the same name.
"""


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each way of each case."""
    return "\n".join([HEAD, *(_row(name, record) for name, case in found.items() for record in case["found"])])


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    notes = "\n\n".join(_notes(name, case) for name, case in found.items())
    return f"{INTRO}\n{table(found)}\n\n## Cases\n\n{notes}\n\n**Command**: `make bench`, or `.venv/bin/python -m benchmarks CASE …`\n"


def _row(name: str, record: Mapping[str, Any]) -> str:
    ratio = "{:.2f} ({:.2f} … {:.2f})".format(*record["ratio"]) if "ratio" in record else "–"
    floor = f"{record['floor']['ratio']:,.1f}" if "floor" in record else "–"
    peak = memory(record["peak_bytes"]) if "peak_bytes" in record else "–"
    times = f"{record['peak_ratio']:.2f}" if "peak_ratio" in record else "–"
    seconds = duration(record["seconds"]) if "seconds" in record else "–"
    return f"| {name} | {record['of']} | {record['way']} | {seconds} | {ratio} | {floor} | {peak} | {times} |"


def _notes(name: str, case: Mapping[str, Any]) -> str:
    goes_to = [record for record in case["found"] if "where_the_time_goes" in record]
    tops = [f"- {record['of']} → {record['way']}: {_top(record['where_the_time_goes'])}" for record in goes_to]
    speed = f"{case['rates']['operations'] / 1e9:,.0f} GFLOP/s ({case['rates']['precision']}) and {case['rates']['bytes'] / 1e9:.1f} GB/s"
    goes = "\n\nWhere the time goes:\n\n" + "\n".join(tops) if tops else ""
    facts = f"{case['where']}. Rates: {speed}. Load by other work before: {case['load_before']:.1f}. {case['date']}."
    return f"### {name}\n\n{case['compares']}{goes}\n\n{facts} Took {case['took_seconds']:.0f} s."


def _top(entries: list[Mapping[str, Any]], count: int = 4) -> str:
    return ", ".join(f"`{entry['what']}` {entry['share']:.0%}" for entry in entries[:count] if entry["share"] >= 0.005)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def memory(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"
