"""Every run has all parameters, and names its hardware, data, code and weights."""

import subprocess

import pytest
import torch

from vae import tracking
from vae.config import ModelParams, Params, TrainParams
from vae.device import Hardware

from .conftest import CPU, DATASET

DATA_TAGS = {"dataset": "MNIST", "dataset.source": "bundled", "data.sha256": "ab12" * 16}


def data_of(run_id):
    return tracking.mlflow.get_run(run_id).data


def of_a_training(params):
    return {name for name in params.flat() if not name.startswith("search.")}


@pytest.mark.usefixtures("store")
def test_every_parameter_is_logged_under_its_dotted_name_with_hardware_and_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # which is in no repository
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    params = Params(seed=7, model=ModelParams(hidden_dims=(64, 32)), train=TrainParams(beta=4.0))
    with tracking.open_run("params") as run:
        tracking.log_settings(run, params, Hardware(torch.device("cpu"), "bf16", True), DATASET)
    data = data_of(run.id)
    assert data.params.keys() == of_a_training(params)
    some = {"seed": "7", "train.beta": "4.0", "model.hidden_dims": "[64, 32]", "train.max_grad_norm": "None"}
    assert {name: data.params[name] for name in some} == some
    tags = {"device": "cpu", "precision": "bf16", "dvc.experiment": "brave-name", **DATA_TAGS}
    assert data.tags.items() >= tags.items()
    assert "git.commit" not in data.tags


@pytest.mark.usefixtures("store")
def test_a_run_carries_the_commit_and_whether_the_code_was_changed_since(tmp_path, monkeypatch):
    def git(*arguments):
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def is_dirty():
        with tracking.open_run("tags") as run:
            tracking.log_settings(run, Params(), CPU, DATASET)
        assert data_of(run.id).tags["git.commit"] == git("rev-parse", "HEAD")
        return data_of(run.id).tags["git.dirty"]

    (tmp_path / "src").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("README.md", "src/code.py"):
        (tmp_path / name).write_text("as committed\n")
    git("init", "--quiet")
    git("add", "README.md", "src")
    git("commit", "--quiet", "--message=Begin")
    for name, dirty in {"README.md": "false", "src/code.py": "true", "src/new.py": "true"}.items():
        (tmp_path / name).write_text("changed\n")
        assert is_dirty() == dirty
        git("stash", "--quiet", "--include-untracked", "--", "README.md", "src")


@pytest.mark.usefixtures("store")
def test_a_stage_finds_the_run_of_its_weights_or_opens_one_that_says_how_they_were_trained():
    params = Params(seed=1)

    def resumed(weights):
        with tracking.resume(params, CPU, DATASET, weights) as run:
            pass
        return run.id

    with tracking.open_run("trained") as trained:
        tracking.log_settings(trained, params, CPU, DATASET)
        trained.log_tags({"model.sha256": "aaaa"})
    assert resumed("aaaa") == trained.id
    opened = resumed("bbbb")
    assert opened != trained.id
    data = data_of(opened)
    assert data.params.keys() == of_a_training(params) and data.params["seed"] == "1"
    assert data.tags.items() >= {"model.sha256": "bbbb", "precision": "fp32", **DATA_TAGS}.items()
    assert data.tags["mlflow.runName"] == tracking.run_name(params)
    assert resumed("bbbb") == opened


def test_a_run_is_named_after_what_often_differs():
    model, train = ModelParams(hidden_dims=(512, 512), latent_dim=32), TrainParams(beta=1.0, learning_rate=2e-3)
    assert tracking.run_name(Params(model=model, train=train)) == "mlp512x2-z32-b1-lr0.002"
    model, train = ModelParams(architecture="conv", hidden_dims=(32, 64), latent_dim=2), TrainParams(beta=0.5)
    assert tracking.run_name(Params(model=model, train=train)).startswith("conv32-64-z2-b0.5-lr")
