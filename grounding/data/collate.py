"""Samples to a batch: padded and masked, what several ask about in it once, and brought to where the network computes.

For a GPU features are left where they were read, which is pinned memory where they come from a store, and each is copied from there to
its place in the batch on the GPU.
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
    """Arrays of one rank and type, each where it was read; `.to`, as of a tensor, stacks them on a device, zero-padded to the largest.

    They must not change before they have arrived, which `non_blocking` does not wait for.
    """

    arrays: Sequence[np.ndarray]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        shape = _max_shape(self.arrays)
        make = torch.empty if all(array.shape == shape for array in self.arrays) else torch.zeros
        kind = torch.from_numpy(np.empty(0, self.arrays[0].dtype)).dtype
        result = make((len(self.arrays), *shape), dtype=kind, device=device)
        for place, array in zip(result, self.arrays, strict=True):
            own = torch.from_numpy(np.ascontiguousarray(array))
            place[tuple(slice(side) for side in array.shape)].copy_(own, non_blocking=non_blocking)
        return result


def collate(
    samples: Sequence[Sample], defer: bool = False, deduplicate: bool = True
) -> ModelInputs:
    """Pad maps to the batch's largest and words to its longest; masks and sizes say what is real. Features stay as stored (float16).

    Where they are to stay `apart`, and where pictures are not decoded yet, `to_device` pads them. What several samples saw of a video
    lies in the batch once, unless they do not `share` it: a network that trains on maps wins little by it, and batches of one shape.
    """
    seen, video = (
        _deduplicate_videos(samples) if deduplicate else ([*samples], [*range(len(samples))])
    )
    rows, columns = (max(sample.motion.shape[axis] for sample in seen) for axis in (1, 2))
    filled = np.array(
        [[sample.motion.shape[2] / columns, sample.motion.shape[1] / rows] * 2 for sample in seen],
        np.float32,
    )
    lengths = torch.tensor([len(sample.text) for sample in samples])
    return ModelInputs(
        appearance=_stack_or_defer([sample.appearance for sample in seen], defer),
        map_size=torch.tensor([sample.appearance.shape[1:3] for sample in seen]),
        frame_positions=torch.from_numpy(np.stack([sample.frame_positions for sample in samples])),
        motion=_stack_or_defer([sample.motion for sample in seen], defer),
        picture_in_square=torch.from_numpy(
            np.stack([sample.picture_in_square for sample in seen]) * filled
        ),
        text=pad_and_stack([sample.text for sample in samples]),
        text_mask=torch.arange(int(lengths.max())) < lengths[:, None],
        video_indices=torch.tensor(video) if len(seen) < len(samples) else None,
    )


def _deduplicate_videos(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """Return the first sample of every `video_key`, and for each sample the index of its key among these."""
    key_indices: dict[Hashable, int] = {}
    distinct: list[Sample] = []
    for sample in samples:
        if sample.video_key not in key_indices:
            key_indices[sample.video_key] = len(distinct)
            distinct.append(sample)
    return distinct, [key_indices[sample.video_key] for sample in samples]


def join_targets(targets: Sequence[Targets]) -> Targets:
    """Batches of one, joined."""
    return Targets(
        *(
            torch.cat([getattr(target, field.name) for target in targets])
            for field in fields(Targets)
        )
    )


def to_device(batch: Any, device: torch.device) -> Any:
    """All that a batch dataclass holds on the device, as tensors."""
    held = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return type(batch)(
        **{
            name: None if own is None else own.to(device, non_blocking=True)
            for name, own in held.items()
        }
    )


def _stack_or_defer(arrays: Sequence[np.ndarray | EncodedImages], defer: bool) -> Any:
    """Padded, or what pads on the device; of pictures that are not decoded yet, what decodes and pads them there."""
    still = [own for own in arrays if isinstance(own, EncodedImages)]
    if still:
        return EncodedImageBatch(still)
    read = [own for own in arrays if not isinstance(own, EncodedImages)]
    return DeferredBatch(read) if defer else pad_and_stack(read)


def pad_and_stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stack arrays of one rank and type, zero-padded to the largest along every axis.

    NumPy does the work, on the calling thread: a loader's thread where torch has once computed has a team of threads of its
    own, and with more threads than cores OpenMP lets all of them sleep at every wait, the network's too.
    """
    shape = _max_shape(arrays)
    result = np.empty((len(arrays), *shape), arrays[0].dtype)
    for place, array in zip(result, arrays, strict=True):
        if array.shape != place.shape:
            place[...] = 0
        place[tuple(slice(side) for side in array.shape)] = array
    return torch.from_numpy(result)


def _max_shape(arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The shape that holds each of these."""
    return tuple(np.max([array.shape for array in arrays], 0).tolist())
