"""From IDX files to tensors: reading, splitting, binarizing.

Images are uint8 [N, 784] with 0 black and 255 white, wherever they are stored; what a model sees is float32 in
[0, 1], made from them a batch at a time.
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
MAX_FILE_BYTES = 64 * 2**20  # the largest of the files has 47,040,016; nothing honest is bigger

# Constants, not parameters: figures of two runs compare only over the same validation and test images.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, 784] and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def to(self, device: torch.device) -> "Split":
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


def parse_idx(content: bytes, where: str) -> npt.NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file: magic number, big-endian dimensions, values.

    Raises DataError where magic number, dimensions and length don't agree.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] not in (1, 3):
        raise DataError(f"{where} is not an IDX file of images or labels: it starts with {content[:12]!r}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[start : start + 4]) for start in range(4, header, 4)]
    expected = header + math.prod(shape)
    if 0 in shape or len(content) != expected:
        sizes = f"{len(content):,} bytes where {expected:,} belong"
        raise DataError(f"{where} is truncated or damaged: {sizes}, of dimensions {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def gunzip(content: bytes, where: str) -> bytes:
    """Decompress, at most MAX_FILE_BYTES, so that a small hostile file can't fill the memory."""
    decompressor = zlib.decompressobj(wbits=31)
    try:
        raw = decompressor.decompress(content, MAX_FILE_BYTES + 1)
    except zlib.error as error:
        raise DataError(f"{where} is damaged: {error}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise DataError(f"{where} holds more than {MAX_FILE_BYTES:,} bytes, which no MNIST file does")
    if not decompressor.eof:
        raise DataError(f"{where} is truncated: the gzip stream has no end")
    if decompressor.unused_data:
        raise DataError(f"{where} is damaged: something follows the gzip stream")
    return raw


def gzipped(content: bytes) -> bytes:
    """Compress with neither name nor time in the header, so that the same contents have the same checksum."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def load(folder: Path | str, part: str) -> Split:
    """The `train` or `test` images of the four .gz files that the download stage leaves in `folder`.

    Raises DataError, naming the file, where one is missing, damaged or doesn't match its twin.
    """
    images, labels = (_read(Path(folder) / f"{name}.gz") for name in FILES[part])
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: {part} files don't belong together: images {images.shape}, labels {labels.shape}, "
            "where (N, 28, 28) and (N,) belong"
        )
    return Split(torch.tensor(images).flatten(1), torch.tensor(labels, dtype=torch.int64))


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): `dvc repro -f download` fetches it") from None
    return parse_idx(gunzip(content, str(path)), str(path))


def split_validation(train: Split, validation_size: int | float) -> tuple[Split, Split]:
    """Split off a validation set, stratified by label, the same for every run.

    `validation_size` is a number of images, or a fraction of them below 1, as in scikit-learn.
    Raises ConfigError where that leaves nothing to train on, or less than one image a class.
    """
    from sklearn.model_selection import train_test_split  # a second of import: only where it is needed

    try:
        kept, held = train_test_split(
            np.arange(len(train)), test_size=validation_size, random_state=SPLIT_SEED, stratify=train.labels
        )
    except ValueError as error:
        raise ConfigError(
            f"data.validation_size is {validation_size}, of {len(train):,} training images: {error}"
        ) from None
    return (
        Split(train.images[kept], train.labels[kept]),
        Split(train.images[held], train.labels[held]),
    )
