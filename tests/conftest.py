"""What tests share: an environment that is nobody's, and a small project in which DVC has run once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from vae.files import sha256

# A shell that starts the suite in the background has Ctrl-C ignored, in the suite and in all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

for _name in [name for name in os.environ if name == "MNIST_DIR" or name.startswith(("MLFLOW_", "DVC_", "GIT_"))]:
    del os.environ[_name]
os.environ |= {
    "OMP_NUM_THREADS": "1",  # before torch is imported; also, the same weights here and in a stage of its own
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # `python` in dvc.yaml is this one
    "NO_PROXY": "127.0.0.1",
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in [("NAME", "A"), ("EMAIL", "a@b")]
    },
}

ENVIRONMENT = dict(os.environ)  # for child processes: MLflow, in this process, adds its store to os.environ
ROOT = Path(__file__).parents[1]
PARTS = ["pipeline", "src", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"]
TINY = {
    "data.source": "bundled",
    "data.validation_size": 500,
    "model.hidden_dims": [32],
    "model.latent_dim": 2,
    "model.prior_components": 20,
    "train.epochs": 2,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.compile": False,
    "evaluate.importance_samples": 8,
    "render.dpi": 40,
}


# With two processes, neither should begin a long file when the other one is done; nor should the second one begin with
# waiting for the first one's `reproduced`, which the examples do without.
FIRST = ["test_search_processes", "test_examples", "test_pipeline", "test_tracking", "test_search", "test_published"]


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


class Project:
    """A copy of this project in a folder of its own."""

    def __init__(self, root):
        self.root = root

    def __truediv__(self, path):
        return self.root / path

    @property
    def store(self):
        return f"sqlite:///{self.root / 'mlruns' / 'mlflow.db'}"

    def set(self, params):
        yaml = YAML()
        tree = yaml.load(self.root / "params.yaml")
        for name, value in params.items():
            *sections, key = name.split(".")
            section = tree
            for part in sections:
                section = section[part]
            section[key] = value
        yaml.dump(tree, self.root / "params.yaml")

    def run(self, *command):
        """What `command` printed. A failure of it is one of the test."""
        done = subprocess.run(command, cwd=self.root, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *command, until, **environment):
        """A process in a group of its own, as a terminal starts it, that has printed a line which begins so."""
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            command, cwd=self.root, env={**ENVIRONMENT, **environment}, text=True, start_new_session=True, **pipes
        )
        for line in process.stdout:
            if line.startswith(until):
                return process
        pytest.fail(process.stderr.read())

    def dvc(self, *arguments):
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def outputs(self):
        """The checksums of everything that the stages write."""
        folders = [self.root / name for name in ("data", "models", "metrics", "figures")]
        return {path: sha256(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}

    def copy(self, root):
        shutil.copytree(self.root, root)
        return Project(root)


@pytest.fixture(autouse=True)
def environment_as_before():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def no_configuration_of_dvc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dvc")
    for kind in ("SYSTEM_CONFIG", "GLOBAL_CONFIG", "SITE_CACHE"):
        ENVIRONMENT[f"DVC_{kind}_DIR"] = str(folder / kind.lower())


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
    project = Project(root)
    for part in PARTS:
        source, target = ROOT / part, project / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
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
    from vae.tracking import mlflow

    mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """The folder of the bundled digits' files, and their record as the download stage writes it."""
    folder = built_once(tmp_path_factory, "bundled", fetch_bundled)
    return folder / "raw", json.loads((folder / "dataset.json").read_text())


def fetch_bundled(folder):
    from vae.config import DataParams
    from vae.fetch import fetch

    (folder / "raw").mkdir()
    record = fetch(DataParams(source="bundled"), None, folder / "raw", None)
    (folder / "dataset.json").write_text(json.dumps(record))
