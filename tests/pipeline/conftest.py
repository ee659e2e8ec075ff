"""Small videos whose frames show their own index, as a row of black and white blocks."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.forked_commands import start_command

BITS, BLOCK = 8, 16
WIDTH, HEIGHT = BITS * BLOCK, 48
VideoMaker = Callable[..., Path]


def painted(number: int) -> np.ndarray:
    """RGB `[48, 128, 3]`: block i of the top 16 rows is white where bit i of the number is set; the
    rest is grey.
    """
    picture = np.full((HEIGHT, WIDTH, 3), 96, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 if number >> bit & 1 else 0
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number painted into a decoded picture."""
    inner = picture[4 : BLOCK - 4].mean((0, 2)).reshape(BITS, BLOCK).mean(1)
    return int(sum(1 << bit for bit in range(BITS) if inner[bit] > 128))


def write_video(
    path: Path,
    count: int = 40,
    *,
    milliseconds: Sequence[int] | None = None,
    rotation: int = 0,
    first: int = 0,
    **options: Any,
) -> Path:
    """Pictures painted `first` and on: h264 with B-frames, a key frame every 12; 25 fps, or shown
    at the given `milliseconds`.
    """
    import av

    codec = options.pop("codec", "libx264")
    settings = options.pop(
        "settings", {"bf": "2", "g": "12", "sc_threshold": "0"} if codec == "libx264" else {}
    )
    with av.open(str(path), "w", options=options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        base = Fraction(1, 25) if milliseconds is None else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = base
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(painted(first + number), format="rgb24")
            frame.pts = number if milliseconds is None else milliseconds[number]
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def make_video() -> VideoMaker:
    return write_video


@pytest.fixture
def read_number() -> Callable[[np.ndarray], int]:
    return number_in


@pytest.fixture
def cut_file() -> Callable[[Path, float], Path]:
    """Cut a file to a share of its bytes, in place."""

    def cut_file(path: Path, share: float) -> Path:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return cut_file


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the extraction's workers: the number of threads may change the last bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MARK = "STVG_TEST_RUN"
SETTINGS: dict[str, Any] = {
    "backbones": "tiny",
    "weights": "random:0",
    "products": ["appearance", "motion", "text"],
    "sampling": {"short_side": 32, "clip_seconds": 0.4, "clip_stride_seconds": 0.2},
    "shard_mb": 1,
    "workers": 0,
    "device": "cpu",
}
"""Of runs on small videos; as `small_data` says its videos are longer than they are, two of them
fill a shard.
"""


class Extraction:
    """`stvg-extract` into one store, by processes of their own: they may be killed.

    They are forked from a server that has imported what takes seconds, and carry a mark that all
    their descendants inherit.
    """

    def __init__(self, data: Path, store: Path, **settings: Any) -> None:
        self.data, self.store, self.settings = data, store, SETTINGS | settings
        self.said = store.with_name(f"{store.name}.said")
        self._mark = uuid.uuid4().hex

    def start(self, **settings: Any) -> Any:
        """A `multiprocessing` process that runs the command."""
        config = self.store.with_name(f"{uuid.uuid4().hex}.json")
        config.write_text(json.dumps({"extract": self.settings | settings}))
        paths = {
            "root": self.data / "own.jsonl",
            "index": self.data / "index.jsonl",
            "store": self.store,
            "config": config,
        }
        arguments = [
            "--dataset",
            "jsonl",
            *(str(text) for name, path in paths.items() for text in (f"--{name}", path)),
        ]
        return start_command("cli.extract", arguments, self.said, os.environ | {MARK: self._mark})

    def run(self, **settings: Any) -> int:
        """The exit code of a run that nobody disturbs."""
        process = self.start(**settings)
        process.join()
        return int(process.exitcode)

    def descendants(self) -> list[psutil.Process]:
        """The processes that live and descend from any run."""
        result = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if (
                    process.environ().get(MARK) == self._mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    result.append(process)
        return result

    def running(self, what: str) -> list[psutil.Process]:
        """Those of them whose command names it."""
        result = []
        for process in self.descendants():
            with suppress(psutil.Error):  # it may have ended since
                result += [process] if what in " ".join(process.cmdline()) else []
        return result

    def decoders(self) -> list[psutil.Process]:
        return self.running("pipeline.video.worker")

    def files(self) -> dict[str, str]:
        """Digests of all that the store holds, lock and log aside."""
        paths = [
            path
            for path in sorted(self.store.rglob("*"))
            if path.is_file() and path.name not in ("lock", "lock.json", "log.txt")
        ]
        return {
            path.relative_to(self.store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        }

    def finished(self) -> dict[Path, tuple[int, int]]:
        """The files of every shard that is in its place, each with its inode and the time it was
        written.
        """
        shards = [path for path in self.store.glob("*/[!.]*") if path.suffix in (".zarr", ".h5")]
        files = [file for shard in shards for file in (shard, *shard.rglob("*")) if file.is_file()]
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight videos of 30 frames (`v0.mp4` …) and an index of one sentence about each.
    Read only.
    """
    from pipeline.io.jsonl import write_jsonl
    from pipeline.records import Query
    from pipeline.tracks import Tracks

    folder = tmp_path_factory.mktemp("small")
    common = {
        "fps": 25,
        "frame_count": 50,
        "size": (WIDTH, HEIGHT),
        "segment": (0, 30),
        "split": "test",
    }
    names = [f"v{number}" for number in range(8)]
    for number, name in enumerate(names):
        write_video(folder / f"{name}.mp4", 30, first=20 * number)
    write_jsonl(
        folder / "index.jsonl",
        [
            Query(id=f"{n}-0", video=n, path=f"{n}.mp4", text=f"what is in {n}?", **common)
            for n in names
        ],
    )
    Tracks().save(folder / "tracks.npz")
    return folder


@pytest.fixture
def make_extraction(tmp_path: Path, small_data: Path) -> Iterator[Callable[..., Extraction]]:
    """Extractions of `small_data`, or of another folder, into stores of the test's own; nothing of
    them outlives the test.
    """
    result: list[Extraction] = []

    def extraction_into(name: str, data: Path = small_data, **settings: Any) -> Extraction:
        result.append(Extraction(data, tmp_path / name, **settings))
        return result[-1]

    yield extraction_into
    for item in result:
        for process in item.descendants():
            process.kill()


@pytest.fixture(scope="session")
def full_extraction(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    """The extraction of `small_data` that nobody disturbed, in one process. Read only."""
    item = Extraction(small_data, tmp_path_factory.mktemp("whole") / "store")
    assert item.run() == 0, item.said.read_text()
    return item
