"""Encoded images: JPEGs that stay encoded until they are on the GPU.

On a CPU images are decoded as they are read. For a GPU the JPEGs are kept and decoded there, a
whole batch at once: a twentieth of the bytes waits in host memory and is copied. The two decoders
upsample the subsampled colors differently. Their pixels differ by a gray level or two on average,
and by more at color edges.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from grounding.data.image_transforms import ImageTransform
from pipeline.features.images import encode_jpeg

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImages:
    """T JPEG-encoded frames of equal size. Duplicates are stored once.

    Attributes:
        images: The distinct frames, uint8 [bytes] each.
        indices: [T], index of each frame among the distinct ones.
        size: Rows and columns before the transform.
        transform: Applied after decoding; None to leave the frames as they are.
    """

    images: list[np.ndarray]
    indices: np.ndarray
    size: tuple[int, int]
    transform: ImageTransform | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the decoded and transformed frames, [T, h, w, 3]."""
        rows, columns = self.size if self.transform is None else self.transform.size
        return len(self.indices), rows, columns, 3

    @property
    def nbytes(self) -> int:
        """Bytes of the encoded frames."""
        return sum(image.nbytes for image in self.images)

    def with_transform(self, transform: ImageTransform) -> EncodedImages:
        """Return the same frames with another transform.

        Args:
            transform: The transform.

        Returns:
            The frames; their bytes are shared.
        """
        return replace(self, transform=transform)


@dataclass(frozen=True)
class EncodedImageBatch:
    """Encoded images of a batch, which `to` decodes on a device.

    Attributes:
        videos: The frames of V videos, of equal T.
    """

    videos: Sequence[EncodedImages]

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Decode, transform and pad the frames on a device.

        Args:
            device: The device.
            non_blocking: Has no effect; the parameter is that of `Tensor.to`.

        Returns:
            [V, T, h, w, 3], RGB, uint8, zero-padded to the largest.
        """
        # Decode the distinct frames of all videos at once.
        jpegs: list[np.ndarray] = []
        for video in self.videos:
            jpegs += video.images
        decoded = iter(decode_jpegs_on_device(jpegs, device))

        shape = np.max([video.shape for video in self.videos], 0).tolist()
        result = torch.zeros((len(self.videos), *shape), dtype=torch.uint8, device=device)
        for slot, video in zip(result, self.videos, strict=True):
            # [n, h, w, 3], the distinct frames of this video.
            frames = torch.stack([next(decoded) for _ in video.images]).permute(0, 2, 3, 1)
            if video.transform is not None:
                frames = video.transform.apply_to_tensor(frames)

            _, rows, columns, _ = frames.shape
            indices = torch.from_numpy(video.indices).to(device)
            slot[:, :rows, :columns] = frames[indices]
        return result


def decode_jpegs_on_device(jpegs: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Decode JPEGs on a device.

    Args:
        jpegs: JPEG files, uint8 [bytes] each.
        device: The device.

    Returns:
        Images [3, h, w], RGB, uint8, on the device.

    Raises:
        RuntimeError: If torchvision has no decoder for the device.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # The decoder does not wait for this stream before it writes into memory that was freed on it
    # (pytorch/vision#9606).
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()

    tensors = [torch.from_numpy(jpeg) for jpeg in jpegs]
    images: list[Tensor] = decode_jpeg(tensors, ImageReadMode.RGB, device)
    return images


@cache
def can_decode_jpegs(device: torch.device) -> bool:
    """Check that a device decodes JPEGs itself.

    Args:
        device: The device of the model.

    Returns:
        True on a GPU for which torchvision was built with a decoder.
    """
    if device.type != "cuda":
        return False

    # Decode a small image, and report a missing decoder once.
    jpeg = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8), 90)
    try:
        decode_jpegs_on_device([np.frombuffer(bytearray(jpeg), np.uint8)], device)
    except RuntimeError as error:
        log.warning(
            "images are decoded on the CPU: torchvision cannot decode them on %s: %s",
            device,
            str(error).splitlines()[0],
        )
        return False
    return True
