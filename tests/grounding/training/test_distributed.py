"""A step is the same however its batch is cut: over accumulated parts, over processes; and in less
memory or precision.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grounding.data.collate import collate
from grounding.data.dataset import GroundingDataset
from grounding.modules.activation_checkpointing import checkpoint_layers
from grounding.systems.checkpoint import load_model
from grounding.systems.config import TrainConfig
from grounding.systems.provenance import read_provenance
from grounding.systems.registry import SYSTEMS
from grounding.training.distributed import DistributedContext
from grounding.training.optimizer import build_optimizer
from grounding.training.run_directory import prepare_run_dir
from grounding.training.train import NonFiniteLossError, train
from pipeline.config import validate
from pipeline.errors import InputError
from tests.forked_commands import ForkedCommand, wait_until

Maker = Callable[..., Path]
SMALL: dict[str, Any] = {
    "hidden_dim": 8,
    "num_heads": 2,
    "ffn_dim": 8,
    "num_layers": 2,
    "num_frames": 4,
}
MODEL = {
    **SMALL,
    "num_clips": 4,
    "proposal_map_channels": 4,
    "proposal_map_kernel": 3,
    "proposal_map_layers": 1,
}
STEADY = {"dropout": 0.0, "box_head": "attention"}
RECIPE: dict[str, Any] = {
    "model": {
        **MODEL,
        **STEADY,
        "alpha": 1.0,
        "guidance_scale": "num_cells",
        "clip_pooling": "attention",
    },
    "loss": {"box_attention": 1.0, "cell_boxes": 1.0},
    "device": "cpu",
    "batch": 8,
    "lr": 1e-2,
    "optimizer": "adamw",
    "schedule": "constant",
    "clip_norm": 1.0,
    "ema_decay": 0.5,
    "max_steps": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
    "log_every": 1,
}
"""One epoch is one step: every batch holds wide and tall maps, so that parts are padded unlike the
whole.
"""
OWN: dict[str, dict[str, Any]] = {
    "csdvl": {},
    "cgstvg": {
        "model": {
            **SMALL,
            **STEADY,
            "num_stages": 2,
            "motion_product": "motion",
            "refinement": "none",
        },
        "loss": {"box_attention": 1.0, "cell_boxes": 1.0, "boundary_sigma": 1.0},
        "lr": 1e-3,
    },
    "costa": {
        "model": {
            **SMALL,
            **STEADY,
            "num_layers": 1,
            "num_decoder_layers": 2,
            "r3d_width": 8,
            "train_image_encoder": True,
            "teacher_forcing_rate": 1.0,
        },
        "loss": {"box_attention": 1.0, "cell_boxes": 1.0, "boundary_sigma": 1.0},
        "encoders": {"backbones": "tiny", "image": "tiny"},
        "lr": 1e-3,
        "lr_image": 1e-4,
        "max_steps": 1,
    },
}
"""Where their recipes differ, in what does not turn on a number's last digits: CG-STVG's thresholds
do.
"""
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
"""After four steps, float32: sums are taken in another order. Found: at most 1.3e-6. CoSTA is held
to it after one: its norms leave most gradients of its convolutions small, AdamW makes whole steps
of small ones, and what was rounding grows tenfold with every step.
"""


def recipe(system: str = "csdvl", **changes: Any) -> TrainConfig:
    return validate(SYSTEMS[system].config_class, {**RECIPE, **OWN[system], **changes}, "test")


def train_run(store: Path, run: Path, system: str = "csdvl", **changes: Any) -> Path:
    config = recipe(system, **changes)
    prepare_run_dir(store, run, config)
    train(store, run, config)
    return run


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last" / "state.pt", weights_only=True)


def assert_close_runs(a: Path, b: Path) -> None:
    """AdamW's moments, the weights that a gradient moves, their moving average, and every curve.

    Some gradients are nothing but rounding (a key's bias, where softmax takes what is the same for
    all keys away), and AdamW makes a whole step of them in any direction: such weights are free,
    and change no output.
    """
    state, other_state = state_of(a), state_of(b)
    system, model = read_provenance(a)["model"], load_model(a)[0]
    assert (state["step"], state["judged"]) == (other_state["step"], other_state["judged"])
    torch.testing.assert_close(state["optimizer"], other_state["optimizer"], **TOLERANCE)
    parameter_names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, recipe(system), 1)[0].param_groups
    names = [parameter_names[id(parameter)] for group in groups for parameter in group["params"]]
    trained_masks = {
        names[number]: moments["exp_avg_sq"].sqrt() > 1e-8
        for number, moments in state["optimizer"]["state"].items()
    }
    assert sum(int(mask.sum()) for mask in trained_masks.values()) > 0.75 * sum(
        mask.numel() for mask in trained_masks.values()
    )
    for name, mask in trained_masks.items():
        for kind, key in (("model", name), ("ema", f"module.{name}")):
            torch.testing.assert_close(
                state[kind][key][mask], other_state[kind][key][mask], **TOLERANCE
            )
    curves = {path.relative_to(a): path for path in a.glob("curves/plots/metrics/**/*.tsv")}
    assert len(curves) > 10
    for name, path in curves.items():
        torch.testing.assert_close(points(path), points(b / name), atol=1e-3, rtol=1e-3)


def points(path: Path) -> torch.Tensor:
    return torch.tensor(
        [[float(value) for value in row.split("\t")] for row in path.read_text().splitlines()[1:]]
    )


@pytest.fixture(scope="module", params=OWN)
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def full_run(system: str, image_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(image_store, tmp_path_factory.mktemp("whole") / "run", system)


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_parts_are_the_batch(
    image_store: Path, tmp_path: Path, system: str, full_run: Path, parts: int
) -> None:
    assert_close_runs(
        train_run(image_store, tmp_path / "run", system, accumulation_steps=parts), full_run
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputed_layers_give_the_same_weights_to_the_bit(
    shapes_store: Path, tmp_path: Path, dropout: float
) -> None:
    """Dropout drops the same in the second forward pass."""
    changes = {"model": {**RECIPE["model"], "dropout": dropout}, "max_steps": 2}
    plain_run = train_run(shapes_store, tmp_path / "kept", **changes)
    recomputed_run = train_run(
        shapes_store, tmp_path / "again", activation_checkpointing=True, **changes
    )
    torch.testing.assert_close(state_of(recomputed_run), state_of(plain_run), atol=0, rtol=0)
    assert (
        load_model(recomputed_run)[0].state_dict().keys()
        == load_model(plain_run)[0].state_dict().keys()
    )


def test_recomputing_keeps_less(shapes_store: Path) -> None:
    """Bytes held between forward and backward pass: a third without the layers' own."""
    config = recipe()
    features = GroundingDataset.from_store(shapes_store, "train", 4, 4)
    inputs = collate([features.load_sample(query) for query in features.queries])
    saved_bytes = []
    for recompute in (False, True):
        model = SYSTEMS["csdvl"].build(features.dims, config.model)
        if recompute:
            checkpoint_layers(model)
        tensors: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, own=tensors: (own.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t
        ):
            outputs = model(inputs)
        saved_bytes.append(sum(tensors.values()))
        assert outputs.proposal_logits.requires_grad
    assert saved_bytes[1] < 0.5 * saved_bytes[0]


