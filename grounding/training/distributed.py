"""The processes of one training, and their collective operations.

A training runs in one process, or in as many as torchrun started: one per GPU (NCCL), or on CPUs
(gloo). Every process holds the whole model and takes its part of each batch. Gradients are summed
over the processes, so that all of them take the same step. Only the main process (rank 0) writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    """Join the processes that torchrun started, for as long as the context lasts.

    Call it once, and pass the result on to the functions that train.

    Yields:
        Rank and world size of this process; rank 0 of 1 if torchrun did not start it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend)

    yield DistributedContext(distributed.get_rank(), distributed.get_world_size())

    # An error skips this call: the other processes may be waiting for this one, and must notice
    # its end.
    distributed.destroy_process_group()


@dataclass(frozen=True)
class DistributedContext:
    """Rank and world size of this process, and the collective operations of all processes.

    Attributes:
        rank: Index of this process, from 0.
        world_size: Number of processes; with one, collective operations return their input.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return True in the process that writes."""
        return self.rank == 0

    def get_device(self, name: str) -> torch.device:
        """Return a device by its name.

        Args:
            name: `auto`, `cpu`, `cuda` or `cuda:N`. With several processes `auto` and `cuda` are
                the GPU of this process.

        Returns:
            The device.

        Raises:
            InputError: If the device is not available.
        """
        if self.world_size > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
            return resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")

        return resolve_device(name)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place.

        Args:
            values: A tensor of equal shape in every process; it is overwritten.

        Returns:
            `values`, summed.

        Raises:
            PeerLostError: If another process has ended.
        """
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_reduce(values))

        return values

    def all_reduce_max(self, value: int) -> int:
        """Return the largest number of all processes.

        Args:
            value: The number of this process.

        Returns:
            The maximum, the same in every process.

        Raises:
            PeerLostError: If another process has ended.
        """
        maximum = torch.tensor(value)
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_reduce(maximum, distributed.ReduceOp.MAX))

        return int(maximum)

    def all_gather(self, item: T) -> list[T]:
        """Gather one picklable object of every process.

        Args:
            item: The object of this process.

        Returns:
            The objects in the order of ranks, the same in every process.

        Raises:
            PeerLostError: If another process has ended.
        """
        items: list[T] = [item] * self.world_size
        if self.world_size > 1:
            self._run_collective(lambda: distributed.all_gather_object(items, item))

        return items

    def barrier(self) -> None:
        """Wait until every process has called this method.

        Raises:
            PeerLostError: If another process has ended.
        """
        self.all_reduce_max(0)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradient of every trainable parameter over all processes.

        A gradient stays None if no process has one.

        Args:
            parameters: The model's parameters, in the same order in every process.

        Raises:
            PeerLostError: If another process has ended.
        """
        if self.world_size == 1:
            return

        # Count the processes that have a gradient of each parameter.
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        flags = [float(parameter.grad is not None) for parameter in trainable]
        counts = self.all_reduce_sum(torch.tensor(flags, device=trainable[0].device))

        # Sum all gradients in one flat tensor: one collective instead of one per parameter.
        flat_gradients = []
        for parameter in trainable:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            flat_gradients.append(gradient.flatten())
        sizes = [parameter.numel() for parameter in trainable]
        summed = self.all_reduce_sum(torch.cat(flat_gradients)).split(sizes)

        # Copy into the parameter's own memory layout (convolutions are channels-last), because a
        # fused optimizer walks parameter and gradient side by side.
        for parameter, gradient, count in zip(trainable, summed, counts.tolist(), strict=True):
            parameter.grad = None
            if count:
                parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))

    def _run_collective(self, operation: Callable[[], object]) -> None:
        """Run a collective operation and translate its failure into a PeerLostError."""
        try:
            operation()
        except RuntimeError as error:
            first_line = str(error).splitlines()[0]
            raise PeerLostError(
                f"process {self.rank} of {self.world_size} has lost another one, whose own message"
                f" says why ({first_line}); run the same command again to go on from the last"
                " checkpoint"
            ) from None


SINGLE_PROCESS = DistributedContext()
"""The context of a training in one process."""
