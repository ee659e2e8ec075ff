"""The processes of one training: alone, or as many as torchrun started, one per GPU (NCCL) or on CPUs (gloo).

Every process holds the whole network and takes its part of each batch; gradients are summed, so that all of them take the
same step. The first one alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from pipeline.devices import resolve_device
from pipeline.errors import StvgError

T = TypeVar("T")


class PeerLostError(StvgError):
    """Another process of this training ended."""

    exit_code = 1


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the processes of torchrun while the context lasts; without torchrun this process is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield DistributedContext()
    distributed.destroy_process_group()  # not after an error: the others may wait, and must notice that this one is gone


class DistributedContext:
    """This process' place among those of one training, and what they do together."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world_size = (
            (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def get_device(self, name: str) -> torch.device:
        """The device of that name; of several GPUs the one that is this process' own."""
        if self.world_size > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
            return resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        return resolve_device(name)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; `values` is overwritten."""
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_reduce(values))
        return values

    def all_reduce_max(self, value: int) -> int:
        """The largest of all processes' numbers."""
        numbers = torch.tensor(value)
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_reduce(numbers, distributed.ReduceOp.MAX))
        return int(numbers)

    def all_gather(self, item: T) -> list[T]:
        """Every process' item, in all of them."""
        items: list[T] = [item] * self.world_size
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_gather_object(items, item))
        return items

    def barrier(self) -> None:
        """Until all have come here."""
        self.all_reduce_max(0)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over all processes, and stays None where none has one."""
        if self.world_size == 1:
            return
        own = [parameter for parameter in parameters if parameter.requires_grad]
        there = self.all_reduce_sum(
            torch.tensor(
                [float(parameter.grad is not None) for parameter in own], device=own[0].device
            )
        )
        flat = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in own
        ]
        summed = self.all_reduce_sum(torch.cat(flat)).split(
            [parameter.numel() for parameter in own]
        )
        for parameter, gradient, known in zip(own, summed, there.tolist(), strict=True):
            # In the parameter's own memory layout (convolutions have channels last): a fused optimiser walks both side by side.
            parameter.grad = (
                torch.empty_like(parameter).copy_(gradient.view_as(parameter)) if known else None
            )

    def _run_collective(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except RuntimeError as error:
            raise PeerLostError(
                f"process {self.rank} of {self.world_size} has lost another one, whose own message says why ({str(error).splitlines()[0]}); "
                "run the same command again to go on from the last checkpoint"
            ) from None
