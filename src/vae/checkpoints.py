"""Checkpoints: what a training needs to go on as if it had never stopped."""

import io
import pickle
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

    Which trainings are the same is the caller's to say, by the folder's name.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def save(self, epoch: int, state: State) -> None:
        """Write the state after `epoch`, and delete those that are neither the newest nor the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self._path(epoch), buffer.getvalue())
        for path in self._newest_first()[KEPT:]:
            path.unlink(missing_ok=True)

    def load(self, device: torch.device) -> State | None:
        """The newest state that can be read; None where there is none. A damaged one is skipped with a warning."""
        for path in self._newest_first():
            try:
                state: State = torch.load(path, map_location=device, weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{path} can't be read and is skipped: {reason}", stacklevel=2)
            else:
                return state
        return None

    def delete(self) -> None:
        """Delete the folder: the training has ended, and its results are on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:06d}.pt"

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.pt"), reverse=True)
