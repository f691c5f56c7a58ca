"""Pictures as uint8 pixels: from files of all kinds that Pillow reads, and from arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vae.errors import DataError, one_line

Pixels = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]  # channels, height, width

# Not all that Pillow opens: EPS files are programs, and it runs an interpreter for them.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
MAX_PIXELS = 2**26  # of a picture; a small file may unpack to more than the memory (a decompression bomb)
ORIENTATION = 0x0112  # EXIF; from 5 on, height and width are exchanged
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")


def read_shape(picture: Path | Pixels) -> Shape:
    """The shape of a picture as a viewer shows it, from its header: 1 channel if the file is grey, else 3.

    `picture` is a file, or uint8 [H, W] or [H, W, C]. Raises DataError where it can't be read.
    """
    with _opened(picture) as image:
        height, width = image.height, image.width
        if height * width > MAX_PIXELS:
            raise DataError(f"{width}×{height} are more than the {MAX_PIXELS:,} pixels allowed")
        if image.mode in ("I", "F"):
            raise DataError("pixels of 32 bit, whose range is unknown")
        if image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5:  # Pillow itself turns TIFF files
            height, width = width, height
        return 1 if image.mode in GREY_MODES else 3, height, width


def read_pixels(picture: Path | Pixels, shape: Shape) -> Pixels:
    """A picture that `read_shape` accepts, uint8 of this shape: scaled to cover height and width, its middle kept.

    It is turned as a viewer shows it. Of an animation, it is the first frame. What is transparent becomes white.
    Raises DataError where it can't be read.
    """
    channels, height, width = shape
    with _opened(picture) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow cuts values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.LANCZOS)
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


@contextmanager
def _opened(picture: Path | Pixels) -> Iterator[Image.Image]:
    try:
        if isinstance(picture, np.ndarray):
            yield Image.fromarray(picture)
        elif not picture.is_file():  # a pipe or a device may never end
            raise DataError("no regular file")
        else:
            with Image.open(picture, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        raise DataError("no picture") from None
    except DataError:
        raise
    except Exception as error:  # for a damaged file, Pillow raises errors of all kinds
        raise DataError(one_line(error)) from None


def as_pictures(array: npt.NDArray[Any], where: str) -> Pixels:
    """`array` as uint8 [N, H, W] or [N, H, W, C]: pixels from 0 to 1 or 0 to 255, channels first or last.

    Raises DataError for any other array. `where` names it in the message.
    """
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)) or array.dtype.kind not in "buif":
        raise DataError(
            f"{where} holds {array.dtype} {array.shape}, allowed are numbers (N, H, W), (N, H, W, C) and (N, C, H, W) "
            "with 1 or 3 channels"
        )
    if not array.size:
        raise DataError(f"{where} holds no images")
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 255:  # false for NaN, too
        raise DataError(f"{where}: pixels are from {low:g} to {high:g}, allowed are 0 to 1 and 0 to 255")
    if array.dtype == np.uint8 and high > 1:
        return array
    scale = np.float32(255 if high <= 1 else 1)  # not an int: int8 has no 255
    pixels: Pixels = np.rint(array * scale).astype(np.uint8)
    return pixels