def test_bfloat16_learns_nearly_the_same(
    image_store: Path, tmp_path: Path, system: str, full_run: Path
) -> None:
    """The first loss agrees to bfloat16's three digits, weights and moving average stay float32,
    and it goes on.
    """
    bfloat16_run = train_run(image_store, tmp_path / "half", system, precision="bfloat16")
    assert {
        value.dtype
        for value in state_of(bfloat16_run)["model"].values()
        if value.is_floating_point()
    } == {torch.float32}
    losses = [
        points(run / "curves" / "plots" / "metrics" / "train" / "loss.tsv")[:, 1]
        for run in (bfloat16_run, full_run)
    ]
    torch.testing.assert_close(*losses, atol=0, rtol=0.02)
    assert not torch.equal(*losses)


@pytest.mark.parametrize("collaboration", ["none", "sum", "fc_sum", "concat_fc"])
@pytest.mark.parametrize("box_head", ["mlp", "attention"])
def test_every_variant_runs_in_bfloat16(
    shapes_store: Path, tmp_path: Path, collaboration: str, box_head: str
) -> None:
    model = {**MODEL, "num_layers": 1, "collaboration": collaboration, "box_head": box_head}
    train_run(shapes_store, tmp_path / "run", precision="bfloat16", model=model, max_steps=1)


