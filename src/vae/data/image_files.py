"""Files of images as the download stage writes them: safetensors, which are memory-mapped, not read.

Each has the tensors `images`, uint8 [N, C, H, W], and, where there are classes, `labels`, int64 [N].
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import safetensors
from torch import Tensor

from vae.errors import DataError

Pixels = npt.NDArray[np.uint8]

MARK = {"vae": "images"}  # tells the project's files from others


def image_file(part: str) -> str:
    """The name of the file of a part, `train` or `test`."""
    return f"{part}.safetensors"


def read_images(path: Path) -> tuple[Tensor, Tensor | None]:
    """The images, uint8 [N, C, H, W], and labels, int64 [N], of a file. Images are read from the disk when needed.

    Raises DataError where the file can't be read or is not one that `write_images` wrote.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if file.metadata() != MARK:
                raise DataError(f"{path} is not a file that this project wrote: move it away")
            labels = file.get_tensor("labels") if "labels" in file.keys() else None  # noqa: SIM118 (no mapping)
            return file.get_tensor("images"), labels
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} can't be read ({error}): `dvc repro -f download` writes it") from None


def is_own(path: Path) -> bool:
    """Whether `write_images` wrote the file, even if it was damaged since."""
    with path.open("rb") as file:
        return json.dumps({"__metadata__": MARK})[:-1].encode() in file.read(64)


def write_images(
    file: BinaryIO, shape: Sequence[int], batches: Iterable[Pixels], labels: npt.NDArray[np.int64] | None
) -> dict[str, str]:
    """Write images of `shape` [N, C, H, W], which come in batches, and return the SHA-256 of each tensor.

    safetensors' own function would need all of them in memory.
    """
    content = b"" if labels is None else labels.astype("<i8").tobytes()
    end = len(content) + math.prod(shape)
    header: dict[str, Any] = {"__metadata__": MARK}
    if labels is not None:
        header["labels"] = {"dtype": "I64", "shape": labels.shape, "data_offsets": [0, len(content)]}
    header["images"] = {"dtype": "U8", "shape": shape, "data_offsets": [len(content), end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text + content)
    sha256 = hashlib.sha256()
    for batch in batches:
        pixels = batch.tobytes()
        file.write(pixels)
        sha256.update(pixels)
    checksums = {"images": sha256.hexdigest()}
    return checksums if labels is None else checksums | {"labels": hashlib.sha256(content).hexdigest()}
