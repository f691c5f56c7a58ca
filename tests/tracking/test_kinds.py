"""Every run carries all parameters, and the hardware, data, code and weights that it is of."""

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

    (tmp_path / "repository/src").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    for name in ("params.yaml", "src/code.py", "README.md"):
        (tmp_path / "repository" / name).write_text("as committed\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=Begin")
    for name, dirty in {"README.md": "false", "src/code.py": "true", "src/new.py": "true"}.items():
        (tmp_path / "repository" / name).write_text("changed\n")
        assert is_dirty() == dirty
        git("stash", "--quiet", "--include-untracked")


@pytest.mark.usefixtures("store")
def test_a_stage_finds_the_run_of_its_weights_or_opens_one_that_says_how_they_were_trained():
    params = Params(seed=1)

    def resumed(weights, run_id=""):
        with tracking.resume(params, CPU, DATASET, weights, run_id) as run:
            pass
        return run.id

    with tracking.open_run("trained") as trained:
        trained.log_tags({"model.sha256": "aaaa"})
    assert resumed("aaaa", trained.id) == trained.id
    assert resumed("aaaa") == trained.id  # models/run.json is of another training, or missing
    assert resumed("aaaa", "0123456789abcdef" * 2) == trained.id  # it is of another store
    assert not data_of(trained.id).params
    opened = resumed("bbbb")
    assert opened != trained.id
    data = data_of(opened)
    assert data.params.keys() == of_a_training(params) and data.params["seed"] == "1"
    assert data.tags.items() >= {"model.sha256": "bbbb", "precision": "fp32", **DATA_TAGS}.items()
    assert data.tags["mlflow.runName"] == tracking.run_name(params)
    assert resumed("bbbb") == opened


@pytest.mark.usefixtures("store")
def test_a_search_is_a_run_with_a_child_for_each_trial(tmp_path):
    def children():
        query = f"tags.`mlflow.parentRunId` = '{parent}'"
        return tracking.mlflow.search_runs(filter_string=query, output_format="list")

    tracking.connect(tracking.SEARCH_EXPERIMENT)
    parent = tracking.new_search(Params(), DATASET)
    with tracking.trial_run(0, parent, Params(), CPU, DATASET) as trial:
        trial.log_metrics({"kl": 25.0}, prefix="val/", step=1)
    (child,) = children()
    assert (child.info.run_id, child.info.status, child.data.metrics) == (trial.id, "FINISHED", {"val/kl": 25.0})
    assert child.data.params.keys() == of_a_training(Params())
    assert child.data.tags.items() >= {"trial": "0", "precision": "fp32", **DATA_TAGS}.items()
    tracking.end_dead_trial(0, parent)
    (child,) = children()
    assert (child.info.status, child.data.tags["state"]) == ("KILLED", "KILLED")
    (tmp_path / "trials.csv").write_text("0")
    with tracking.open_run("search", parent, tracking.SEARCH_EXPERIMENT) as run:
        tracking.log_search(run, {"trials": 1, "best": "0"}, [tmp_path / "trials.csv"])
    data = data_of(parent)
    assert data.metrics == {"trials": 1.0} and data.tags.items() >= {"trials": "1", "best": "0", **DATA_TAGS}.items()
    assert data.params.keys() >= {"search.epochs", "train.epochs"} and "search.n_trials" not in data.params


@pytest.mark.parametrize(
    ("model", "train", "name"),
    [
        ({"hidden_dims": (512, 512)}, {"learning_rate": 2e-3}, "mlp512x2-z32-b1-lr0.002"),
        ({"hidden_dims": (512, 256), "latent_dim": 2}, {"beta": 4.0}, "mlp512-256-z2-b4-lr0.001"),
        ({"architecture": "conv", "hidden_dims": (32, 32)}, {"beta": 0.5}, "conv32x2-z32-b0.5-lr0.001"),
    ],
)
def test_a_run_is_named_after_what_often_differs(model, train, name):
    model, train = {"latent_dim": 32, **model}, {"beta": 1.0, "learning_rate": 1e-3, **train}
    assert tracking.run_name(Params(model=ModelParams(**model), train=TrainParams(**train))) == name
