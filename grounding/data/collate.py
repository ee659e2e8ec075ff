"""Collation: samples to a padded, masked batch, and batches to the device of the model.

A batch for a GPU refers to the features in host memory, which is pinned if they come from a store.
Each feature array is copied from there directly to its place in the batch on the GPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grounding.data.images import EncodedImageBatch, EncodedImages
from grounding.structures.inputs import ModelInputs
from grounding.structures.targets import Targets

if TYPE_CHECKING:
    from grounding.data.sample import Sample


@dataclass(frozen=True)
class DeferredBatch:
    """Arrays that are stacked on a device later, by `to`.

    Attributes:
        arrays: Arrays of one number of dimensions and one dtype, zero-padded to the largest.
    """

    arrays: Sequence[np.ndarray]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Stack the arrays on a device.

        Args:
            device: The device.
            non_blocking: Do not wait for the copies. The arrays must then stay unchanged until
                the copies have ended.

        Returns:
            [n, …], zero-padded to the largest array along every axis.
        """
        shape = _max_shape(self.arrays)
        is_padded = any(array.shape != shape for array in self.arrays)
        allocate = torch.zeros if is_padded else torch.empty
        dtype = torch.from_numpy(np.empty(0, self.arrays[0].dtype)).dtype
        result = allocate((len(self.arrays), *shape), dtype=dtype, device=device)

        for slot, array in zip(result, self.arrays, strict=True):
            source = torch.from_numpy(np.ascontiguousarray(array))
            slot[_corner(array)].copy_(source, non_blocking=non_blocking)
        return result


def collate(
    samples: Sequence[Sample], defer: bool = False, deduplicate: bool = True
) -> ModelInputs:
    """Collate samples: pad maps to the largest of the batch and sentences to the longest.

    Features keep their stored dtype (float16).

    Args:
        samples: B samples.
        defer: Leave the features where they are; `to_device` pads them on the device. Encoded
            images are always deferred.
        deduplicate: Put the features of samples with equal `video_key` into the batch once. A
            model that trains on maps gains little by it, and batches lose their one shape.

    Returns:
        The batch, on the CPU.
    """
    # The samples of V distinct videos, and for each of the B samples its index among these.
    videos = list(samples)
    video_indices = None
    if deduplicate:
        videos, indices = _deduplicate_videos(samples)
        if len(videos) < len(samples):
            video_indices = torch.tensor(indices)

    # Motion maps are padded at the right and bottom, so the picture's part of them shrinks.
    max_rows = max(sample.motion.shape[1] for sample in videos)
    max_columns = max(sample.motion.shape[2] for sample in videos)
    shares = []
    for sample in videos:
        _, rows, columns, _ = sample.motion.shape
        shares.append([columns / max_columns, rows / max_rows] * 2)
    pictures = np.stack([sample.picture_in_square for sample in videos])  # [V, 4]
    picture_in_square = pictures * np.array(shares, np.float32)

    lengths = torch.tensor([len(sample.text) for sample in samples])
    token_indices = torch.arange(int(lengths.max()))
    return ModelInputs(
        appearance=_stack_or_defer([sample.appearance for sample in videos], defer),
        map_size=torch.tensor([sample.appearance.shape[1:3] for sample in videos]),
        frame_positions=torch.from_numpy(np.stack([sample.frame_positions for sample in samples])),
        motion=_stack_or_defer([sample.motion for sample in videos], defer),
        picture_in_square=torch.from_numpy(picture_in_square),
        text=pad_and_stack([sample.text for sample in samples]),
        text_mask=token_indices < lengths[:, None],
        video_indices=video_indices,
    )


def _deduplicate_videos(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """Return the first sample of each `video_key`, and each sample's index among these."""
    key_indices: dict[Hashable, int] = {}
    videos: list[Sample] = []
    for sample in samples:
        if sample.video_key not in key_indices:
            key_indices[sample.video_key] = len(videos)
            videos.append(sample)

    return videos, [key_indices[sample.video_key] for sample in samples]


def join_targets(targets: Sequence[Targets]) -> Targets:
    """Concatenate targets along the batch axis.

    Args:
        targets: Targets of single samples, or of batches.

    Returns:
        The targets of the whole batch.
    """
    tensors = {}
    for field in fields(Targets):
        tensors[field.name] = torch.cat([getattr(target, field.name) for target in targets])
    return Targets(**tensors)


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a batch to a device, without waiting for the copies.

    Args:
        batch: A dataclass of tensors, deferred tensors and None.
        device: The device.

    Returns:
        A dataclass of the same class, with tensors on the device.
    """
    values = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        values[field.name] = None if value is None else value.to(device, non_blocking=True)
    return type(batch)(**values)


def _stack_or_defer(arrays: Sequence[np.ndarray | EncodedImages], defer: bool) -> Any:
    """Return a padded tensor, or an object whose `to` pads (and decodes) on the device."""
    encoded = [array for array in arrays if isinstance(array, EncodedImages)]
    if encoded:
        return EncodedImageBatch(encoded)

    decoded = [array for array in arrays if not isinstance(array, EncodedImages)]
    return DeferredBatch(decoded) if defer else pad_and_stack(decoded)


def pad_and_stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stack arrays, zero-padded to the largest along every axis.

    NumPy does the work in the calling thread. A loader thread that computes with torch gets a team
    of OpenMP threads of its own. With more threads than cores, OpenMP lets all of them sleep at
    every wait, the model's threads too.

    Args:
        arrays: Arrays of one number of dimensions and one dtype.

    Returns:
        [n, …].
    """
    shape = _max_shape(arrays)
    result = np.empty((len(arrays), *shape), arrays[0].dtype)
    for slot, array in zip(result, arrays, strict=True):
        if array.shape != slot.shape:
            slot[...] = 0
        slot[_corner(array)] = array
    return torch.from_numpy(result)


def _corner(array: np.ndarray) -> tuple[slice, ...]:
    """Return the slices of an array's place in a larger one: its corner at the origin."""
    return tuple(slice(size) for size in array.shape)


def _max_shape(arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Return the elementwise maximum of the arrays' shapes."""
    return tuple(np.max([array.shape for array in arrays], 0).tolist())
