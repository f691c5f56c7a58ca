"""What Git tracks is reproduced to the byte by `dvc repro`, and restored from DVC's cache."""

import pytest

from support import Project
from vae.files import sha256

MODEL = "models/vae.safetensors"


@pytest.mark.slow
def test_a_fresh_clone_reproduces_what_git_tracks_and_an_earlier_commit_comes_back_from_the_cache(reproduced, tmp_path):
    reproduced.run("git", "clone", "--quiet", str(reproduced.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert clone.dvc("repro").count("Running stage") == 4  # Git has the figures
    assert clone.run("git", "status", "--porcelain") == ""
    (clone / "src/vae/data/__pycache__").mkdir(exist_ok=True)
    (clone / "src/vae/data/__pycache__/other.pyc").write_bytes(b"bytecode")  # as Python writes it beside the code
    assert "Running stage" not in clone.dvc("repro")
    clone.set({"train.epochs": 1})
    assert clone.dvc("repro").count("Running stage") == 4
    assert sha256(clone / MODEL) != sha256(reproduced / MODEL)
    clone.run("git", "commit", "--quiet", "--all", "--message=One epoch")
    for checkout in (["HEAD~1", "--", "."], ["HEAD", "--", "."]):  # everything, with dvc.lock
        clone.run("git", "checkout", "--quiet", *checkout)
        expected = clone.run("git", "status", "--porcelain")
        assert "Running stage" not in clone.dvc("repro")
        assert clone.run("git", "status", "--porcelain") == expected
        assert (sha256(clone / MODEL) == sha256(reproduced / MODEL)) == ("HEAD~1" in checkout)
