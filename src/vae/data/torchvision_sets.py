"""Data sets that torchvision downloads and verifies, one entry in `LOADERS` each."""

import socket
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae.data.own_images import Found
from vae.data.pictures import as_pictures
from vae.errors import DownloadError, one_line
from vae.files import project_root

FOLDER = Path("data/torchvision")
SILENCE_SECONDS = 30.0  # torchvision itself waits for ever

Loaded = tuple[Any, Any, Sequence[str]]  # pictures, labels, and names of the classes, of a part


def find_torchvision(name: str) -> Found:
    """The images of a data set, downloaded unless they are there. Raises DownloadError where that fails."""
    root = project_root() / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        train, test = (LOADERS[name](root, part) for part in ("train", "test"))
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{name} could not be downloaded by torchvision ({one_line(error)}); its files may be put in {root} by hand"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    is_files = isinstance(train[0], list)
    pictures = (
        train[0] + test[0] if is_files else np.concatenate([as_pictures(part[0], name) for part in (train, test)])
    )
    labels = None if train[1] is None else np.concatenate([train[1], test[1]])
    return Found(pictures, labels, list(train[2]), np.repeat([False, True], [len(train[0]), len(test[0])]))


def _emnist_letters(root: Path, part: str) -> Loaded:
    from torchvision.datasets import EMNIST

    data = EMNIST(root, "letters", train=part == "train", download=True)
    return data.data.numpy().transpose(0, 2, 1), data.targets.numpy() - 1, data.classes[1:]  # lying; from "a" is 1


def _cifar10(root: Path, part: str) -> Loaded:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=part == "train", download=True)
    return data.data, np.array(data.targets), data.classes


def _svhn(root: Path, part: str) -> Loaded:
    from torchvision.datasets import SVHN

    data = SVHN(root, part, download=True)
    return data.data, data.labels, [str(digit) for digit in range(10)]


def _celeba(root: Path, part: str) -> Loaded:
    from torchvision.datasets import CelebA

    data = CelebA(root, part, download=True)
    return [root / data.base_folder / "img_align_celeba" / name for name in data.filename], None, []


LOADERS: dict[str, Callable[[Path, str], Loaded]] = {
    "EMNIST-letters": _emnist_letters,
    "CIFAR10": _cifar10,
    "SVHN": _svhn,
    "CelebA": _celeba,
}
