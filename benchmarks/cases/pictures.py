"""How fast the pictures of a pass are read from the product `frames`, for networks whose image encoder trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.case import ONE_THREAD, Case, Floor, Group, Way
from benchmarks.timing import in_turns, profile_python
from grounding.data.images import JpegBatch, decodes
from grounding.data.sources import InMemory, Pictures
from pipeline.features.builders import JpegMaker
from pipeline.store import Entry

GPU = torch.device("cuda")
ONE_BY_ONE, READ, ON_GPU = "Pillow, one by one", "`Pictures`, on the CPU", "a batch of passes on the GPU, per pass"
QUALITY, BATCH = 90, 8


@dataclass
class PassOfPictures(Case):
    """A pass of 64 pictures of about the bytes of real ones, which lies in memory: opened by Pillow, picture by picture, against
    `grounding.data.sources.Pictures`, and where there is a GPU its decoder on eight passes at once. One thread. On the CPU both give the same
    pictures, to the bit; the GPU's differ by less than two grey levels on the mean. The floor is writing the pictures.
    """

    packages = ("torch", "torchvision", "pillow")
    environment = ONE_THREAD
    frames: int = 64
    rows: int = 320
    columns: int = 568
    rounds: int = 7

    def __enter__(self) -> PassOfPictures:
        super().__enter__()
        self.entry = self._made()
        self.pictures = Pictures(InMemory([self.entry]), self.rows)
        self.all = np.arange(self.frames)
        self.ways: dict[str, Callable[[], np.ndarray]] = {ONE_BY_ONE: self._by_pillow, READ: lambda: self.pictures.read("v", self.all)}
        if torch.cuda.is_available() and decodes(GPU):
            waiting = [self.pictures.jpegs("v", self.all)] * BATCH
            self.ways[ON_GPU] = lambda: JpegBatch(waiting).to(GPU)[0].cpu().numpy()
        return self

    def agree(self) -> None:
        expected = self._by_pillow()
        np.testing.assert_array_equal(self.ways[READ](), expected)
        if ON_GPU in self.ways:
            assert np.abs(self.ways[ON_GPU]().astype(int) - expected).mean() < 2

    def measure(self) -> list[Group]:
        seconds = in_turns(self.ways, self.rounds)
        if ON_GPU in seconds:
            seconds[ON_GPU] = [own / BATCH for own in seconds[ON_GPU]]
        floor = Floor(bytes=int(np.sum(self.entry.columns["bytes"])) + self.frames * self.rows * self.columns * 3)
        top = {READ: profile_python(self.ways[READ])}
        title = f"{self.frames} pictures of {self.columns}×{self.rows}"
        return [Group(title, {name: Way(own, None if name == ON_GPU else floor, top=top.get(name, [])) for name, own in seconds.items()})]

    def _made(self) -> Entry:
        """A video of smooth noise that drifts, as extraction would store it."""
        random = torch.Generator().manual_seed(0)
        ground = functional.interpolate(
            torch.rand(1, 3, 30, 50, generator=random), (self.rows + self.frames, self.columns), mode="bicubic"
        )[0]
        ground = (200 * ground + 12 * torch.rand(ground.shape, generator=random)).clamp(0, 255).to(torch.uint8)
        maker = JpegMaker((self.columns, self.rows), np.arange(self.frames), QUALITY)
        rows = [block for number in range(self.frames) for block in maker.take(number, ground[:, number : number + self.rows].contiguous())]
        return Entry("v", "v", np.concatenate(rows), maker.columns(), {"size": [self.columns, self.rows]})

    def _by_pillow(self) -> np.ndarray:
        """All pictures `[n, h, w, 3]`, opened one by one from their joined pages."""
        columns, found = self.entry.columns, []
        for number in range(self.frames):
            pages = np.flatnonzero(columns["frame"] == number)
            data = b"".join(self.entry.rows[page, : columns["bytes"][page]].tobytes() for page in pages)
            found.append(np.array(Image.open(BytesIO(data))))
        return np.stack(found)
