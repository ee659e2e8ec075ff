"""The training state, saved and loaded as a whole: a resumed run equals the uninterrupted one."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from grounding.systems.config import TrainConfig
from grounding.training.optimizer import build_optimizer
from pipeline.errors import InputError


@dataclass
class TrainState:
    """All that training changes.

    Random number generators are not part of it: each micro-batch of each step seeds its own.

    Attributes:
        model: The model that is trained.
        ema_model: The exponential moving average of its weights.
        optimizer: The optimizer.
        lr_scheduler: The learning rate schedules of the optimizer's groups.
        step: The number of steps taken.
        validated_step: The last validated step.
        best_metric: The best validation metric so far; −1 before the first validation.
    """

    model: nn.Module
    ema_model: AveragedModel
    optimizer: Adam
    lr_scheduler: LambdaLR
    step: int = 0
    validated_step: int = 0
    best_metric: float = -1.0

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, lr_schedule_steps: int) -> TrainState:
        """Build the state of a model before its first step.

        Args:
            model: The model with its initial weights, on its device.
            config: The training configuration.
            lr_schedule_steps: The number of steps that the learning rate schedules run over.

        Returns:
            The state.
        """
        average = get_ema_multi_avg_fn(config.ema_decay)
        ema_model = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        optimizer, lr_scheduler = build_optimizer(model, config, lr_schedule_steps)
        return cls(model, ema_model, optimizer, lr_scheduler)

    def save(self, folder: Path) -> None:
        """Write the EMA weights (`model.safetensors`) and the whole state (`state.pt`).

        The folder is replaced as a whole: a complete checkpoint exists at every moment.

        Args:
            folder: The checkpoint's folder.
        """
        # Write into a folder beside the checkpoint.
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        ema_weights = self.ema_model.module.state_dict()
        save_file(
            {name: weight.contiguous() for name, weight in ema_weights.items()},
            part / "model.safetensors",
        )
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "step": self.step,
            "judged": self.validated_step,
            "best": self.best_metric,
        }
        torch.save(state, part / "state.pt")

        # The files are on the disk before they replace a complete checkpoint.
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

        # Without `folder`, an earlier kill left `old` as the only complete checkpoint. It stays
        # until the new one is in place.
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Load a saved state into this one.

        Args:
            folder: The checkpoint's folder. If the run was killed while replacing the folder, the
                previous checkpoint beside it is loaded.

        Raises:
            InputError: If `state.pt` is missing or damaged.
        """
        if not folder.exists():
            folder = folder.with_name(f".{folder.name}.old")

        try:
            state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(
                f"{folder / 'state.pt'} is damaged: delete {folder.parent.parent} and train again"
            ) from None

        self.model.load_state_dict(state["model"])
        self.ema_model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["schedule"])
        self.step = state["step"]
        self.validated_step = state["judged"]
        self.best_metric = state["best"]
