"""Reference results of the whole system on `shapes`, used to prove that a refactoring changes
nothing.

`python -m tests.frozen.answers small|demo` computes them anew and writes them to `answers.json`,
together with the machine they were computed on. On the same kind of machine they are compared to
the last digit.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.forked_commands import ForkedCommand

os.environ.setdefault("OMP_NUM_THREADS", "1")

FILE = Path(__file__).with_name("answers.json")
SMALL_COUNTS = {"train_videos": 6, "val_videos": 1, "test_videos": 1}
SYSTEMS = ("csdvl", "stvgformer", "cgstvg", "costa")
STEPS = 10


def machine() -> dict[str, str]:
    """Everything that the rounding of float32 kernels depends on."""
    import torch

    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return {
        "processor": " ".join(
            facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping")
        ),
        "instructions": hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:16],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def feature_digests(store: Path) -> dict[str, str]:
    """SHA-256 of the contents of every product: keys, rows and columns of all entries, in the order
    of the shards.
    """
    from pipeline.store import Store

    opened, digests = Store(store), {}
    for name in sorted(opened.products):
        reader, digest = opened.open(name), hashlib.sha256()
        for key in reader.keys():  # noqa: SIM118 - a reader is no mapping
            digest.update(str(key).encode())
            digest.update(reader.read(key).tobytes())
            for column, values in sorted(reader.columns(key).items()):
                digest.update(column.encode() + values.tobytes())
        digests[name] = digest.hexdigest()
    return digests


def ten_losses(store: Path, run: Path, system: str) -> list[float]:
    """Losses of the first ten steps of a system's preset `shapes`, on one thread."""
    import torch

    from grounding.systems.registry import get_preset, get_system
    from grounding.training.run_directory import prepare_run_dir
    from grounding.training.train import train
    from pipeline.config import merge, validate

    torch.set_num_threads(1)
    settings = {"device": "cpu", "max_steps": STEPS, "validate_every": STEPS, "log_every": 1}
    config = validate(
        get_system(system).config_class,
        merge(get_preset("shapes", system), settings),
        "frozen answers",
    )
    prepare_run_dir(store, run, config)
    train(store, run, config)
    rows = (
        (run / "curves" / "plots" / "metrics" / "train" / "loss.tsv").read_text().splitlines()[1:]
    )
    return [float(row.split("\t")[1]) for row in rows]


def command(module: str, *arguments: str) -> None:
    """Run a command in the current folder, as its console script would."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    program = f"from cli.{module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"cli.{module} {' '.join(arguments)}: {done.stderr}")


def small_store(folder: Path) -> Path:
    """Eight videos of `shapes` with the demo's settings (`params.yaml`), extracted in `folder`; the
    path of the store.
    """
    params = Path(__file__).parents[2] / "params.yaml"
    store, root, index = folder / "store", folder / "shapes", folder / "index" / "index.jsonl"
    counts = [
        part for name, count in SMALL_COUNTS.items() for part in ("--set", f"shapes.{name}={count}")
    ]
    place = (
        "--config",
        str(params),
        "--dataset",
        "shapes",
        "--root",
        str(root),
        "--index",
        str(index),
    )
    extract_options = ("--store", str(store), "--set", "device=cpu", "--set", "workers=0")
    commands = {
        "cli.prepare": (*place, *counts, "--set", "workers=1"),
        "cli.extract": (*place, *extract_options),
    }
    for module, arguments in commands.items():
        process = ForkedCommand(module, arguments, folder / f"{module}.txt")
        if process.wait():
            raise AssertionError(process.output)
    return store


def small_answers(folder: Path) -> dict[str, Any]:
    """Feature digests and ten-step losses on a small store."""
    store = small_store(folder)
    return {
        "features": feature_digests(store),
        "losses": {
            system: ten_losses(store, folder / "runs" / system, system) for system in SYSTEMS
        },
    }


def demo_answers(folder: Path) -> dict[str, Any]:
    """What `make demo` leaves in `folder`: metrics, digests of shards and features; and ten-step
    losses on its store.
    """
    store = folder / "store"
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    shards = {
        name: {key: info["digest"] for key, info in product["shards"].items()}
        for name, product in manifest["products"].items()
    }
    with tempfile.TemporaryDirectory() as runs:
        losses = {system: ten_losses(store, Path(runs) / system, system) for system in SYSTEMS}
    metrics = json.loads((folder / "runs" / "shapes" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "metrics": metrics,
        "shards": shards,
        "features": feature_digests(store),
        "losses": losses,
    }


def main() -> None:
    """Compute answers anew: `small`, or `demo FOLDER` where `make demo` was run."""
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if sys.argv[1] == "small":
        with tempfile.TemporaryDirectory() as folder:
            result = small_answers(Path(folder))
    else:
        result = demo_answers(Path(sys.argv[2]))
    known[sys.argv[1]] = {"machine": machine(), **result}
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
