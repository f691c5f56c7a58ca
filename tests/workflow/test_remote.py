"""`make remote`: a fresh clone gets what it did not compute, from a folder, from S3 and by SSH."""

import getpass
import subprocess
import sys

import pytest

import stack
from support import ENVIRONMENT, Project

REMOTE = [sys.executable, "-m", "vae.workflow.remote"]


@pytest.fixture(params=["folder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("s3", "ssh"))])
def remote(request, tmp_path, monkeypatch):
    """The flags of a remote, and an option of DVC's that each machine sets for itself."""
    store = tmp_path / "store"
    if request.param == "folder":
        yield [f"--url={store}"], ()
    elif request.param == "s3":
        pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: pip install -e '.[remotes]'")
        monkeypatch.setitem(ENVIRONMENT, "AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setitem(ENVIRONMENT, "AWS_SECRET_ACCESS_KEY", "hunter2")
        with stack.s3("vae") as endpoint:
            yield ["--url=s3://vae/dvc", f"--endpoint={endpoint}"], ()
    else:
        with stack.ssh(tmp_path) as port:
            store.mkdir()
            yield [f"--url=ssh://{getpass.getuser()}@127.0.0.1:{port}{store}"], ("keyfile", str(tmp_path / "key"))


def test_a_fresh_clone_pulls_what_was_pushed_and_has_nothing_to_compute(project, tmp_path, remote):
    flags, option = remote
    project.run(*REMOTE, *flags)
    project.run("git", "commit", "--quiet", "--all", "--message=A remote")
    project.run("git", "clone", "--quiet", str(project.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    for each in (project, clone):
        if option:
            each.dvc("remote", "modify", "--local", "storage", *option)
        assert each.run("git", "status", "--porcelain") == ""  # the option is in no file that Git knows
    project.dvc("push")
    assert not (clone / "models/vae.safetensors").exists()
    clone.dvc("pull", "dvc.yaml")
    assert "Data and pipelines are up to date" in clone.dvc("status", "dvc.yaml")
    run_only = {"models/run.json", "metrics/timing.json"}
    expected = {str(path.relative_to(project.root)): checksum for path, checksum in project.outputs().items()}
    found = {str(path.relative_to(clone.root)): checksum for path, checksum in clone.outputs().items()}
    assert found == {path: checksum for path, checksum in expected.items() if path not in run_only}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--url=ssh://ann:hunter2@host/dvc"], ["ssh://***@host/dvc has a password", "docs/team.md"]),
        (["--url=s3://vae/dvc", "--endpoint=http://key:hunter2@host:9000"], ["http://***@host:9000 has a password"]),
        (["--url=ftp://host/dvc"], ["can't use ftp://host/dvc", "Unsupported URL type ftp://"]),
        (["--url=/srv/dvc", "--endpoint=http://host:9000"], ["can't use /srv/dvc", "endpointurl"]),
        ([], ["--url"]),
    ],
)
def test_a_remote_that_is_refused_changes_nothing(reproduced, tmp_path, flags, words):
    done = subprocess.run([*REMOTE, *flags], cwd=reproduced.root, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words) and "hunter2" not in done.stderr
    assert reproduced.run("git", "status", "--porcelain") == ""
