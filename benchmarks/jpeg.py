"""How fast the pictures of a pass are read from the product `frames`.

    .venv/bin/python -m benchmarks.jpeg        # half a minute; prints a line per way

A pass of 64 pictures of 320×568, of about the bytes of real ones, lies in memory. Ways take turns: Pillow, picture by picture (what
reading was before), `grounding.raw.Pictures`, and where there is a GPU its decoder, whole batch at once. They are compared first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import where
from grounding.ask import InMemory
from grounding.data import CPU
from grounding.raw import JpegBatch, Pictures, decodes
from pipeline.makers import JpegMaker
from pipeline.store import Entry

FRAMES, ROWS, COLUMNS, QUALITY, ROUNDS, BATCH = 64, 320, 568, 90, 9, 8
ALL = np.arange(FRAMES)


def main() -> None:
    torch.set_num_threads(1)
    entry = made()
    pictures = Pictures(InMemory([entry]), ROWS)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "Pillow, one by one": lambda: by_pillow(entry),
        "read on the CPU": lambda: pictures.read("v", ALL),
    }
    gpu = torch.device("cuda") if torch.cuda.is_available() else CPU
    if decodes(gpu):
        waiting = [pictures.jpegs("v", ALL)] * BATCH
        ways["decoded on the GPU"] = lambda: fetched(JpegBatch(waiting).to(gpu))
        apart = np.abs(ways["decoded on the GPU"]().astype(int) - by_pillow(entry))
        print(f"GPU and CPU differ by {apart.max()} grey levels at most, {apart.mean():.2f} on the mean")
    np.testing.assert_array_equal(ways["read on the CPU"](), by_pillow(entry))
    times = {name: np.array(taken) for name, taken in measured(ways).items()}
    before = times["Pillow, one by one"]
    jpeg = sum(entry.columns["bytes"]) / FRAMES / 1e3
    print(f"{FRAMES} pictures of {ROWS}×{COLUMNS}, {jpeg:.1f} kB each; medians of {ROUNDS} rounds")
    for name, taken in times.items():
        ratio, each = before / taken, np.median(taken) / FRAMES * 1e3
        print(f"| {name} | {each:.3f} ms a picture | {np.median(ratio):.2f} ({ratio.min():.2f} … {ratio.max():.2f}) |")
    print(where("torch", "torchvision", "pillow"))


def made() -> Entry:
    """A video of smooth noise that drifts, as extraction would store it."""
    random = torch.Generator().manual_seed(0)
    ground = functional.interpolate(torch.rand(1, 3, 30, 50, generator=random), (ROWS + FRAMES, COLUMNS), mode="bicubic")[0]
    ground = (200 * ground + 12 * torch.rand(ground.shape, generator=random)).clamp(0, 255).to(torch.uint8)
    maker = JpegMaker((COLUMNS, ROWS), ALL, QUALITY)
    rows = [block for number in range(FRAMES) for block in maker.take(number, ground[:, number : number + ROWS].contiguous())]
    return Entry("v", "v", np.concatenate(rows), maker.columns(), {"size": [COLUMNS, ROWS]})


def by_pillow(entry: Entry) -> np.ndarray:
    """All pictures `[n, h, w, 3]`, opened one by one from their joined pages."""
    found = []
    for number in ALL.tolist():
        pages = np.flatnonzero(entry.columns["frame"] == number)
        data = b"".join(entry.rows[page, : entry.columns["bytes"][page]].tobytes() for page in pages)
        found.append(np.array(Image.open(BytesIO(data))))
    return np.stack(found)


def fetched(pictures: Tensor) -> np.ndarray:
    """The first video's, when all are there; no more crosses back than it must."""
    torch.cuda.synchronize()
    first: np.ndarray = pictures[0].cpu().numpy()
    return first


def measured(ways: dict[str, Callable[[], np.ndarray]]) -> dict[str, list[float]]:
    """Seconds of a pass, round by round, the ways in turn; a batch of the GPU's counts as its passes."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - began) / (BATCH if "GPU" in name else 1))
    return taken


if __name__ == "__main__":
    main()
