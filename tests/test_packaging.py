"""Packaging: `pip install .` installs what the library imports, and the extra `pipeline` the rest."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib import metadata

import grimp
import pytest
from packaging.requirements import Requirement

from support import ENVIRONMENT, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LIBRARY, PIPELINE, DEVELOPMENT = (
    {Requirement(line).name for line in lines}
    for lines in (PROJECT["project"]["dependencies"], EXTRAS["pipeline"], EXTRAS["dev"])
)
COMMANDS = {"dvc", "optuna-dashboard", "nvidia-ml-py"}  # started, or imported by MLflow
PART_OF = {"pydantic-core": "pydantic"}

# Makes the modules that only the extra installs impossible to import.
BARE = """
import sys

extra = "alembic dvc mlflow mlxtend optuna optuna_dashboard psutil requests sqlalchemy torchvision urllib3"
sys.modules.update(dict.fromkeys(extra.split()))
"""
TRAIN = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from vae import *

images = torch.rand(200, 784)
model = VAE(hidden_dims=[16], latent_dim=2)
trainer = VAETrainer(model, device="cpu")
loader = DataLoader(TensorDataset(images, torch.arange(200) % 10), 50)
trainer.train(loader, loader, epochs=1)
trainer.plot_history()
visualize_reconstruction(model, loader, "cpu", save_path="figure.png")
save_explorer(model, loader, "explorer.html")
model.save("weights.safetensors")
assert VAE.load("weights.safetensors").sample(3).shape == (3, 784)
"""


owners = cache(metadata.packages_distributions)  # of each module; it reads thousands of lines


def distribution(module):
    """The distribution of a module; a declared one if there are several."""
    names = {name.lower().replace("_", "-") for name in owners()[module]}
    return min(PART_OF.get(name, name) for name in names & (LIBRARY | PIPELINE | DEVELOPMENT) or names)


def bare(program, folder):
    """Runs a program as where only the library's dependencies are installed."""
    environment = ENVIRONMENT | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-c", BARE + program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def imports():
    """The distributions that the library imports, and those that all of src/vae imports."""
    graph = grimp.build_graph("vae", include_external_packages=True, cache_dir=None)
    modules = {name for name in graph.modules if name.startswith("vae")}
    tree = ast.parse((ROOT / "src/vae/__init__.pyi").read_text())
    public = {f"vae.{node.module}" for node in tree.body if isinstance(node, ast.ImportFrom)}
    library = {"vae", *public}.union(*map(graph.find_upstream_modules, public)) & modules

    def imported(modules):
        found = set().union(*map(graph.find_modules_directly_imported_by, modules))
        names = {name.partition(".")[0] for name in found} - {"vae"} - sys.stdlib_module_names
        return {distribution(name) for name in names}

    return imported(library), imported(modules)


def test_the_library_trains_saves_and_plots_without_the_pipelines_dependencies(tmp_path):
    done = bare(TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_train_vae_without_the_extra_names_it(tmp_path):
    done = bare("from vae.cli import main; main([])", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("is not installed: pip install 'vae-mnist-pipeline[pipeline]'\n")
    assert done.stderr.count("\n") == 1


def test_importing_the_package_is_cheap():
    code = "import sys, vae; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); assert 'VAE' in dir(vae)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_dependencies_are_what_is_imported(imports):
    library, everything = imports
    assert library | {"lazy-loader"} == LIBRARY
    assert PIPELINE - COMMANDS <= everything <= LIBRARY | PIPELINE | DEVELOPMENT


def test_the_wheel_has_the_files_that_lazy_imports_and_type_checkers_read(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir=."]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {"vae/__init__.pyi", "vae/py.typed", "vae/training/loop.py"} <= set(names)
    files = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/vae/serving/explorer").glob("*.*")}
    assert {name for name in names if name.startswith("vae/serving/explorer/")} == files
    assert "train-vae = vae.cli:main" in entries
