"""AtomicCheckpointIO: checkpoints that are whole or not there, wherever a process is killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then renames it: the file of that name is the last whole one, always.

    Lightning's own way writes to the folder of temporary files and moves the file from there. Where that folder is on
    another file system than the checkpoints, to move is to copy, and a process killed in the middle leaves a part of a
    file, in the place of the checkpoint that was there. Elsewhere than on a local file system this does what Lightning
    does.

    Example::

        L.Trainer(plugins=[mip.AtomicCheckpointIO()], callbacks=[ModelCheckpoint(dirpath="run", save_last=True)])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what to write.
            path: where to.
            storage_options: not used, as in Lightning's own.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(str(path).removeprefix("file://"))
        place.parent.mkdir(parents=True, exist_ok=True)
        # One name, so that processes which were killed leave one such file behind, and not one each.
        part = place.with_name(f".{place.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else, after a power cut, the new name may be there before the content is
            part.replace(place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
