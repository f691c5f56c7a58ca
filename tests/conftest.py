"""Shared fixtures: a clean environment, and a small project in which DVC has run once."""

import json
import os
import shutil
import signal

import pytest
from filelock import FileLock

from support import ENVIRONMENT, TINY, Outcome, Project, new_project


@pytest.fixture(autouse=True)
def process_as_before():
    """Restores environment variables, to which MLflow adds its store, and the handler of SIGTERM, set by commands."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # of a fixture that tests share
    environment, on_termination = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, on_termination)


@pytest.fixture(scope="session", autouse=True)
def no_configuration_of_dvc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dvc")
    for kind in ("SYSTEM_CONFIG", "GLOBAL_CONFIG", "SITE_CACHE"):
        ENVIRONMENT[f"DVC_{kind}_DIR"] = str(folder / kind.lower())


@pytest.fixture
def called(capsys):
    """Calls a program's main function in this process, as importing torch and MLflow takes seconds; an `Outcome`."""

    def call(function, *arguments):
        code, message = 0, ""
        try:
            function(*arguments)
        except SystemExit as stop:  # Python prints a text and exits with 1
            code, message = (1, f"{stop.code}\n") if isinstance(stop.code, str) else (stop.code or 0, "")
        out, err = capsys.readouterr()
        return Outcome(code, out, err + message)

    return call


def built_once(tmp_path_factory, name, build):
    """A folder that `build` fills in one of pytest-xdist's processes; the others wait for it. Tests only read it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, ready = base / name, base / f"{name}.ready"
    with FileLock(base / f"{name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            build(folder)
            ready.touch()
    return folder


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """A small project, committed to git with the results of its one `dvc repro`. Tests read it and change copies."""
    return Project(built_once(tmp_path_factory, "reproduced", reproduce))


def reproduce(root):
    project = new_project(root)
    project.set(TINY)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.dvc("repro")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=Reproduce")


@pytest.fixture
def project(reproduced, tmp_path):
    """A copy of the reproduced project, to be changed."""
    return reproduced.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """MLflow's database with all of its tables, to be copied: making them takes seconds."""
    return built_once(tmp_path_factory, "empty_store", make_store) / "mlflow.db"


def make_store(folder):
    from vae.tracking.store import mlflow

    mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """The folder of the bundled digits' files, and their record as the download stage writes it."""
    folder = built_once(tmp_path_factory, "bundled", fetch_bundled)
    return folder / "raw", json.loads((folder / "dataset.json").read_text())


def fetch_bundled(folder):
    from vae.config import DataParams
    from vae.data.download import fetch

    (folder / "raw").mkdir()
    record = fetch(DataParams(source="bundled"), None, folder / "raw", None)
    (folder / "dataset.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def digits(bundled):
    """500 of the bundled digits: float images [N, 1, 28, 28] in [0, 1] and labels."""
    from torch.utils.data import TensorDataset

    from vae.data.binarization import to_float
    from vae.data.datasets import load

    split = load(bundled[0], "train")
    return TensorDataset(to_float(split.images[:500]).view(-1, 1, 28, 28), split.labels[:500])


@pytest.fixture
def loader(digits):
    """The digits in batches of 100, in order."""
    from torch.utils.data import DataLoader

    return DataLoader(digits, batch_size=100)
