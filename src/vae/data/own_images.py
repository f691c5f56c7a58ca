"""Images of your own: a folder of pictures, with or without a folder for each class, or of IDX files; .npz and .npy."""

import os
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vae.data.datasets import FILES, gunzip, parse_idx
from vae.data.pictures import SUFFIXES, Pixels, as_pictures
from vae.errors import DataError, one_line

MAX_IDX_BYTES = 2**34
# Of images and labels, in a .npz file.
KEYS = {"": ("images", "labels"), "train": ("x_train", "y_train"), "test": ("x_test", "y_test")}

Integers = npt.NDArray[np.int64]
Arrays = Mapping[str, tuple[Any, Any]]  # images and labels of the parts in KEYS; labels may be None
Listing = dict[Path, tuple[int, int] | None]  # size and time of change of each file; None for a folder


@dataclass(frozen=True)
class Found:
    """Pictures, their classes, and which are for testing: `labels` and `is_test` are None where that isn't given."""

    pictures: Sequence[Path] | Pixels  # files, or uint8 [N, H, W] or [N, H, W, C]
    labels: Integers | None
    classes: list[str]
    is_test: npt.NDArray[np.bool_] | None
    root: Path | None = None
    listing: Listing = field(default_factory=dict)

    def name(self, row: int) -> str:
        """What messages call a picture."""
        picture = self.pictures[row]
        if isinstance(picture, Path):
            return str(picture.relative_to(self.root) if self.root else picture)
        return f"image {row}"

    def check_unchanged(self) -> None:
        """Raise DataError if a file was added, changed or removed meanwhile."""
        if self.root and list_files(self.root) != self.listing:
            raise DataError(f"{self.root} changed while it was read: run again when it is complete")


def find_images(path: Path) -> Found:
    """The images at `path`. Raises DataError where there are none, or it isn't clear what their classes are."""
    if not path.exists():
        raise DataError(f"data.path is {path}, which is not there")
    listing = list_files(path)
    if path.is_file():
        return _from_arrays(_numpy_arrays(path), path, listing)
    if any(path / f"{images}{gz}" in listing for images, _ in FILES.values() for gz in ("", ".gz")):
        return _from_arrays(_idx_arrays(path), path, listing)
    return _from_folders(path, listing)


def list_files(path: Path) -> Listing:
    """The files and folders below `path`, or the one at it, but hidden ones. Links are followed, in circles once."""
    if path.is_file():
        return {path: _state(path)}
    listing: Listing = {}
    for folder, folders, files in os.walk(path, followlinks=True, onerror=_refuse):
        here, real = Path(folder), Path(folder).resolve()
        shown = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = [name for name in shown if not real.is_relative_to((here / name).resolve())]
        listing |= {here / name: None for name in folders}
        listing |= {here / name: _state(here / name) for name in sorted(files) if not name.startswith(".")}
    return listing


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} can't be read: {error.strerror}")


def _from_folders(path: Path, listing: Listing) -> Found:
    """Pictures in `train/` and `test/` if there are both, else in `path`; in one folder for each class, or in none."""
    roots = [path / "train", path / "test"]
    if not all(listing.get(root, ()) is None for root in roots):
        roots = [path]
    _check_names(listing)
    files = [file for file, state in listing.items() if state is not None]
    found = [_by_class(root, [file for file in files if file.suffix.lower() in SUFFIXES], listing) for root in roots]
    pictures = [file for classes in found for inside in classes.values() for file in inside]
    if not pictures:
        raise DataError(f"{path} has no pictures: put some there, or set data.path (allowed are {', '.join(SUFFIXES)})")
    if others := sorted({*files} - {*pictures}):
        such = f"{len(others):,} other files, such as " if len(others) > 1 else ""
        print(f"left out: {such}{others[0].relative_to(path)}")
    names = [name for classes in found for name, inside in classes.items() for _ in inside]
    classes, labels = np.unique(names, return_inverse=True)
    if "" in classes and len(classes) > 1:
        stray = pictures[names.index("")].relative_to(path)
        raise DataError(f"{path} has pictures in a folder for each class, but others, such as {stray}, in none")
    is_test = np.array([file.is_relative_to(path / "test") for file in pictures]) if len(roots) > 1 else None
    named = "" not in classes
    return Found(pictures, labels if named else None, classes.tolist() if named else [], is_test, path, listing)


