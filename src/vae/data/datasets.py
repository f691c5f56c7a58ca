"""Data sets: their files, image tensors, and the split into training and validation images.

Images are uint8 [N, D] with D = channels · height · width, from 0 (black) to 255 (white). Batches for the model are
float32 in [0, 1].
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae.data.image_files import image_file, read_images
from vae.errors import ConfigError, DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
MAX_FILE_BYTES = 64 * 2**20  # the largest file has 47,040,016
SPLIT_SEED = 0  # not a parameter: metrics of two runs are comparable only on the same validation images


@dataclass(frozen=True, repr=False)
class Split:
    """Images, uint8 [N, D], and their labels, int64 [N], if they have any.

    `shuffled` says that the images are in a random order with all classes spread evenly over it.
    """

    images: Tensor
    labels: Tensor | None = None
    shuffled: bool = False

    def __repr__(self) -> str:
        shape, device = tuple(self.images.shape), self.images.device
        return f"Split({len(self):,} images {shape}, {self.images.dtype}, on {device})"

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def require_labels(self) -> Tensor:
        """The labels, int64 [N]. Raises DataError where there are none."""
        if self.labels is None:
            raise DataError("the data set has no labels, which are needed here")
        return self.labels

    def to(self, device: torch.device) -> "Split":
        """The same split on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return Split(self.images.to(device), labels, self.shuffled)

    def rows(self, chosen: slice | npt.NDArray[Any]) -> "Split":
        """The chosen images; those of a slice share the memory of all."""
        labels = None if self.labels is None else self.labels[chosen]
        return Split(self.images[chosen], labels, self.shuffled)


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


def gunzip(content: bytes, where: str, max_bytes: int | None = None) -> bytes:
    """Decompress. Raises DataError for a damaged file, and for more than `max_bytes`, as in a gzip bomb."""
    max_bytes = max_bytes or MAX_FILE_BYTES
    try:
        with gzip.open(io.BytesIO(content)) as file:
            raw = file.read(max_bytes + 1)
    except EOFError:
        raise DataError(f"{where} is truncated: the gzip stream has no end") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{where} is damaged: {error}") from None
    if len(raw) > max_bytes:
        raise DataError(f"{where} holds more than the {max_bytes:,} bytes allowed")
    return raw


def gzipped(content: bytes) -> bytes:
    """Compress without name and time in the header, so that the result depends only on the content."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def load(folder: Path | str, part: str) -> Split:
    """Load the `train` or `test` images and labels that the download stage wrote to `folder`.

    Raises DataError, naming the file, if one is missing or damaged, or if images and labels don't match.
    """
    path = Path(folder) / image_file(part)
    if path.exists():
        images, labels = read_images(path)
        return Split(images.flatten(1), labels, shuffled=True)
    pixels, classes = (_read(Path(folder) / f"{name}.gz") for name in FILES[part])
    if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or classes.shape != pixels.shape[:1]:
        raise DataError(
            f"{folder}: {part} files don't match: images have shape {pixels.shape}, labels {classes.shape}, "
            "allowed are (N, 28, 28) and (N,)"
        )
    return Split(torch.tensor(pixels).flatten(1), torch.tensor(classes, dtype=torch.int64))


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): `dvc repro -f download` fetches it") from None
    return parse_idx(gunzip(content, str(path)), str(path))


def split_validation(train: Split, validation_size: int | float) -> tuple[Split, Split]:
    """Split into training and validation images, stratified by label. The split is the same in every run.

    `validation_size` is the number of validation images, or, below 1, their fraction.
    Raises ConfigError if no image is left to train on, or, unless they are shuffled, if a class has none in one part.
    """
    from sklearn.model_selection import train_test_split  # takes a second to import

    count = len(train)
    try:
        if train.shuffled:  # ranges, so that images which are larger than the memory are not copied
            chosen, _ = train_test_split(range(count), test_size=validation_size, shuffle=False)
            return train.rows(slice(len(chosen))), train.rows(slice(len(chosen), None))
        parts = train_test_split(
            np.arange(count), test_size=validation_size, random_state=SPLIT_SEED, stratify=train.labels
        )
    except ValueError as error:
        raise ConfigError(f"data.validation_size is {validation_size}, of {count:,} training images: {error}") from None
    return train.rows(parts[0]), train.rows(parts[1])


def stratified_order(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the images in a random order, with all classes spread evenly over it. It is always the same.

    Any range of it is a stratified sample: a class with a share of p has p · n of n images, give or take one.
    """
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))  # a stream that no version changes
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    position = np.concatenate([(np.arange(size) + 0.5) / size for size in np.bincount(labels, minlength=1)])
    order: npt.NDArray[np.int64] = by_class[np.argsort(position, kind="stable")]
    return order
