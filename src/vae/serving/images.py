"""Images to score: pictures, IDX files, and NumPy arrays, as uint8 [C, H, W] of the model's shape."""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vae.data.datasets import gunzip, parse_idx
from vae.data.pictures import SUFFIXES, Pixels, Shape, as_pictures, read_pixels, read_shape
from vae.errors import DataError, one_line

MNIST = (1, 28, 28)
SIDE, BOX = 28, 20  # of an image, and of the digit in it
INK = 20  # darker pixels are background when a digit is cut out: JPEG leaves some around it


@dataclass(frozen=True)
class Source:
    """An image by its name. `read` returns it, uint8 [C, H, W]; it raises DataError where it can't be used."""

    name: str
    read: Callable[[], Pixels]


def find_images(path: Path, shape: Shape = MNIST, *, fit: bool = False) -> list[Source]:
    """The images in a folder (of pictures, also in its subfolders) or a file (a picture, IDX, .npy or .npz).

    Images of another size than the model's `shape` are refused when they are read. With `fit`, all are fitted: to grey
    28×28 as MNIST's digits were, to other shapes as the images of a folder are, scaled to cover them. Raises DataError
    where there are none, or the file can't be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        sources = [Source(str(file.relative_to(path)), partial(_read, file, shape, fit)) for file in files]
    elif path.suffix.lower() in SUFFIXES:
        sources = [Source(path.name, partial(_read, path, shape, fit))]
    else:
        array = _array(path, shape)
        sources = [Source(f"{path.name}[{row}]", partial(_read, image, shape, fit)) for row, image in enumerate(array)]
    if not sources:
        raise DataError(f"{path} has no images: allowed are pictures ({', '.join(SUFFIXES)}), IDX, .npy and .npz")
    return sources


def _read(picture: Path | Pixels, shape: Shape, fit: bool) -> Pixels:
    is_digit = fit and shape == MNIST
    try:
        _, height, width = read_shape(picture)
        pixels = read_pixels(picture, (1, height, width) if is_digit else shape)
    except DataError as error:
        raise DataError(f"it can't be read ({error})") from None
    if is_digit:
        return fit_digit(pixels[0])[None]
    if not fit and (height, width) != shape[1:]:
        raise DataError(f"it is {width}×{height}, allowed is {shape[2]}×{shape[1]} (FIT=1 fits it)")
    return pixels


def _array(path: Path, shape: Shape) -> Pixels:
    """The images of an IDX file (also gzipped), a .npy, or the first array of a .npz: uint8 [N, H, W] or [N, H, W, C].

    Rows of D values are images with the channels first.
    """
    try:
        content: Any = np.load(path) if path.suffix in (".npy", ".npz") else path.read_bytes()
        if path.suffix == ".npz":
            content = content[content.files[0]]
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read: {one_line(error)}") from None
    if isinstance(content, bytes):
        content = parse_idx(gunzip(content, str(path)) if content[:2] == b"\x1f\x8b" else content, str(path))
    array: npt.NDArray[Any] = content
    if array.ndim == 2 and array.shape[1] == np.prod(shape):
        array = array.reshape(-1, *shape).transpose(0, 2, 3, 1)
    return as_pictures(array, str(path))


def fit_digit(image: Pixels) -> Pixels:
    """Bring a digit, uint8 [height, width], into the form of MNIST's: uint8 [28, 28].

    It is scaled into a box of 20×20, its aspect ratio kept, and placed with its centre of mass at pixel 14, as MNIST's
    are (LeCun et al. 1998). Before that, an image with a bright border is inverted, and the border's median becomes
    black. Raises DataError for an empty one.
    """
    background = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
    if background > 127:
        image, background = 255 - image, 255 - background
    image = (image.clip(background) - background) * 255 / (255 - background)
    image = image.round().astype(np.uint8)
    rows, columns = (np.flatnonzero((image > INK).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise DataError("there is nothing in it")
    digit = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = BOX / max(digit.size)
    size = [max(1, round(side * scale)) for side in digit.size]
    box = np.asarray(digit.resize((size[0], size[1]), Image.Resampling.LANCZOS))
    if not box.any():  # specks far apart, too small to be seen
        raise DataError("there is nothing in it")
    fitted = np.zeros((SIDE, SIDE), np.uint8)
    corner = []
    for axis, length in enumerate(box.shape):
        mass = box.sum(1 - axis, dtype=float)
        centre = np.arange(length) @ mass / mass.sum()
        corner.append(int(np.clip(round(SIDE / 2 - centre), 0, SIDE - length)))
    fitted[corner[0] : corner[0] + box.shape[0], corner[1] : corner[1] + box.shape[1]] = box
    return fitted
