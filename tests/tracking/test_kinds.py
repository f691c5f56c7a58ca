"""Every run has all parameters, and names its hardware, data, code and weights."""

import subprocess
from unittest.mock import Mock

import pytest
import torch
from mlflow.exceptions import MlflowException

from vae import tracking
from vae.config import ModelParams, Params, TrainParams
from vae.device import Hardware
from vae.tracking.kinds import log_test

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


@pytest.mark.usefixtures("store")
def test_a_stage_that_cannot_search_mlflow_logs_to_the_run_it_knows_or_to_one_that_is_no_training(monkeypatch):
    with tracking.open_run("trained") as trained:
        tracking.log_settings(trained, Params(), CPU, DATASET)
        trained.log_tags({"model.sha256": "cccc", "best_epoch": 1})
    with monkeypatch.context() as away:
        away.setattr(tracking.mlflow, "search_runs", Mock(side_effect=MlflowException("away")))
        with tracking.resume(Params(), CPU, DATASET, "cccc", trained.id) as known:
            pass
        with tracking.resume(Params(), CPU, DATASET, "cccc") as unknown:
            pass
    assert known.id == trained.id != unknown.id
    with tracking.resume(Params(seed=5), CPU, DATASET, "cccc") as other:
        pass
    assert data_of(other.id).tags["training.run"] == trained.id


@pytest.mark.usefixtures("store")
def test_a_training_resumed_outside_of_its_experiment_has_its_evaluation(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "interrupted")
    with tracking.open_run("trained") as run:
        tracking.log_settings(run, Params(), CPU, DATASET)
    monkeypatch.delenv("DVC_EXP_NAME")
    with tracking.open_run("trained", run.id) as resumed:
        tracking.log_settings(resumed, Params(), CPU, DATASET)
        resumed.log_tags({"model.sha256": "dddd", "best_epoch": 1})
    with tracking.resume(Params(), CPU, DATASET, "dddd") as evaluated:
        pass
    assert evaluated.id == run.id


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "mlp512x3-z40"),
        ({"train.device": "cpu", "data.source": "bundled", "search.n_trials": 3}, "mlp512x3-z40"),
        (
            {"seed": 1, "model.prior": "vampprior", "train.epochs": 2, "train.beta": 4.0},
            "mlp512x3-z40 · vampprior · 2 epochs · β4 · seed 1",
        ),
        (
            {"model.hidden_dims": [32, 16], "model.residual": False, "train.epochs": 1, "train.learning_rate": 2e-3},
            "mlp32-16-z40 · residual False · 1 epoch · lr0.002",
        ),
        ({"train.objective": "iwae", "train.importance_samples": 5}, "mlp512x3-z40 · iwae · k=5"),
        ({"evaluate.importance_samples": 20, "render.dpi": 50}, "mlp512x3-z40 · 20 NLL samples · dpi 50"),
    ],
)
def test_a_run_is_named_after_what_differs_from_the_defaults(values, name):
    assert tracking.run_name(Params().replaced(values)) == name


@pytest.mark.usefixtures("store")
def test_a_name_is_as_long_as_mlflow_takes_and_a_trial_is_named_after_its_values():
    with tracking.open_run(tracking.run_name(Params(model=ModelParams(hidden_dims=tuple(range(1, 200)))))) as run:
        pass
    assert len(tracking.mlflow.get_run(run.id).info.run_name) == 250
    with tracking.trial_run(3, None, Params(train=TrainParams(beta=0.51234)), CPU, DATASET) as trial:
        assert trial.name == "trial 3 · latent_dim 40 · β0.512 · lr0.003"


@pytest.mark.usefixtures("store")
def test_a_description_says_what_was_trained_and_what_came_out_and_numbers_of_images_are_tags():
    metrics = {"nll": 84.721, "nll_standard_error": 0.228, "elbo": -88.11, "n_test": 10000}
    with tracking.open_run("described") as run:
        log_test(run, Params(seed=1), DATASET, metrics)
    data = data_of(run.id)
    described = "NLL 84.72 ± 0.23, −ELBO 88.11; 500 samples\n\nmlp512x3-z40 · seed 1 on MNIST"
    assert (data.tags["mlflow.note.content"], data.tags["test.n_test"]) == (described, "10000")
    assert data.metrics.keys() == {"test/nll", "test/nll_standard_error", "test/elbo"}
