"""Pictures that a task gives of itself at an ``h``, as PNG files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_mip.injection import evaluated
from lightning_mip.predicting import at_h

_FORMS = "(H, W), (1 or 3, H, W) or (N, 1 or 3, H, W)"


def pictures(model: Any, points: Sequence[Mapping[str, Tensor]]) -> list[dict[str, bytes]] | None:
    """Ask ``model.visualize(h)`` for pictures at each point, with the weights of that ``h`` in place.

    Args:
        model: a LightningModule. Its ``visualize(h)``, if it has one, returns an image, a list of images, or a mapping
            caption -> image. An image is a tensor or array of shape (H, W), (C, H, W) with C of 1 or 3, or (N, C, H, W)
            for N of them side by side; numbers from 0 to 1, or bytes.
        points: the values of ``h``.

    Returns:
        Caption -> PNG file for each point; None if the model has no ``visualize``.
    """
    if not callable(getattr(model, "visualize", None)):
        return None
    found = []
    with torch.no_grad(), evaluated(model):
        for h in points:
            with at_h(model, h):
                given = model.visualize(dict(h))
            found.append({caption: png(image) for caption, image in _captioned(given).items()})
    return found


def png(image: Any) -> bytes:
    """An image as a PNG file.

    >>> png(torch.zeros(2, 3))[1:4]
    b'PNG'
    """
    pixels = torch.as_tensor(image).detach().cpu()
    if pixels.ndim == 4:
        pixels = torch.cat(list(pixels), dim=-1)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"visualize gave an image of shape {tuple(torch.as_tensor(image).shape)}, expected {_FORMS}.")
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, -1)
    # Each row begins with its filter, none.
    data = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), rows], dim=1).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _captioned(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(caption): image for caption, image in given.items()}
    if isinstance(given, (list, tuple)):
        return {str(number): image for number, image in enumerate(given, start=1)}
    return {"": given}
