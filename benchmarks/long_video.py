"""What long video costs: two minutes against an hour, streamed and kept, and which of the events hidden in the hour are found.

    .venv/bin/python -m benchmarks.long_video      # after `make demo`; about a quarter of an hour; writes benchmarks/results/long_video.md

The videos are clips of `data/shapes` joined (10 fps, 160 px); those that hide something are of its test split. Each measurement is a
process of its own, on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import where
from pipeline.datasets.shapes.joined import Hidden, joined, write_joined
from pipeline.records import Query, Span, read_jsonl

MINUTES = (2, 60)
HIDDEN, TOP, SEED = 20, 100, 7
FOUND = 0.3
"""A tube is of the event where their tIoU is above this."""
RESULT = Path(__file__).parent / "results" / "long_video.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/shapes"))
    parser.add_argument(
        "--data", type=Path, default=Path("data/shapes"), help="the videos the run was trained on; their index is in store/"
    )
    parser.add_argument("--index", type=Path, default=Path("store/index.jsonl"))
    given = parser.parse_args()
    queries = list(read_jsonl(given.index, Query))
    paths = {query.video: given.data / query.path for query in queries}
    test = [query for query in queries if query.split == "test"]
    with tempfile.TemporaryDirectory() as place:
        rows, folder = [], Path(place)
        for minutes in MINUTES:
            made = joined(given.data, test, SEED, 60.0 * minutes, HIDDEN if minutes == MINUTES[-1] else 1)
            video = folder / f"{minutes}.mp4"
            write_joined(video, [paths[clip] for clip in made.clips])
            said = [own.query.text for own in made.hidden]
            rows.append((f"{minutes} min, streamed, one sentence", minutes, measured("ask", given.run, video, said[:1], folder)))
            rows.append((f"{minutes} min, kept", minutes, measured("keep", given.run, video, [], folder)))
            rows.append(
                (f"{minutes} min, one more sentence about what is kept", minutes, measured("keep", given.run, video, said[:1], folder))
            )
        answers = measured("keep", given.run, video, said, folder)["answers"]
        text = result(rows, [place_of(own, answer) for own, answer in zip(made.hidden, answers, strict=True)])
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def measured(way: str, run: Path, video: Path, sentences: list[str], folder: Path) -> dict[str, Any]:
    """What a process of its own says of one way: seconds, peak bytes, answers."""
    asked = json.dumps([way, str(run), str(video), sentences, str(folder / "kept")])
    code = "import sys; from benchmarks.long_video import measure; measure(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, asked], stdout=subprocess.PIPE, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measure(asked: str) -> None:
    """In the child: answer, and print what it took. The peak holds the libraries and the networks, too."""
    import torch

    from grounding.ask import Grounder

    way, run, video, sentences, kept = json.loads(asked)
    torch.set_num_threads(1)
    grounder = Grounder(Path(run), device="cpu")
    began, worked, answers = time.monotonic(), time.process_time(), []
    if way == "ask":
        answers = grounder.ask(Path(video), sentences, TOP).queries
    else:
        seen = grounder.look(Path(video), Path(kept))
        answers = grounder.answer(seen, sentences, TOP).queries if sentences else []
    took, worked = time.monotonic() - began, time.process_time() - worked
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    spans = [[tube.span_frames for tube in (answer, *answer.others)] for answer in answers]
    print(json.dumps({"seconds": took, "cpu": worked, "peak": peak, "answers": spans}))


def place_of(hidden: Hidden, tubes: list[Span]) -> int | None:
    """Which of the tubes, from 1 on, is the first of the hidden event."""
    for place, (begin, end) in enumerate(tubes, start=1):
        common = max(0, min(end, hidden.span[1]) - max(begin, hidden.span[0]))
        if common > FOUND * (end - begin + hidden.span[1] - hidden.span[0] - common):
            return place
    return None


def result(rows: list[tuple[str, int, dict[str, Any]]], places: list[int | None]) -> str:
    lines = [
        f"| {name} | {own['seconds']:.0f} s | {own['cpu'] / minutes:.2f} s | {own['peak'] / 2**20:,.0f} MiB |"
        for name, minutes, own in rows
    ]
    first, ten, among = (sum(place is not None and place <= best for place in places) for best in (1, 10, TOP))
    return f"""# Long video

Clips of `shapes` joined (10 fps, 160×96), asked about by the demo's run in windows of 7 s, on one thread of a CPU. The peak is that of the
whole process, libraries and networks included.

| | time | CPU per minute of video | peak memory |
| --- | --- | --- | --- |
{chr(10).join(lines)}

Of {len(places)} events hidden at random places of the hour, each in one clip alone, {first} are found first, {ten} among the
best 10 tubes and {among} among the best {TOP} (tIoU above {FOUND}). By chance, of about a thousand windows, it would be
0.02, 0.2 and 2 of 20. The others' clips have things of the same colour, shape or motion, two of the three at most.

{where("torch", "av")}.
"""


if __name__ == "__main__":
    main()
