"""What tests share: an environment without the user's settings, copies of this project, and outcomes of commands."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from ruamel.yaml import YAML

from vae.files import sha256

# A shell that starts the suite in the background has Ctrl-C ignored, in the suite and in all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

for _name in list(os.environ):
    if _name.startswith(("MNIST_DIR", "MLFLOW_", "OPTUNA_", "DVC_", "GIT_")):
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

# For child processes, as a user starts them: with bytecode caches, and without what MLflow adds in this process.
LEFT_OUT = ("PYTHONDONTWRITEBYTECODE", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # the latter are set by `make test-slow`
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
ROOT = Path(__file__).parents[1]
PARTS = ["pipeline", "src", ".dvcignore", ".gitignore", "data/images/.gitignore", "dvc.yaml", "params.yaml"]
PARTS += [f".dvc/{name}" for name in ("config", "plots.html", ".gitignore")]
TINY = {
    "data.source": "bundled",
    "data.validation_size": 500,
    "model.hidden_dims": [32],
    "model.latent_dim": 2,
    "model.prior_couplings": 2,
    "model.prior_width": 8,
    "train.epochs": 2,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.compile": False,
    "evaluate.importance_samples": 8,
    "render.dpi": 40,
}


class Project:
    """A copy of this project in a folder of its own."""

    def __init__(self, root):
        self.root = root

    def __truediv__(self, path):
        return self.root / path

    @property
    def store(self):
        return f"sqlite+pysqlite:///{quote(str(self.root / 'mlruns/mlflow.db'))}"

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
        folders = [self.root / name for name in ("data", "models", "metrics", "figures", "explorer")]
        return {path: sha256(path) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}

    def copy(self, root):
        # git holds its lock for a moment where a test beside this one asks for the status.
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("index.lock"))
        return Project(root)


def new_project(root):
    """A copy of this project in which nothing has run."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    return Project(root)


class Outcome:
    """The exit code of a command, and what it printed."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def succeeds(self):
        assert self.code == 0, self.err
        return self

    def fails_with(self, *words, code=1):
        """One line, `error: ...`, with all of `words`."""
        assert (self.code, self.err.count("\n")) == (code, 1), self.err
        assert self.err.startswith("error: ")
        for word in words:
            assert word in self.err


@contextmanager
def stage_process(*arguments, **options):
    """A Python process in a group of its own, with pipes; the group is killed when the block ends."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, *arguments], text=True, start_new_session=True, **pipes, **options)
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
