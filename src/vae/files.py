"""Writing files whole: a reader never sees half of one, and a failed write leaves the old one."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
TRAINING_CODE = tuple(PACKAGE / name for name in ("data", "models", "training"))  # what a training's metrics depend on


def project_root() -> Path:
    """The project's folder; under `dvc exp run --temp` that of the main repository, not of the temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to the disk, and rename it into place.

    When this returns, the new content is there to stay, whatever happens to the power. Raises OSError, naming `path`.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _flush_folder(folder: Path) -> None:
    """Flush the folder's list of names, where the system has such a call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path | str, content: Any) -> None:
    """Write indented JSON with a closing newline; NaN is refused, since it is not JSON."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256(path: Path | str) -> str:
    """The file's SHA-256, in hexadecimal."""
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