def test_a_compiled_network_learns_the_same(
    image_store: Path, tmp_path: Path, system: str, full_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by torch.compile and run without a compiler of machine code; the checkpoint's names
    are the network's own.
    """
    compiled: list[torch.nn.Module] = []
    trace = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or trace(model))
    run = train_run(image_store, tmp_path / "run", system, compile=True)
    assert len(compiled) == 1
    torch.testing.assert_close(state_of(run), state_of(full_run), **TOLERANCE)


def test_a_batch_that_cannot_be_cut_is_refused(shapes_store: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="a batch of 8 queries cannot be cut into 1 processes × 3 accumulated parts",
    ):
        train_run(shapes_store, tmp_path / "run", accumulation_steps=3)


@pytest.mark.parametrize(("accumulate", "named"), [(8, "train-3"), (1, "(train-[0-7](, )?){8}")])
def test_a_loss_that_is_not_a_number_names_the_queries_of_its_part(
    make_store: Maker, tmp_path: Path, accumulate: int, named: str
) -> None:
    store = make_store(fill={"text/train-3": float("nan")})
    with pytest.raises(
        NonFiniteLossError,
        match=f"^the loss is nan at step 0, in the batch of {named}: lower lr or look at them$",
    ):
        train_run(store, tmp_path / "run", accumulation_steps=accumulate)


def test_a_gradient_that_is_not_a_number_names_the_batch(
    shapes_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of nothing is nothing, but its slope is not a number."""
    rootless = replace(
        SYSTEMS["csdvl"],
        loss=lambda out, targets, weights, totals: {"loss": (0 * out.proposal_logits.sum()).sqrt()},
    )
    monkeypatch.setitem(SYSTEMS, "csdvl", rootless)
    with pytest.raises(
        NonFiniteLossError,
        match=r"^the gradient is (nan|inf) at step 0, in the batch of (train-\d(, )?){8}: lower lr",
    ):
        train_run(shapes_store, tmp_path / "run", accumulation_steps=2)


def test_first_weights_are_loaded_once(
    shapes_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the moving average is made of them; a resumed run does not read the file again."""
    calls: list[Any] = []

    def load_pretrained(model: torch.nn.Module, path: Path, basis: object) -> str:
        calls.append((path, basis))
        torch.nn.init.constant_(model.object_query, 3.0)
        return "a report"

    monkeypatch.setitem(
        SYSTEMS, "csdvl", replace(SYSTEMS["csdvl"], load_pretrained=load_pretrained)
    )
    (weights_file := tmp_path / "mdetr.pth").write_bytes(b"weights")
    run = train_run(shapes_store, tmp_path / "run", init_from=weights_file, max_steps=1, lr=1e-9)
    assert calls == [(weights_file, None)]
    for kind, name in (("model", "object_query"), ("ema", "module.object_query")):
        torch.testing.assert_close(state_of(run)[kind][name], torch.full((8,), 3.0))
    config = recipe(init_from=weights_file, max_steps=2, lr=1e-9)
    prepare_run_dir(shapes_store, run, config, resume=True)
    train(shapes_store, run, config)
    assert len(calls) == 1


# Several processes


def config_file(folder: Path, system: str = "csdvl", **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"train": recipe(system, **changes).model_dump(mode="json")}))
    return path


def command(store: Path, run: Path, config: Path, system: str = "csdvl") -> list[str]:
    paths = {"--features": store, "--run": run, "--config": config}
    arguments = [text for option, path in paths.items() for text in (option, str(path))]
    return [*arguments, "--model", system]


def environment(**values: Any) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RANK", "WORLD", "LOCAL_", "MASTER_"))
    }
    return {
        **inherited,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in values.items()},
    }


def start_processes(count: int, arguments: list[str], folder: Path) -> list[ForkedCommand]:
    """Training processes as torchrun starts them; the output of each is in `<rank>.txt`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        ForkedCommand(
            "cli.train",
            arguments,
            folder / f"{rank}.txt",
            environment(**group, RANK=rank, LOCAL_RANK=rank),
        )
        for rank in range(count)
    ]


@pytest.fixture
def two_processes(shapes_store: Path, tmp_path: Path) -> Iterator[list[ForkedCommand]]:
    """Two processes in the middle of an endless training."""
    config = config_file(
        tmp_path, accumulation_steps=2, max_steps=10**6, validate_every=10**6, checkpoint_every=1
    )
    processes = start_processes(2, command(shapes_store, tmp_path / "run", config), tmp_path)
    wait_until((tmp_path / "run" / "checkpoints" / "last").exists, 120, processes)
    yield processes
    for process in processes:
        process.kill()


def run_two_processes(store: Path, run: Path, system: str = "csdvl", **changes: Any) -> str:
    """Train in two processes, and return what both have printed."""
    config = config_file(run.parent, system, **changes)
    processes = start_processes(2, command(store, run, config, system), run.parent)
    exit_codes = [process.wait(120) for process in processes]
    output = "".join(process.output for process in processes)
    assert exit_codes == [0, 0], output
    return output


def run_torchrun(store: Path, run: Path, system: str = "csdvl", **changes: Any) -> str:
    """Train in two processes of torchrun, and return what both have printed."""
    config = config_file(run.parent, system, **changes)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(store, run, config, system)
    completed = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "--", "cli.train", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_two_processes_are_one(
    image_store: Path, tmp_path: Path, system: str, full_run: Path
) -> None:
    """Two processes × two accumulated parts, CSDVL's by torchrun; one of them writes."""
    run_processes = run_torchrun if system == "csdvl" else run_two_processes
    output = run_processes(image_store, tmp_path / "run", system, accumulation_steps=2)
    assert output.count("trained") == 1
    assert_close_runs(tmp_path / "run", full_run)
    assert read_provenance(tmp_path / "run") == read_provenance(full_run)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.yaml", "curves", "log.txt", "provenance.json",
    ]  # fmt: skip


