"""Atomic writes, checksums, and the root of the project."""

import fcntl
import glob
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PACKAGE = Path(__file__).parent
TRAINING_CODE = tuple(PACKAGE / name for name in ("data", "models", "training"))  # what a training's metrics depend on


def project_root() -> Path:
    """The root of the project; under `dvc exp run --temp` that of the main repository, not of the temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Write `content` to `path` as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A temporary file beside `path` to write to; at the end of the block it is flushed to the disk and renamed.

    After that, the new content survives a power failure. If the block raises, `path` stays as it is. A killed process
    leaves `.<name>.<random>.tmp`, which git and DVC ignore and the next write to `path` deletes. Raises OSError, naming
    `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(path)
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
                Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _delete_leftovers(path: Path) -> None:
    """Delete the temporary files of writes to `path` that were killed. A running write has locked its own."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), leftover.open("rb") as file:
            if _lock(file) and os.fstat(file.fileno()).st_size:  # an empty one may be about to be locked
                leftover.unlink()


def _lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False if another process has, or if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Flush the folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path | str, content: Any) -> None:
    """Write indented JSON with a closing newline. Raises ValueError for NaN and infinity, which JSON doesn't have."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_arrays(path: Path | str, **arrays: Any) -> None:
    """Write NumPy arrays, numbers and strings by name, for `numpy.load`. Equal arrays give equal bytes.

    The bytes of `numpy.savez` depend on the version of Python.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    write_atomically(path, buffer.getvalue())


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with each float rounded to six significant digits."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(values: Any, paths: Iterable[Path | str] = ()) -> str:
    """Return 16 hexadecimal digits that identify `values` (anything that JSON can hold) and the content of `paths`.

    A folder stands for all files below it, by their names relative to it, so that a copy elsewhere has the same
    fingerprint. Bytecode caches are ignored.
    """
    facts = json.dumps([values, [_contents(Path(path)) for path in paths]], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _contents(path: Path) -> dict[str, str]:
    files = [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {file.relative_to(path).as_posix(): sha256(file) for file in (files if path.is_dir() else [path])}
