"""Data sets: IDX files, image tensors, and the split into training and validation images.

Images are stored as uint8 [N, 784], from 0 (black) to 255 (white). Batches for the model are float32 in [0, 1].
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.errors import ConfigError, DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_FILE_BYTES = 64 * 2**20  # the largest file has 47,040,016
SPLIT_SEED = 0  # not a parameter: metrics of two runs are comparable only on the same validation images


@dataclass(frozen=True, repr=False)
class Split:
    """Images, uint8 [N, 784], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        shape, device = tuple(self.images.shape), self.images.device
        return f"Split({len(self):,} images {shape}, {self.images.dtype}, on {device})"

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def to(self, device: torch.device) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


def parse_idx(content: bytes, where: str) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes in an IDX file, which has a magic number, big-endian dimensions and values.

    Raises DataError if magic number, dimensions and length don't match. `where` names the file in the message.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] not in (1, 3):
        raise DataError(f"{where} is not an IDX file of images or labels: it starts with {content[:12]!r}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[start : start + 4]) for start in range(4, header, 4)]
    expected = header + math.prod(shape)
    if 0 in shape or len(content) != expected:
        sizes = f"{len(content):,} bytes instead of {expected:,}"
        raise DataError(f"{where} is truncated or damaged: {sizes}, for dimensions {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def gunzip(content: bytes, where: str) -> bytes:
    """Decompress. Raises DataError for a damaged file, and for more than MAX_FILE_BYTES, as in a gzip bomb."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except EOFError:
        raise DataError(f"{where} is truncated: the gzip stream has no end") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{where} is damaged: {error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise DataError(f"{where} holds more than the {MAX_FILE_BYTES:,} bytes allowed")
    return raw


def gzipped(content: bytes) -> bytes:
    """Compress without name and time in the header, so that the result depends only on the content."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def load(folder: Path | str, part: str) -> Split:
    """Load the `train` or `test` images and labels from the .gz files that the download stage wrote to `folder`.

    Raises DataError, naming the file, if one is missing or damaged, or if images and labels don't match.
    """
    images, labels = (_read(Path(folder) / f"{name}.gz") for name in FILES[part])
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: {part} files don't match: images have shape {images.shape}, labels {labels.shape}, "
            "allowed are (N, 28, 28) and (N,)"
        )
    return Split(torch.tensor(images).flatten(1), torch.tensor(labels, dtype=torch.int64))


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): `dvc repro -f download` fetches it") from None
    return parse_idx(gunzip(content, str(path)), str(path))


def split_validation(train: Split, validation_size: int | float) -> tuple[Split, Split]:
    """Split into training and validation images, stratified by label. The split is the same in every run.

    `validation_size` is the number of validation images, or, below 1, their fraction.
    Raises ConfigError if a class has no image in one of the parts.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    indices = np.arange(len(train))
    try:
        parts = train_test_split(indices, test_size=validation_size, random_state=SPLIT_SEED, stratify=train.labels)
    except ValueError as error:
        raise ConfigError(
            f"data.validation_size is {validation_size}, of {len(train):,} training images: {error}"
        ) from None
    training, validation = (Split(train.images[part], train.labels[part]) for part in parts)
    return training, validation
