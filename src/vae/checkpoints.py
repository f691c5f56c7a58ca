"""Checkpoints: what a training needs to go on as if it had never stopped."""

import hashlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from vae.files import write_atomically

KEPT = 2  # the newest, and the one before it, should the newest be damaged

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one training, in a folder of its own: `<epoch>.pt`, each written whole or not at all.

    A file is what `torch.save` writes, and its SHA-256 behind that: `torch.load` alone, which can read such files, too,
    takes a tensor with a flipped bit for sound.

    Which trainings are the same is the caller's to say, by the folder's name.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def save(self, epoch: int, state: State) -> None:
        """Write the state after `epoch`, and delete those that are neither the newest nor the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_atomically(self._path(epoch), content + hashlib.sha256(content).digest())
        for path in self._newest_first()[KEPT:]:
            path.unlink(missing_ok=True)

    def load(self, device: torch.device) -> State | None:
        """The newest state that can be read; None where there is none. A damaged one is skipped with a warning."""
        for path in self._newest_first():
            try:
                return _read(path, device)
            except Exception as error:  # what bytes that are no checkpoint raise in torch.load is anything
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{path} can't be read and is skipped: {reason}", stacklevel=2)
        return None

    def delete(self) -> None:
        """Delete the folder: the training has ended, and its results are on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:06d}.pt"

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"), reverse=True)


def _read(path: Path, device: torch.device) -> State:
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    content, digest = content[:-size], content[-size:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged")
    state: State = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state
