"""The decoder's process gives what the decoders give, and whatever it does to itself costs one
video.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.video import ProcessDecoder, open_frames, probe
from pipeline.video import process_decoder as child_module
from pipeline.video.protocol import RING_BYTES, create_ring_file, map_ring, view_ring_slots

HOLD_THE_LOCK = "ctypes.PyDLL(None).sleep(1000)"
Sabotage = Callable[[str, str], None]


@pytest.fixture
def child() -> Iterator[ProcessDecoder]:
    with ProcessDecoder() as started:
        yield started


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Let children begun from now on do something (Python code) at each probe or picture of a file
    named `bad…`.
    """

    def prepare(at: str, code: str) -> None:
        wrapped = {
            "probe": "worker.probe = lambda path, **kw: (harm() if path.name.startswith('bad') else None, probe(path, **kw))[1]",
            "picture": "def upright(frame, facts):\n"
            "    if facts.path.name.startswith('bad') and frame.pts: harm()\n"
            "    return whole(frame, facts)\n"
            "frames._convert_to_rgb = upright",
            "packet": "def slowly(*given):\n    for frame in decoded(*given): harm(); yield frame\nframes.decode_frames = slowly",
        }[at]
        program = "\n".join(
            [
                "import ctypes, os, signal, sys, time",
                "from pipeline.video import frames, worker",
                "probe, whole, decoded = worker.probe, frames._convert_to_rgb, frames.decode_frames",
                f"def harm(): {code}",
                wrapped,
                "worker.main()",
            ]
        )
        monkeypatch.setattr(child_module, "WORKER_COMMAND", ("-c", program))

    return prepare


