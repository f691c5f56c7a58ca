"""Atomic writes, checksums and fingerprints."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from support import ROOT
from vae.files import fingerprint, sha256, write_atomically, write_json

FULL_DISK = """
import resource, sys
from vae.files import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_atomically(sys.argv[1], b"x" * 5000)
"""

KILLED = """
import os, signal, sys
from vae import files
files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(sys.argv[1], b"new")
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content, stored", [(b"\x00\xff", b"\x00\xff"), ("−1 €\n", "−1 €\n".encode()), (b"", b"")])
def test_a_write_creates_folders_replaces_the_file_and_leaves_nothing_else(tmp_path, content, stored):
    path = tmp_path / "a" / "b" / "file"
    for before in ("an earlier and longer content", content):
        write_atomically(path, before)
    assert path.read_bytes() == stored
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file"]


def test_a_reader_of_the_earlier_file_keeps_reading_it(tmp_path):
    (tmp_path / "file").write_text("old")
    with (tmp_path / "file").open() as reader:
        write_atomically(str(tmp_path / "file"), "new")
        assert reader.read() == "old"


def test_the_temporary_file_of_a_killed_write_is_ignored_by_git_and_deleted_by_the_next_write(tmp_path):
    (tmp_path / "file").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    (leftover,) = set(names(tmp_path)) - {"file"}
    subprocess.run(["git", "check-ignore", "--quiet", leftover], cwd=ROOT, check=True)
    theirs = [".file.backup", ".file2.x.tmp", ".other.x.tmp"]
    for name in theirs:
        (tmp_path / name).write_text("not of this file")
    write_atomically(tmp_path / "file", "new")
    assert names(tmp_path) == [*theirs, "file"]


def test_a_write_leaves_the_temporary_file_of_a_running_write_alone(tmp_path, monkeypatch):
    def write_meanwhile(descriptor):
        monkeypatch.undo()
        write_atomically(tmp_path / "file", "second")

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_atomically(tmp_path / "file", "first")
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_fills_up_leaves_the_earlier_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "file")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "File too large" in finished.stderr
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_content_that_cannot_be_encoded_leaves_the_earlier_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "target" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "target", "content")
    assert names(tmp_path) == ["target"]


def test_json_is_indented_and_ends_in_a_newline(tmp_path):
    content = {"name": "MNIST", "counts": {"train": 60000}, "loss": 1e-7}
    write_json(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == content
    assert text.startswith('{\n  "name"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_values_that_json_does_not_have_are_refused_and_leave_the_earlier_file_alone(tmp_path, value):
    write_json(tmp_path / "file.json", {"loss": 1.0})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file.json", {"loss": value})
    assert json.loads((tmp_path / "file.json").read_text()) == {"loss": 1.0}
    assert names(tmp_path) == ["file.json"]


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_fingerprint_changes_with_values_and_with_the_files_content_and_names_but_not_with_their_place(tmp_path):
    def of(folder, text, name="a.py", value=1):
        (tmp_path / folder / "code").mkdir(parents=True)
        (tmp_path / folder / "code" / name).write_text(text)
        return fingerprint({"beta": value}, [tmp_path / folder / "code"])

    first = of("1", "x = 1")
    assert of("2", "x = 1") == first
    (tmp_path / "1/code/__pycache__").mkdir()
    (tmp_path / "1/code/__pycache__/a.pyc").write_text("compiled")
    assert fingerprint({"beta": 1}, [tmp_path / "1/code"]) == first
    others = [of("3", "x = 2"), of("4", "x = 1", name="b.py"), of("5", "x = 1", value=2), fingerprint({"beta": 1})]
    assert len({first, *others}) == 5