def _check_names(listing: Listing) -> None:
    """Raise DataError for a name that isn't UTF-8: it can't be printed, nor written to a table of classes."""
    for path in listing:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"the name of {str(path)!a} isn't UTF-8: rename it") from None


def _by_class(root: Path, pictures: list[Path], listing: Listing) -> dict[str, list[Path]]:
    """The pictures below `root` by the name of their class, or of "" where they are in none."""
    folders = [path for path, state in listing.items() if state is None and path.parent == root]
    classes: dict[str, list[Path]] = {_class_name(folder): [] for folder in folders}
    for file in pictures:
        if file.is_relative_to(root):
            parts = file.relative_to(root).parts
            classes.setdefault(_class_name(Path(parts[0])) if len(parts) > 1 else "", []).append(file)
    if empty := [name for name, inside in classes.items() if not inside]:
        raise DataError(f"{root} has classes without pictures, remove their folders: {', '.join(empty)}")
    return classes


def _class_name(folder: Path) -> str:
    """The folder's name; one with accents may be written in two ways, which are the same class."""
    return unicodedata.normalize("NFC", folder.name)


def _numpy_arrays(path: Path) -> Arrays:
    try:
        content: Any = np.load(path, mmap_mode="r")
        if isinstance(content, np.ndarray):
            return {"": (content, None)}
        found = {name: content[name] for name in content.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read: {one_line(error)}") from None
    if len(found) == 1 and "x_test" not in found:
        found = {"images": next(iter(found.values()))}
    parts = {part: (found[images], found.get(labels)) for part, (images, labels) in KEYS.items() if images in found}
    if not parts or ("" in parts and len(parts) > 1):
        allowed = "images, labels; or x_train, y_train, x_test, y_test (labels may be missing)"
        raise DataError(f"{path} holds {', '.join(found) or 'nothing'}, allowed are {allowed}")
    return parts


def _idx_arrays(path: Path) -> Arrays:
    """The four files, gzipped or not; labels and test images may be missing."""
    arrays = {part: (_idx_array(path, images), _idx_array(path, labels)) for part, (images, labels) in FILES.items()}
    return {part: found for part, found in arrays.items() if found[0] is not None}


def _idx_array(folder: Path, name: str) -> Pixels | None:
    path = next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
    if not path:
        return None
    content = path.read_bytes()
    raw = gunzip(content, str(path), MAX_IDX_BYTES) if content.startswith(b"\x1f\x8b") else content
    return parse_idx(raw, str(path))


def _from_arrays(arrays: Arrays, path: Path, listing: Listing) -> Found:
    """Images and labels of the parts in KEYS. Classes are numbered in the order of their labels.

    Raises DataError where the parts don't match.
    """
    if set(arrays) == {"test"}:
        raise DataError(f"{path} has test images only: training images are missing")
    parts = [as_pictures(images, f"{path}{part and f': {part}'}") for part, (images, _) in arrays.items()]
    given = [labels for _, labels in arrays.values() if labels is not None]
    given = [labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels for labels in given]
    sizes = [len(images) for images in parts]
    if any(images.shape[1:] != parts[0].shape[1:] for images in parts):
        raise DataError(f"{path}: training images have shape {parts[0].shape}, test images {parts[1].shape}")
    if given and [labels.shape for labels in given] != [(size,) for size in sizes]:
        shapes = ", ".join(str(labels.shape) for labels in given)
        raise DataError(f"{path}: labels have shape {shapes}, allowed is one for each of {sizes} images")
    if any(labels.dtype.kind not in "buiSU" for labels in given):
        raise DataError(f"{path}: labels are {given[0].dtype}, allowed are integers and names")
    one = len(parts) == 1
    pictures = parts[0] if one else np.concatenate(parts)
    is_test = None if one else np.repeat([part == "test" for part in arrays], sizes)
    if not given:
        return Found(pictures, None, [], is_test, path, listing)
    names, labels = np.unique(np.concatenate(given), return_inverse=True)
    return Found(pictures, labels, [str(name) for name in names], is_test, path, listing)
