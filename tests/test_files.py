"""Atomic writes, checksums and fingerprints."""

import os
import signal
import subprocess
import sys

import pytest

from support import ROOT
from vae.files import fingerprint, write_atomically, write_json

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
    write_atomically(path, "an earlier and longer content")
    with path.open() as reader:
        write_atomically(path, content)
        assert reader.read() == "an earlier and longer content"
    assert path.read_bytes() == stored
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file"]


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


def test_a_write_that_fails_leaves_the_earlier_file_alone(tmp_path):
    (tmp_path / "file").write_text("old")
    full = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "file")], capture_output=True, text=True)
    assert full.returncode == 1
    assert "File too large" in full.stderr
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\ud800")
    for value in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "file", {"loss": value})
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "target" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "target", "content")
    assert names(tmp_path) == ["target"]


def test_json_is_indented_and_ends_in_a_newline(tmp_path):
    write_json(tmp_path / "file.json", {"counts": {"train": 60000}, "loss": 1e-7})
    assert (tmp_path / "file.json").read_text() == '{\n  "counts": {\n    "train": 60000\n  },\n  "loss": 1e-07\n}\n'


def test_a_fingerprint_depends_on_values_and_on_names_and_content_of_files_but_not_on_their_place(tmp_path):
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
