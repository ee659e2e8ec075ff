"""All that training changes, saved and loaded whole: a resumed run is the uninterrupted one."""

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
    """Random numbers are no part of it: each part of each step seeds its own."""

    model: nn.Module
    ema_model: AveragedModel
    optimizer: Adam
    lr_scheduler: LambdaLR
    step: int = 0
    validated_step: int = 0
    """The last step that was validated."""
    best_metric: float = -1.0

    @classmethod
    def create(cls, model: nn.Module, config: TrainConfig, lr_schedule_steps: int) -> TrainState:
        """That of a model before its first step."""
        ema = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True
        )
        return cls(model, ema, *build_optimizer(model, config, lr_schedule_steps))

    def save(self, folder: Path) -> None:
        """Write EMA weights (`model.safetensors`) and everything else (`state.pt`); the folder is replaced as a whole."""
        aside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(
            {key: value.contiguous() for key, value in self.ema_model.module.state_dict().items()},
            aside / "model.safetensors",
        )
        whole = {
            "model": self.model.state_dict(),
            "ema": self.ema_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "step": self.step,
            "judged": self.validated_step,
            "best": self.best_metric,
        }
        torch.save(whole, aside / "state.pt")
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():  # else an earlier kill left `old` as the only whole one: it stays until the new one is in place
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> None:
        """Take up a saved state; one that was being replaced when the run was killed is found beside it."""
        if not folder.exists():
            folder = folder.with_name(f".{folder.name}.old")
        try:
            whole = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            raise InputError(
                f"{folder / 'state.pt'} is damaged: delete {folder.parent.parent} and train again"
            ) from None
        self.model.load_state_dict(whole["model"])
        self.ema_model.load_state_dict(whole["ema"])
        self.optimizer.load_state_dict(whole["optimizer"])
        self.lr_scheduler.load_state_dict(whole["schedule"])
        self.step, self.validated_step, self.best_metric = (
            whole["step"],
            whole["judged"],
            whole["best"],
        )
