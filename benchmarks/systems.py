"""Training steps of the systems beside each other, at the papers' sizes.

    .venv/bin/python -m benchmarks.systems           # some minutes; writes benchmarks/results/systems.md

Every system's preset for HC-STVG v1, with full-size features: C5 maps of 2048 channels at its N_short, SlowFast's clips or Video
Swin's frames. The systems take turns, and each one's memory is measured in a process of its own. On a CPU a batch is one
query, on a GPU 8, in bfloat16.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import where
from cli.app import keep_memory
from grounding.data import SQUARED, WHOLE
from grounding.inputs import Inputs
from grounding.loader import Batch
from grounding.processes import Processes
from grounding.recipe import Recipe
from grounding.state import State
from grounding.systems import preset, system_of
from grounding.targets import Targets
from grounding.train import learn
from pipeline.encoders.geometry import appearance_size, picture_in_square

RESULT = Path(__file__).parent / "results" / "systems.md"
PRESET, VIDEO, WORDS, SEED, ROUNDS = "hcstvg-v1", (1280, 720), 20, 0, 3
SHORT = {"csdvl": 320, "cgstvg": 420}
"""N_short of each paper."""
SLOWFAST = (16, 16)
CHANNELS = {"appearance": 2048, "motion": 2304, "swin": 768, "text": 768}


@dataclass(frozen=True)
class Measured:
    """One system: its parameters, seconds of a step by round, and the bytes that a step takes at its peak beyond what there was."""

    name: str
    sees: str
    parameters: int
    seconds: list[float]
    peak: int


def main() -> None:
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = {name: Step(name, device) for name in SHORT}
    seconds = defaultdict[str, list[float]](list)
    for _ in range(ROUNDS + 1):  # the first is not counted
        for name, step in steps.items():
            seconds[name].append(timed(step, device))
    found = [Measured(name, step.sees, step.parameters, seconds[name][1:], peak_of(name, device)) for name, step in steps.items()]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(result(found, steps["csdvl"].batch, device), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


class Step:
    """A system with a batch at hand; each call is one training step."""

    def __init__(self, name: str, device: torch.device) -> None:
        own = preset(PRESET, name)
        precise = {"batch": 1} if device.type == "cpu" else {"batch": 8, "precision": "bfloat16"}
        self.config: Recipe = system_of(name).config.model_validate({**own, **precise})
        self.batch = self.config.batch
        model = self.config.model
        torch.manual_seed(SEED)
        dims = (CHANNELS["appearance"], CHANNELS[model.motion], CHANNELS["text"])
        network = system_of(name).build(dims, model).to(device)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.state = State.start(network, self.config, 10**6)
        self.together = Processes()
        self.part = batch_of(model, SHORT[name], self.batch, device)
        maps, clips = self.part.inputs.appearance, self.part.inputs.motion
        self.sees = f"{maps.shape[1]} maps {maps.shape[2]}×{maps.shape[3]}, {clips.shape[1]} of {clips.shape[2]}×{clips.shape[3]}"

    def __call__(self) -> None:
        learn(self.state.model, self.state, [self.part], self.config, self.together)


def batch_of(model: Any, short: int, batch: int, device: torch.device) -> Batch:
    """A batch of random features of real shapes."""
    width, height = appearance_size(VIDEO, short)
    rows, columns = -(-height // 32), -(-width // 32)
    clips = model.clips or model.frames
    squared = model.motion in SQUARED
    side, square = (SLOWFAST, picture_in_square(VIDEO)) if squared else ((rows, columns), WHOLE)

    def features(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape).half().to(device)

    tau = (torch.arange(model.frames) + 0.5) / model.frames
    inputs = Inputs(
        appearance=features(model.frames, rows, columns, CHANNELS["appearance"]),
        map_size=torch.tensor([[rows, columns]] * batch, device=device),
        frame_tau=tau.expand(batch, -1).to(device),
        motion=features(clips, *side, CHANNELS[model.motion]),
        square=torch.tensor([square] * batch, device=device),
        text=features(WORDS, CHANNELS["text"]),
        text_mask=torch.ones(batch, WORDS, dtype=torch.bool, device=device),
    )
    inside = ((tau > 0.25) & (tau < 0.75)).expand(batch, -1)
    at = (torch.arange(clips) + 0.5) / clips
    inside_clips = ((at > 0.25) & (at < 0.75)).expand(batch, -1)
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    targets = Targets(
        boxes=box.expand(batch, model.frames, 4),
        boxed=inside,
        span=torch.tensor([[0.25, 0.75]] * batch),
        frames=inside.float(),
        clips=inside_clips.float(),
        clip_boxes=box.expand(batch, clips, 4),
        clip_boxed=inside_clips,
    )
    placed = Targets(**{name: value.to(device) for name, value in vars(targets).items()})
    return Batch(inputs, placed, [f"q{number}" for number in range(batch)])


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_of(name: str, device: torch.device) -> int:
    """Bytes at the peak of a system's second step beyond those before it, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, str(device)))


def _peak(name: str, device: str) -> int:
    step = Step(name, torch.device(device))
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of this process' memory, from /proc."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def result(found: list[Measured], batch: int, device: torch.device) -> str:
    first = np.median(found[0].seconds)
    rows = []
    for one in found:
        ratios = np.array(one.seconds) / np.array(found[0].seconds)
        step = f"{1e3 * np.median(one.seconds):,.0f} ms, " if device.type == "cuda" else ""
        rows.append(
            f"| {one.name} | {one.sees} | {one.parameters / 1e6:.1f} M "
            f"| {step}**{np.median(one.seconds) / first:.2f}** ({ratios.min():.2f} … {ratios.max():.2f}) "
            f"| {one.peak / 2**30:.2f} GiB | {one.peak / found[0].peak:.2f} |"
        )
    table = "\n".join(rows)
    gpu = f"{torch.cuda.get_device_name()}, bfloat16, " if device.type == "cuda" else "no GPU, float32, "
    return f"""# Training steps of the systems, at the papers' sizes

Whole steps (forward, loss, backward, clipping, optimiser, moving average) of each system's preset `{PRESET}`, from full-size features of a
{VIDEO[0]}×{VIDEO[1]} video and {WORDS} tokens that are at hand, {batch} per batch. The systems take turns; medians of {ROUNDS} rounds, in
brackets the ratios of single rounds. Memory: what a step takes at its peak beyond what there was before it, in a process of its own.

| system | sees | parameters | step ÷ CSDVL's | memory of a step | ÷ CSDVL's |
| --- | --- | --- | --- | --- | --- |
{table}

**Where.** {gpu}{where("torch", "numpy")}, {torch.get_num_threads()} threads. {time.strftime("%Y-%m-%d")}.

**Command**

```
.venv/bin/python -m benchmarks.systems
```
"""


if __name__ == "__main__":
    main()