def test_parts_draw_their_own_random_numbers_whichever_process_has_them(
    shapes_store: Path, tmp_path: Path
) -> None:
    """With dropout, two processes of one part each are one process of two parts."""
    changes = {"model": {**RECIPE["model"], "dropout": 0.5}, "max_steps": 2}
    single = train_run(shapes_store, tmp_path / "alone", accumulation_steps=2, **changes)
    run_two_processes(shapes_store, tmp_path / "run", **changes)
    assert_close_runs(tmp_path / "run", single)


def test_a_process_that_dies_ends_the_others(
    two_processes: list[ForkedCommand], tmp_path: Path
) -> None:
    two_processes[1].kill()
    assert two_processes[0].wait(60) == 1
    assert (
        "error: process 0 of 2 has lost another one, whose own message says why"
        in (tmp_path / "0.txt").read_text()
    )
    assert state_of(tmp_path / "run")["step"] >= 1


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    two_processes: list[ForkedCommand], tmp_path: Path
) -> None:
    two_processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in two_processes] == [143, 143]
    assert "stopped; run the same command again to go on" in (tmp_path / "1.txt").read_text()
    assert "finished" not in read_provenance(tmp_path / "run")


def test_what_the_first_process_refuses_ends_the_others(shapes_store: Path, tmp_path: Path) -> None:
    """There is nothing to resume: the first says so, the other that it has lost the first, and none
    waits for ever.
    """
    workers = start_processes(
        2, [*command(shapes_store, tmp_path / "run", config_file(tmp_path)), "--resume"], tmp_path
    )
    assert [process.wait(120) for process in workers] == [2, 1]
    assert "holds no checkpoint to resume" in (tmp_path / "0.txt").read_text()
    assert "has lost another one" in (tmp_path / "1.txt").read_text()


def test_alone_there_is_nothing_to_wait_for() -> None:
    single = DistributedContext()
    assert (
        single.rank,
        single.world_size,
        single.is_main,
        single.all_reduce_max(3),
        single.all_gather("x"),
    ) == (0, 1, True, 3, ["x"])
    assert single.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
