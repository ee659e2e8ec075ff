"""torchvision's own weights, from torch hub's cache; fetched into it where they are absent and there is a network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet101_Weights
from torchvision.models.video import Swin3D_T_Weights

from pipeline.errors import InputError

TORCHVISION_WEIGHTS: dict[str, Any] = {
    "appearance": ResNet101_Weights.IMAGENET1K_V1,
    "swin": Swin3D_T_Weights.KINETICS400_V1,
}
"""The first ImageNet weights of ResNet-101, as MDETR and the peers start from them; for the second, name their file."""


def get_torchvision_file(product: str) -> Path:
    """The file of torchvision's weights for a product, whole by the digest in its name.

    Raises InputError, which says where to put which file, where it is absent and cannot be fetched, and where it is damaged.
    """
    url: str = TORCHVISION_WEIGHTS[product].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    wanted = path.stem.rpartition("-")[2]
    if not path.is_file():
        _download(url, path, wanted, product)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(wanted):
        raise InputError(
            f"{path} is damaged or another file: its SHA-256 begins with {digest[: len(wanted)]}, not {wanted}; delete it"
        )
    return path


def _download(url: str, path: Path, digest: str, product: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no space, or another digest
        raise InputError(
            f"torchvision's weights for {product} ({TORCHVISION_WEIGHTS[product]}) are not in torch hub's cache and cannot be fetched ({error}): "
            f"put {url} at {path}, or name the file: {product}=torchvision:FILE"
        ) from None
