"""Checkpoints of a computation, from which an interrupted one resumes."""

import hashlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from vae.files import write_atomically

KEEP = 2  # the newest, and the one before in case the newest is damaged

State = dict[str, Any]


class Checkpoints:
    """The checkpoints `<epoch>.pt` of one training, in a folder of its own. The caller names the folder.

    Each file is written atomically: the output of `torch.save`, followed by its SHA-256, since `torch.load` doesn't
    notice a flipped bit in a tensor.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def save(self, epoch: int, state: State) -> None:
        """Write the state after `epoch`, and delete all but the newest two checkpoints."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        write_atomically(self._path(epoch), content + hashlib.sha256(content).digest())
        for path in self._newest_first()[KEEP:]:
            path.unlink(missing_ok=True)

    def load(self, device: torch.device) -> State | None:
        """Return the newest readable state, or None. Damaged checkpoints are skipped with a warning."""
        for path in self._newest_first():
            try:
                return _read(path, device)
            except Exception as error:  # torch.load raises many kinds of errors for damaged files
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{path} can't be read and is skipped: {reason}", stacklevel=2)
        return None

    def delete(self) -> None:
        """Delete the folder, once the results of the training are on the disk."""
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
