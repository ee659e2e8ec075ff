"""Reading of a pass's images from the product `frames`, for a trainable image encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.case import ONE_THREAD, Case, Comparison, LowerBound, Measurement
from benchmarks.timing import profile_python, time_interleaved
from grounding.data.images import EncodedImageBatch, can_decode_jpegs
from grounding.data.sources import ImageSource, InMemorySource
from pipeline.features.builders import JpegBuilder
from pipeline.store import Entry

GPU_DEVICE = torch.device("cuda")
PILLOW = "Pillow, one by one"
IMAGE_SOURCE = "`Pictures`, on the CPU"
GPU_DECODER = "a batch of passes on the GPU, per pass"
JPEG_QUALITY = 90
BATCH_SIZE = 8


@dataclass
class ImagePassRead(Case):
    """Reading and decoding of the images of a forward pass.

    A pass of 64 pictures of about the bytes of real ones, which lies in memory: opened by Pillow,
    picture by picture, against `grounding.data.sources.Pictures`, and where there is a GPU its
    decoder on eight passes at once. One thread. On the CPU both give the same pictures, to the bit;
    the GPU's differ by less than two grey levels on the mean. The floor is writing the pictures.
    """

    packages = ("torch", "torchvision", "pillow")
    environment = ONE_THREAD
    num_frames: int = 64
    height: int = 320
    width: int = 568
    rounds: int = 7

    def __enter__(self) -> ImagePassRead:
        super().__enter__()
        self.entry = self._build_entry()
        self.image_source = ImageSource(InMemorySource([self.entry]), self.height)
        self.frame_indices = np.arange(self.num_frames)
        self.variants: dict[str, Callable[[], np.ndarray]] = {
            PILLOW: self._read_with_pillow,
            IMAGE_SOURCE: lambda: self.image_source.read("v", self.frame_indices),
        }
        if torch.cuda.is_available() and can_decode_jpegs(GPU_DEVICE):
            encoded_passes = [self.image_source.read_encoded("v", self.frame_indices)] * BATCH_SIZE
            self.variants[GPU_DECODER] = lambda: (
                EncodedImageBatch(encoded_passes).to(GPU_DEVICE)[0].cpu().numpy()
            )
        return self

    def check_agreement(self) -> None:
        """Check that all variants agree."""
        expected = self._read_with_pillow()
        np.testing.assert_array_equal(self.variants[IMAGE_SOURCE](), expected)
        if GPU_DECODER in self.variants:
            assert np.abs(self.variants[GPU_DECODER]().astype(int) - expected).mean() < 2

    def measure(self) -> list[Comparison]:
        """Measure all variants."""
        seconds = time_interleaved(self.variants, self.rounds)
        if GPU_DECODER in seconds:
            seconds[GPU_DECODER] = [batch / BATCH_SIZE for batch in seconds[GPU_DECODER]]
        floor = LowerBound(
            bytes=int(np.sum(self.entry.columns["bytes"]))
            + self.num_frames * self.height * self.width * 3
        )
        top = {IMAGE_SOURCE: profile_python(self.variants[IMAGE_SOURCE])}
        title = f"{self.num_frames} pictures of {self.width}×{self.height}"
        return [
            Comparison(
                title,
                {
                    name: Measurement(
                        rounds, None if name == GPU_DECODER else floor, hotspots=top.get(name, [])
                    )
                    for name, rounds in seconds.items()
                },
            )
        ]

    def _build_entry(self) -> Entry:
        """Build the entry of a video of drifting smooth noise, as extraction stores it."""
        random = torch.Generator().manual_seed(0)
        noise = functional.interpolate(
            torch.rand(1, 3, 30, 50, generator=random),
            (self.height + self.num_frames, self.width),
            mode="bicubic",
        )[0]
        noise = (
            (200 * noise + 12 * torch.rand(noise.shape, generator=random))
            .clamp(0, 255)
            .to(torch.uint8)
        )
        builder = JpegBuilder((self.width, self.height), np.arange(self.num_frames), JPEG_QUALITY)
        rows = [
            block
            for frame_index in range(self.num_frames)
            for block in builder.add_frame(
                frame_index, noise[:, frame_index : frame_index + self.height].contiguous()
            )
        ]
        return Entry(
            "v", "v", np.concatenate(rows), builder.columns(), {"size": [self.width, self.height]}
        )

    def _read_with_pillow(self) -> np.ndarray:
        """Decode all images `[n, h, w, 3]` one by one from their joined pages."""
        columns = self.entry.columns
        images = []

        for frame_index in range(self.num_frames):
            pages = np.flatnonzero(columns["frame"] == frame_index)
            data = b"".join(
                self.entry.rows[page, : columns["bytes"][page]].tobytes() for page in pages
            )
            images.append(np.array(Image.open(BytesIO(data))))
        return np.stack(images)