def state(pid: int) -> str:
    """R, S, T (stopped), Z, …; "" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def peak_mib(pid: int) -> float:
    """The most memory a process has had, its part of the ring and of libraries included."""
    return next(
        int(line.split()[1]) / 1024
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("plain.mp4", {}, "decord"),
        ("plain.avi", {}, "pyav"),
        ("turned.mp4", {"rotation": 90}, "decord"),
        ("vp8.webm", {"codec": "libvpx"}, "pyav"),
    ],
)
def test_it_gives_what_the_decoders_give(
    tmp_path: Path,
    make_video: Any,
    child: ProcessDecoder,
    name: str,
    options: dict[str, Any],
    decoder: str,
) -> None:
    path = make_video(tmp_path / name, 100, **options)
    facts, here = child.probe(path), probe(path)
    assert repr(facts) == repr(here)
    assert np.array_equal(facts.pts_seconds, here.pts_seconds)
    for expected in (range(100), [3], range(0, 100, 7), []):
        with (
            child.frames(path, facts, expected) as stream,
            open_frames(path, facts, expected) as reader,
        ):
            assert (stream.decoder, stream.reason) == (reader.decoder, reader.reason)
            assert stream.decoder == decoder
            pictures = list(stream)  # kept while others follow: each is the caller's own
            for (number, picture), (same, truth) in zip(pictures, reader, strict=True):
                assert number == same
                assert picture.flags.writeable
                assert np.array_equal(picture, truth)


def test_a_change_of_decoders_on_the_way_is_told(
    tmp_path: Path, make_video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "from pipeline.video import frames, worker\n"
        "def failing(video, facts, wanted, alive):\n"
        "    for picture in read(video, facts, wanted[:6], alive): yield picture\n"
        "    raise frames._DecordError('lost')\n"
        "read, frames._read_with_decord = frames._read_with_decord, failing\n"
        "worker.main()"
    )
    monkeypatch.setattr(child_module, "WORKER_COMMAND", ("-c", program))
    path = make_video(tmp_path / "plain.mp4")
    with ProcessDecoder() as child, child.frames(path, child.probe(path), range(40)) as stream:
        assert stream.decoder == "decord"
        assert [number for number, _ in stream] == list(range(40))
        assert (stream.decoder, stream.reason) == ("pyav", "lost")


def test_errors_are_the_same(
    tmp_path: Path, make_video: Any, cut_file: Any, child: ProcessDecoder
) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    cut_file(make_video(tmp_path / "cut.mp4", 100), 0.5)
    pid = child.pid
    for name in ("absent.mp4", "empty.mp4", "text.mp4", "cut.mp4", ""):
        with pytest.raises(VideoError) as here:
            probe(tmp_path / name)
        with pytest.raises(VideoError) as there:
            child.probe(tmp_path / name)
        assert (there.value.stage, there.value.reason, there.value.detail) == (
            here.value.stage,
            here.value.reason,
            here.value.detail,
        )
    path = cut_file(
        make_video(tmp_path / "tail.mp4", 100, container={"movflags": "faststart"}), 0.99
    )
    with pytest.raises(
        VideoError, match=r"truncated \(decode\): .*tail.mp4: decoding fails after \d+ frames"
    ):
        list(child.frames(path, facts := child.probe(path), range(facts.frame_count)))
    with pytest.raises(ValueError, match=r"must be strictly increasing within \[0, \d+\)"):
        child.frames(path, facts, [3, 2])
    assert child.pid == pid


def test_relative_paths_begin_where_the_caller_is(
    tmp_path: Path, make_video: Any, child: ProcessDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "plain.mp4")
    monkeypatch.chdir(tmp_path)
    facts = child.probe("plain.mp4")
    assert facts.path == Path("plain.mp4")
    assert len(list(child.frames("plain.mp4", facts, range(40)))) == 40


@pytest.mark.parametrize("taken", [0, 1, 35, 100])
def test_a_stream_closed_early_leaves_the_process_usable(
    tmp_path: Path, make_video: Any, child: ProcessDecoder, taken: int
) -> None:
    path = make_video(tmp_path / "plain.mp4", 100)
    facts, pid = child.probe(path), child.pid
    for _ in range(3):
        with child.frames(path, facts, range(100)) as stream:
            read = [number for _, (number, _) in zip(range(taken), stream, strict=False)]
        assert read == list(range(taken))
        assert list(stream) == []
    assert [number for number, _ in child.frames(path, facts, range(100))] == list(range(100))
    assert child.pid == pid


def test_one_stream_at_a_time(tmp_path: Path, make_video: Any, child: ProcessDecoder) -> None:
    path = make_video(tmp_path / "plain.mp4")
    facts = child.probe(path)
    stream = child.frames(path, facts, range(40))
    next(stream)
    with pytest.raises(
        RuntimeError,
        match=r"plain.mp4 is still being read: close its stream before opening .*other.mp4",
    ):
        child.probe("other.mp4")
    assert [number for number, _ in stream] == list(range(1, 40))
    assert child.probe(path).frame_count == 40


@pytest.mark.parametrize("at", ["probe", "picture"])
@pytest.mark.parametrize("code", ["time.sleep(1000)", HOLD_THE_LOCK, "signal.pause()"])
def test_a_hang_is_cut_off_and_named(
    tmp_path: Path, make_video: Any, sabotage: Sabotage, at: str, code: str
) -> None:
    bad, good = make_video(tmp_path / "bad.avi"), make_video(tmp_path / "good.avi")
    sabotage(at, code)
    with ProcessDecoder(frame_timeout=0.5, probe_timeout=0.7 if at == "probe" else 60) as child:
        assert child.probe(good).frame_count == 40
        pid, begun = child.pid, time.monotonic()
        with pytest.raises(
            VideoError,
            match=r"hung \(decode\): .*bad.avi: the decoder did not respond for 0.[57] s and was killed; convert",
        ):
            list(child.frames(bad, child.probe(bad), range(40)))
        assert time.monotonic() - begun < 3
        assert state(pid) == ""
        assert [number for number, _ in child.frames(good, child.probe(good), range(40))] == list(
            range(40)
        )
        assert child.pid != pid


@pytest.mark.parametrize("at", ["probe", "picture"])
@pytest.mark.parametrize(
    ("code", "death"),
    [
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL: killed from outside, or out of memory"),
        ("os._exit(3)", "exit code 3"),
    ],
)
def test_a_crash_is_named_and_harms_no_other_video(
    tmp_path: Path, make_video: Any, sabotage: Sabotage, at: str, code: str, death: str
) -> None:
    bad, good = make_video(tmp_path / "bad.avi"), make_video(tmp_path / "good.avi")
    sabotage(at, code)
    with ProcessDecoder() as child:
        for _ in range(2):
            with pytest.raises(
                VideoError,
                match=rf"crashed \(decode\): .*bad.avi: the decoding process died \({death}\); convert",
            ):
                list(child.frames(bad, child.probe(bad), range(40)))
            assert [
                number for number, _ in child.frames(good, child.probe(good), range(40))
            ] == list(range(40))


def test_any_other_exception_of_a_decoder_is_the_videos(
    tmp_path: Path, make_video: Any, sabotage: Sabotage
) -> None:
    bad = make_video(tmp_path / "bad.avi")
    sabotage("picture", "raise MemoryError('no room')")
    with ProcessDecoder() as child:
        pid = child.pid
        with pytest.raises(
            VideoError,
            match=r"failed \(decode\): .*bad.avi: the decoder failed with an unexpected error \(MemoryError: no room\)",
        ):
            list(child.frames(bad, child.probe(bad), range(40)))
        assert child.probe(bad).frame_count == 40
        assert child.pid == pid


def test_the_limit_counts_neither_the_consumers_time_nor_work_that_goes_on(
    tmp_path: Path, make_video: Any, sabotage: Sabotage
) -> None:
    path = make_video(tmp_path / "plain.avi", 60)
    sabotage("packet", "worker.HEARTBEAT_INTERVAL_SECONDS = 0.05; time.sleep(0.03)")
    with ProcessDecoder(frame_timeout=0.5) as child:
        facts = child.probe(path)
        assert [number for number, _ in child.frames(path, facts, [59])] == [59]  # after 1.8 s
        with child.frames(path, facts, range(40)) as stream:
            next(stream)
            time.sleep(2)
            assert state(child.pid) == "T"
            assert len(list(stream)) == 39


def test_a_process_that_died_unasked_is_replaced(
    tmp_path: Path, make_video: Any, child: ProcessDecoder
) -> None:
    path = make_video(tmp_path / "plain.mp4")
    child.probe(path)
    pid = child.pid
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: state(pid) in ("", "Z"))
    assert child.probe(path).frame_count == 40
    child.close()
    assert state(child.pid) == ""
    assert child.probe(path).frame_count == 40


def test_a_process_that_does_not_start_is_no_fault_of_the_video(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_module, "WORKER_COMMAND", ("-c", "raise SystemExit(3)"))
    with (
        ProcessDecoder() as child,
        pytest.raises(
            RuntimeError, match=r"does not start; run `.*python.* -c raise SystemExit\(3\)` to see"
        ),
    ):
        child.probe("any.mp4")


def test_ctrl_c_is_the_parents(tmp_path: Path, make_video: Any, child: ProcessDecoder) -> None:
    path = make_video(tmp_path / "plain.mp4")
    facts, pid = child.probe(path), child.pid
    assert os.getsid(pid) != os.getsid(0)  # the terminal does not reach it either
    with child.frames(path, facts, range(40)) as stream:
        next(stream)
        os.kill(pid, signal.SIGINT)
        assert len(list(stream)) == 39
    assert child.pid == pid


def test_it_outlives_the_thread_that_started_it(tmp_path: Path, make_video: Any) -> None:
    path = make_video(tmp_path / "plain.mp4")
    started: list[ProcessDecoder] = []
    thread = threading.Thread(target=lambda: started.append(ProcessDecoder()))
    thread.start()
    thread.join()
    with started[0] as child:
        pid = child.pid
        assert child.probe(path).frame_count == 40
        assert child.pid == pid


@pytest.mark.parametrize("doing", ["idle", "stopped", "hanging", "starting"])
def test_it_dies_with_its_parent_and_leaves_nothing(
    tmp_path: Path, make_video: Any, doing: str
) -> None:
    path = make_video(tmp_path / "plain.mp4", 100)
    lines = {
        "starting": "child = ProcessDecoder()",
        "idle": "child = ProcessDecoder(); child.probe(path)",
        "stopped": "child = ProcessDecoder(); stream = child.frames(path, child.probe(path), range(100)); time.sleep(0.3)",
        "hanging": "child_module.WORKER_COMMAND = ('-c', hang); child = ProcessDecoder(); child._request('probe', path); time.sleep(0.5)",
    }
    hang = f"import ctypes; from pipeline.video import worker; worker.probe = lambda *a, **k: {HOLD_THE_LOCK}; worker.main()"
    program = (
        "import sys, time; from pathlib import Path; from pipeline.video import ProcessDecoder, process_decoder as child_module\n"
        f"path = Path(sys.argv[1]); hang = {hang!r}\n"
        f"{lines[doing]}\nprint(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert state(pid) == "T" if doing == "stopped" else state(pid) in "RS"
        if doing != "starting":
            shared = [
                line
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
                if " rw-s " in line
            ]
            assert len(shared) == 1
            assert shared[0].endswith(
                "/memfd:pictures (deleted)"
            )  # memory without a name goes with the last who maps it
        parent.kill()
    assert until(lambda: state(pid) in ("", "Z"), 2)


def test_a_daemonic_process_may_have_one(tmp_path: Path, make_video: Any) -> None:
    """As Dask's workers are."""
    path = make_video(tmp_path / "plain.mp4")
    program = (
        "import multiprocessing, sys; from pipeline.video import ProcessDecoder\n"
        "def work():\n"
        "    with ProcessDecoder() as child: sys.exit(child.probe(sys.argv[1]).frame_count)\n"
        "worker = multiprocessing.get_context('fork').Process(target=work, daemon=True)\n"
        "worker.start(); worker.join(); sys.exit(worker.exitcode)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 40


def test_it_holds_no_torch(child: ProcessDecoder, tmp_path: Path, make_video: Any) -> None:
    path = make_video(tmp_path / "plain.mp4")
    list(child.frames(path, child.probe(path), range(3)))
    libraries = Path(f"/proc/{child.pid}/maps").read_text()
    assert "decord" in libraries
    assert "torch" not in libraries


def large_video(path: Path, size: tuple[int, int], count: int) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame(*size, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([number % 200]) * plane.buffer_size)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_it_is_stopped_while_the_consumer_is_slow(tmp_path: Path, child: ProcessDecoder) -> None:
    """decord would decode all of it ahead: 530 MiB. Stopped, the process stays below what its ring
    and libraries take, and a bit.
    """
    path = large_video(tmp_path / "large.mp4", (1280, 720), 200)
    facts = child.probe(path)
    with child.frames(path, facts, range(200)) as stream:
        assert stream.decoder == "decord"
        states = []
        for number, _ in stream:
            time.sleep(0.01 if number % 50 else 0.5)
            states.append(state(child.pid))
        assert states.count("T") > 50
    assert peak_mib(child.pid) < 350


def test_a_picture_bomb_is_refused_by_its_size(tmp_path: Path, child: ProcessDecoder) -> None:
    path = large_video(tmp_path / "bomb.mp4", (8192, 8192), 1)
    assert path.stat().st_size < 200 << 10
    with pytest.raises(
        VideoError,
        match=r"too-large \(open\): .*bomb.mp4 is 8192x8192, more than 16777216 pixels per frame; scale it down",
    ):
        child.probe(path)
    assert peak_mib(child.pid) < 130  # the picture alone takes 96 MiB, twice that as RGB


@pytest.mark.parametrize(
    ("size", "slots"),
    [((128, 48), 32), ((1280, 720), 24), ((1920, 1080), 10), ((3840, 2160), 2), ((4096, 4096), 2)],
)
def test_the_ring_holds_a_few_pictures(size: tuple[int, int], slots: int) -> None:
    descriptor = create_ring_file()
    memory = map_ring(descriptor)
    os.close(descriptor)
    pictures = view_ring_slots(memory, size)
    assert pictures.shape == (slots, size[1], size[0], 3)
    assert pictures.nbytes <= RING_BYTES
    with pytest.raises(
        ValueError,
        match=r"two frames of 4096x4097 do not fit in the ring; frames may have at most 16777216 pixels",
    ):
        view_ring_slots(memory, (4096, 4097))


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A file with some bytes changed, a block emptied, doubled or taken out, or its end cut off."""
    data, kind = bytearray(content), int(random.integers(5))
    begin = int(random.integers(len(data)))
    end = min(len(data), begin + int(random.integers(1, 2000)))
    if kind == 0:
        for place in random.integers(0, len(data), int(random.integers(1, 50))):
            data[place] = int(random.integers(256))
    elif kind == 1:
        data[begin:end] = bytes(end - begin)
    elif kind == 2:
        data[end:end] = data[begin:end]
    elif kind == 3:
        del data[begin:end]
    else:
        del data[begin:]
    return bytes(data)


def end_of(child: ProcessDecoder, path: Path) -> str:
    """The decoder that read all frames, or the reason why none could."""
    try:
        facts = child.probe(path)
        with child.frames(path, facts, range(facts.frame_count)) as stream:
            numbers = [number for number, _ in stream]
    except VideoError as error:
        return error.reason if str(path) in error.detail else str(error)
    return stream.decoder if numbers == list(range(facts.frame_count)) else f"gives {numbers}"


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.soak)])
def test_mutants_give_frames_or_an_error(tmp_path: Path, make_video: Any, count: int) -> None:
    complete = [
        make_video(tmp_path / name, 60, **options)
        for name, options in {
            "a.mp4": {},
            "b.mkv": {},
            "c.ts": {},
            "d.avi": {"codec": "mpeg4", "settings": {"bf": "2"}},
            "e.webm": {"codec": "libvpx-vp9", "settings": {"cpu-used": "8"}},
            "f.mov": {"rotation": 90},
            "g.mpg": {"codec": "mpeg2video"},
            "h.mp4": {"container": {"movflags": "faststart"}},
        }.items()
    ]
    random = np.random.default_rng(0)
    ended: Counter[str] = Counter()
    with ProcessDecoder(frame_timeout=10, probe_timeout=10) as child:
        for number in range(count):
            source = complete[number % len(complete)]
            path = tmp_path / f"mutant{number}{source.suffix}"
            path.write_bytes(mutated(source.read_bytes(), random))
            ended[end_of(child, path)] += 1
            path.unlink()
        assert [
            result for result, _ in child.frames(complete[0], child.probe(complete[0]), range(60))
        ] == list(range(60))
    assert set(ended) <= {
        "decord",
        "pyav",
        "unreadable",
        "truncated",
        "damaged",
        "too-large",
        "empty",
        "hung",
        "crashed",
    }
    assert (
        min(ended["decord"], ended["pyav"], ended["damaged"], ended["truncated"]) >= count // 50
    ), ended
