"""Writing files whole: a reader never sees half of one, and a failed write leaves the old one."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Write `content` beside `path`, flush it to the disk, and rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
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


def write_json(path: Path | str, content: Any) -> None:
    """Write indented JSON with a closing newline; NaN is refused, since it is not JSON."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256(path: Path | str) -> str:
    """The file's SHA-256, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
