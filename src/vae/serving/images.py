"""Images to score: PNG and JPEG files, IDX files, and NumPy arrays, as uint8 [28, 28] with white ink on black."""

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vae.data.datasets import gunzip, parse_idx
from vae.errors import DataError, one_line

PICTURES = {".png", ".jpg", ".jpeg"}
SIDE, BOX = 28, 20  # of an image, and of the digit in it
INK = 20  # darker pixels are background when a digit is cut out: JPEG leaves some around it

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """An image by its name. `read` returns it, uint8 [28, 28]; it raises DataError where it can't be used."""

    name: str
    read: Callable[[], Pixels]


def find_images(path: Path, *, fit: bool = False) -> list[Source]:
    """The images in a folder (of PNG and JPEG files, also in its subfolders) or a file (those, IDX, .npy or .npz).

    Images of another size than 28×28 are refused when they are read; with `fit`, all are fitted as MNIST's digits were.
    Raises DataError where there are none, or the file can't be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
        sources = [Source(str(file.relative_to(path)), partial(_picture, file, fit)) for file in files]
    elif path.suffix.lower() in PICTURES:
        sources = [Source(path.name, partial(_picture, path, fit))]
    else:
        array = _array(path)
        sources = [Source(f"{path.name}[{row}]", partial(_sized, image, fit)) for row, image in enumerate(array)]
    if not sources:
        raise DataError(f"{path} has no images: allowed are PNG and JPEG files, IDX, .npy and .npz")
    return sources


def _picture(path: Path, fit: bool) -> Pixels:
    try:
        with Image.open(path) as picture:
            grey = np.asarray(_grey(picture))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"it can't be read ({one_line(error)})") from None
    return _sized(grey, fit)


def _grey(picture: Image.Image) -> Image.Image:
    """A picture in 8 bit, turned as a viewer shows it. What is transparent becomes white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "I;16":  # Pillow cuts values off at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("L")


def _array(path: Path) -> Pixels:
    """The images of an IDX file (also gzipped), a .npy, or the first array of a .npz: uint8 [N, height, width]."""
    try:
        content: Any = np.load(path) if path.suffix in (".npy", ".npz") else path.read_bytes()
        if path.suffix == ".npz":
            content = content[content.files[0]]
    except (OSError, EOFError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read: {one_line(error)}") from None
    if isinstance(content, bytes):
        content = parse_idx(gunzip(content, str(path)) if content[:2] == b"\x1f\x8b" else content, str(path))
    array: npt.NDArray[Any] = content
    if array.ndim == 2 and array.shape[1] == SIDE * SIDE:
        array = array.reshape(-1, SIDE, SIDE)
    if array.ndim != 3 or array.dtype.kind not in "uifb" or not array.size:
        raise DataError(f"{path} holds {array.dtype} {array.shape}, allowed are numbers (N, 784) and (N, 28, 28)")
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 255:  # false for NaN, too
        raise DataError(f"{path}: pixels are from {low:g} to {high:g}, allowed are 0 to 1 and 0 to 255")
    scale = np.float32(255 if high <= 1 and array.dtype != np.uint8 else 1)  # not an int: int8 has no 255
    pixels: Pixels = np.rint(array * scale).astype(np.uint8)
    return pixels


def _sized(image: Pixels, fit: bool) -> Pixels:
    if fit:
        return fit_digit(image)
    if image.shape != (SIDE, SIDE):
        height, width = image.shape
        raise DataError(f"it is {width}×{height}, allowed is {SIDE}×{SIDE} (FIT=1 fits it)")
    return image


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
