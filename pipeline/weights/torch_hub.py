"""torchvision's published weights in torch hub's cache, downloaded on first use."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_weight

from pipeline.errors import InputError
from pipeline.weights.encoder_specs import ENCODERS

TORCHVISION_WEIGHTS: dict[str, Any] = {
    spec.name: get_weight(spec.torchvision_weights)
    for spec in ENCODERS.values()
    if spec.torchvision_weights is not None
}
"""torchvision's weights by product."""


def get_torchvision_file(product: str) -> Path:
    """Return the file of torchvision's weights for a product, downloaded if necessary.

    Args:
        product: a product whose encoder has weights in torchvision.

    Returns:
        The file in torch hub's cache. Its content agrees with the digest in its name.

    Raises:
        InputError: the file is absent and cannot be downloaded, or it is damaged. The message says
            which file to put where.
    """
    url: str = TORCHVISION_WEIGHTS[product].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    # The name ends with the first digits of the SHA-256: `resnet101-63fe2227.pth`.
    expected_digest = path.stem.rpartition("-")[2]

    if not path.is_file():
        _download(url, path, expected_digest, product)

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected_digest):
        raise InputError(
            f"{path} is damaged or another file: its SHA-256 begins with "
            f"{digest[: len(expected_digest)]}, not {expected_digest}; delete it"
        )
    return path


def _download(url: str, path: Path, digest: str, product: str) -> None:
    """Download a file of weights into torch hub's cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no space, or another digest
        raise InputError(
            f"torchvision's weights for {product} ({TORCHVISION_WEIGHTS[product]}) are not in "
            f"torch hub's cache and cannot be fetched ({error}): put {url} at {path}, "
            f"or give the file: {product}=torchvision:FILE"
        ) from None
