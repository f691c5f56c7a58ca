"""Pictures become the files of images that all stages load: read in parallel, brought to one shape, split."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vae.config import DataParams
from vae.data.binarization import check_colour
from vae.data.datasets import stratified_order
from vae.data.image_files import image_file, write_images
from vae.data.own_images import Found
from vae.data.pictures import Pixels, Shape, read_pixels, read_shape
from vae.errors import DataError
from vae.files import atomic_file
from vae.progress import Progress

TEST_SHARE = 0.2  # where there is no test set
AT_A_TIME = 256  # pictures in their final size in memory
THREADS = min(8, os.cpu_count() or 1)  # each has a picture in its original size in memory

Rows = npt.NDArray[np.int64]  # numbers of pictures
Failures = dict[int, DataError]  # by the number of the picture


class _DamagedError(Exception):
    """Pictures whose header could be read, but not their pixels."""

    def __init__(self, failures: Failures) -> None:
        self.failures = failures


def prepare(found: Found, params: DataParams, folder: Path) -> dict[str, Any]:
    """Write the images to `folder` and return what data/dataset.json says of them.

    Where there is no test set, a fifth of the images become one, stratified by class. The order and the split are
    always the same. Raises DataError where more than `params.max_unreadable` pictures, or all of a class, can't be
    read, sizes differ, there are too few images, or a file changed meanwhile; ConfigError for binarized colours.
    Nothing is then written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data and the like
        shape, failures = _common_shape(found, params)
        check_colour(params.binarization, shape[0])
        while True:
            _check_readable(found, failures, params.max_unreadable)
            readable = np.array([row for row in range(len(found.pictures)) if row not in failures], np.int64)
            _check_classes(found, readable)
            parts = _split(found, readable)
            try:
                checksums = _write(found, parts, shape, folder)
                break
            except _DamagedError as damaged:
                failures |= damaged.failures
    counts = {part: len(rows) for part, rows in parts.items()}
    return {"image_shape": list(shape), "classes": found.classes, "counts": counts, "sha256": checksums}


def _common_shape(found: Found, params: DataParams) -> tuple[Shape, Failures]:
    """The shape that all images get, from the headers of the pictures, and the pictures without one."""
    examples: dict[tuple[int, int], str] = {}  # a picture of each size
    failures: Failures = {}
    channels = 1
    several = np.arange(1 if isinstance(found.pictures, np.ndarray) else len(found.pictures))  # those of an array agree
    for rows, results in _in_parallel(read_shape, found, several, "reading headers"):
        for row, shape in zip(rows, results, strict=True):
            if _failed(shape):
                failures[row] = shape
            else:
                examples.setdefault(shape[1:], found.name(row))
                channels = max(channels, shape[0])
    if not params.image_size and len(examples) > 1:
        shown = ", ".join(f"{h}×{w} ({name})" for (h, w), name in list(examples.items())[:3])
        raise DataError(
            f"the pictures have {len(examples)} sizes, such as {shown}: set data.image_size, a side or [height, width]"
        )
    size = params.image_size or next(iter(examples), 1)
    height, width = (size, size) if isinstance(size, int) else size
    return (channels if params.channels == "auto" else params.channels, height, width), failures


def _in_parallel(
    function: Callable[[Any], Any], found: Found, rows: Rows, description: str
) -> Iterator[tuple[list[int], list[Any]]]:
    """What `function` returns for the pictures in `rows`, or the DataError that it raises, some pictures at a time."""

    def attempt(picture: Path | Pixels) -> Any:
        try:
            return function(picture)
        except DataError as error:
            return error

    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(show=True, desc=description, total=len(rows), unit=" images") as bar,
    ):
        for start in range(0, len(rows), AT_A_TIME):
            chosen = rows[start : start + AT_A_TIME].tolist()
            yield chosen, list(pool.map(attempt, [found.pictures[row] for row in chosen]))
            bar.update(len(chosen))


def _failed(result: Any) -> bool:
    return isinstance(result, DataError)


def _check_readable(found: Found, failures: Failures, allowed: int) -> None:
    """Name the pictures that can't be read. Raises DataError if there are more than allowed."""
    reasons = [f"{found.name(row)} ({error})" for row, error in sorted(failures.items())]
    if len(failures) > allowed:
        for reason in reasons[1:]:
            print(f"can't be read: {reason}")
        count = f"{len(failures):,} pictures" if len(failures) > 1 else "a picture"
        raise DataError(f"{count} can't be read, data.max_unreadable is {allowed}: {reasons[0]}")
    for reason in reasons:
        print(f"left out, can't be read: {reason}")


def _check_classes(found: Found, readable: Rows) -> None:
    """Raise DataError for a class without a readable picture."""
    labels = set() if found.labels is None else {*found.labels.tolist()} - {*found.labels[readable].tolist()}
    if labels:
        names = ", ".join(found.classes[label] for label in sorted(labels))
        raise DataError(f"no picture of a class can be read, remove its folder: {names}")


def _split(found: Found, readable: Rows) -> dict[str, Rows]:
    """The pictures to train on and to test on, each in an order in which classes are spread evenly."""

    def ordered(rows: Rows) -> Rows:
        labels = np.zeros(len(rows), np.int64) if found.labels is None else found.labels[rows]
        return rows[stratified_order(labels)]

    if found.is_test is None:
        order, count = ordered(readable), math.ceil(TEST_SHARE * len(readable))
        parts = {"train": order[count:], "test": order[:count]}
    else:
        parts = {part: ordered(readable[found.is_test[readable] == (part == "test")]) for part in ("train", "test")}
    if min(map(len, parts.values())) < 2:
        raise DataError(f"{len(readable)} images are too few to train, validate and test with")
    return parts


def _write(found: Found, parts: dict[str, Rows], shape: Shape, folder: Path) -> dict[str, str]:
    """Write the files and return the SHA-256 of their tensors. Raises _DamagedError if pictures can't be read."""
    failures: Failures = {}

    def batches(rows: Rows, part: str) -> Iterator[Pixels]:
        for chosen, results in _in_parallel(partial(read_pixels, shape=shape), found, rows, f"reading {part}"):
            failures.update((row, error) for row, error in zip(chosen, results, strict=True) if _failed(error))
            yield np.array([pixels for pixels in results if not _failed(pixels)], np.uint8)

    checksums: dict[str, str] = {}
    with ExitStack() as stack:  # at its end, all files are renamed
        for part, rows in parts.items():
            file = stack.enter_context(atomic_file(folder / image_file(part)))
            labels = None if found.labels is None else found.labels[rows]
            tensors = write_images(file, (len(rows), *shape), batches(rows, part), labels)
            checksums |= {f"{part}-{name}": value for name, value in tensors.items()}
        if failures:
            raise _DamagedError(failures)
        found.check_unchanged()
    return checksums
