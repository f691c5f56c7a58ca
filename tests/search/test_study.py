"""The search in this process: its space, its study, its trials, and what it writes."""

import json
import math
from collections import Counter

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from ruamel.yaml import YAML

from support import ROOT
from vae.config import load_params
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.errors import ConfigError, DivergedError, SearchError
from vae.models.vae import VAE
from vae.search import figures, results, workers
from vae.search.adopt import adopt
from vae.search.study import (
    RETRIES,
    counted,
    current_values,
    distributions,
    finished,
    journal,
    open_storage,
    open_study,
    retry_dead,
    study_name,
    with_values,
)
from vae.search.trial import Worker
from vae.tracking import store as tracking
from vae.tracking.store import SEARCH_EXPERIMENT, mlflow
from vae.training.loop import fit
from vae.workflow.stages import read_dataset

DATASET = {"name": "MNIST", "sha256": {"train-images-idx3-ubyte": "0"}}
SMALL = {
    "model.hidden_dims": [16],
    "train.batch_size": 500,
    "search.epochs": 2,
    "search.n_trials": 3,
    "search.workers": 1,
    "search.space": {
        "latent_dim": {"low": 2, "high": 8},
        "beta": {"low": 0.5, "high": 4.0, "log": True},
        "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    },
}
FIGURES = {
    *("optimization_history", "param_importances", "slice", "parallel_coordinate", "intermediate_values"),
    "pareto_front",
}


@pytest.fixture
def here(project, monkeypatch):
    """The folder of a project with its images and a MLflow store, as the working directory."""
    monkeypatch.chdir(project.root)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    return project


def small(**others):
    """The params of a small search; `n_trials=4` stands for search.n_trials, `train__beta` for train.beta."""
    named = {key.replace("__", ".") if "__" in key else f"search.{key}": value for key, value in others.items()}
    return load_params(overrides=SMALL | named)


def worked(params):
    """The study after one worker has run it."""
    tracking.connect(SEARCH_EXPERIMENT)
    worker = Worker(params, read_dataset(), "data/raw", "here", 0)
    worker.run()
    return worker.study


def children():
    client = mlflow.MlflowClient(tracking.tracking_uri())
    runs = client.search_runs([client.get_experiment_by_name(SEARCH_EXPERIMENT).experiment_id])
    return [run for run in runs if "mlflow.parentRunId" in run.data.tags]


# The space


def test_ranges_and_choices_become_optunas_distributions():
    space = {
        "latent_dim": {"low": 2, "high": 8},
        "beta": {"low": 0.5, "high": 4, "log": True},
        "activation": ["relu", "tanh"],
        "hidden_dims": [[64], [64, 32]],
        "max_grad_norm": [None, 1.0],
    }
    params = load_params(overrides={"search.space": space, "model.activation": "silu", "model.hidden_dims": [64]})
    assert distributions(params) == {
        "latent_dim": IntDistribution(2, 8),
        "beta": FloatDistribution(0.5, 4.0, log=True),
        "activation": CategoricalDistribution(["relu", "tanh", "silu"]),  # the current value joins in
        "hidden_dims": CategoricalDistribution(["[64]", "[64, 32]"]),
        "max_grad_norm": CategoricalDistribution([None, 1.0]),
    }


def test_a_trials_values_are_put_in_their_sections():
    params = with_values(small(epochs=7), {"latent_dim": 5, "beta": 0.7, "hidden_dims": "[64, 32]", "residual": False})
    assert (params.model.latent_dim, params.model.hidden_dims, params.model.residual) == (5, (64, 32), False)
    assert (params.train.beta, params.train.epochs) == (0.7, 7)


def test_current_values_survive_the_way_through_optuna():
    space = {"hidden_dims": [[8], [8, 8]], "lr_schedule": ["constant", "cosine"], "beta": {"low": 1, "high": 2}}
    params = small(space=space)
    again = with_values(params, current_values(params))
    assert again.model == params.model
    assert again.train.lr_schedule == params.train.lr_schedule


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data.binarization": "static"},
        {"data.validation_size": 400},
        {"model.activation": "tanh"},
        {"train.batch_size": 64},
        {"search.epochs": 3},
        {"search.objective": "rate_distortion"},
        {"search.space": {"beta": [1, 2]}},
    ],
)
def test_trials_that_do_not_compare_are_in_another_study(change):
    assert study_name(load_params(overrides=SMALL | change), DATASET) != study_name(
        load_params(overrides=SMALL), DATASET
    )


@pytest.mark.parametrize(
    "change",
    [
        {"train.beta": 2.0},  # searched: each trial brings its own
        {"train.epochs": 99},
        {"train.device": "cpu"},
        {"evaluate.importance_samples": 7},
        {"search.n_trials": 99, "search.workers": 3, "search.pruner": "none"},
    ],
)
def test_trials_that_compare_are_in_one_study(change):
    assert study_name(load_params(overrides=SMALL | change), DATASET) == study_name(
        load_params(overrides=SMALL), DATASET
    )


def test_other_images_are_another_study():
    other = DATASET | {"sha256": {"train-images-idx3-ubyte": "1"}}
    assert study_name(small(), other) != study_name(small(), DATASET)


# Trials


def test_the_total_is_exact_and_a_larger_one_adds_the_difference(here):
    before = worked(small(n_trials=3)).trials
    assert [trial.state for trial in before] == [TrialState.COMPLETE] * 3
    assert worked(small(n_trials=3)).trials == before
    after = worked(small(n_trials=5)).trials
    assert after[:3] == before
    assert len(after) == 5
    points = Counter(tuple(trial.params.values()) for trial in after)
    assert max(points.values()) == 1  # a seed used twice would suggest the same again


def test_the_journal_is_not_touched_when_nothing_is_left_to_do(here):
    worked(small(n_trials=1))
    before = (here / "search/study.journal").read_bytes()
    worked(small(n_trials=1))
    assert (here / "search/study.journal").read_bytes() == before


def test_params_yaml_is_the_first_trial_and_trained_as_the_train_stage_does(here):
    params = small(n_trials=1, train__beta=2.0, train__learning_rate=0.004, model__latent_dim=3)
    (trial,) = worked(params).trials
    assert trial.params == {"latent_dim": 3, "beta": 2.0, "learning_rate": 0.004}
    train, validation = split_validation(load("data/raw", "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.initialize_from_data(train.images)
    expected = params.replaced({"train.epochs": 2})
    fitted = fit(model, train, validation, expected.train, resolve(params.train), seed=params.seed)
    # −ELBO at β = 1, not the loss that β = 2 trains on
    assert trial.value == fitted.best["val/reconstruction"] + fitted.best["val/kl"]
    assert list(trial.intermediate_values.values()) == [record["val/neg_elbo"] for record in fitted.history]


def test_values_of_params_yaml_outside_of_the_space_are_tried_all_the_same(here):
    (trial,) = worked(small(n_trials=1, model__latent_dim=20, train__beta=9.0)).trials
    assert (trial.params["latent_dim"], trial.params["beta"]) == (20, 9.0)


def test_one_worker_repeats_its_suggestions_from_the_same_seed(here):
    first = [trial.params for trial in worked(small(n_trials=3)).trials]
    (here / "search/study.journal").unlink()
    assert [trial.params for trial in worked(small(n_trials=3)).trials] == first


def test_a_failing_trial_is_kept_with_its_reason_and_the_search_goes_on(here):
    space = {"learning_rate": [1e-3, 1e30]}
    trials = worked(small(n_trials=6, space=space, train__learning_rate=1e-3)).trials
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert failed and len(failed) < len(trials) == 6
    for trial in failed:
        assert trial.params == {"learning_rate": 1e30}
        assert trial.user_attrs["reason"].startswith(f"{DivergedError.__name__}: training diverged at epoch 1")
    states = Counter((run.info.status, run.data.tags["state"]) for run in children())
    assert states == {("FAILED", "FAILED"): len(failed), ("FINISHED", "COMPLETE"): 6 - len(failed)}


def test_a_trial_whose_values_cannot_go_together_is_kept_with_its_reason(here):
    space = {"prior": ["standard", "vampprior"], "free_bits": [0.0, 0.1]}
    trials = worked(small(n_trials=8, space=space, model__prior="standard")).trials
    refused = {"prior": "vampprior", "free_bits": 0.1}
    assert {trial.state for trial in trials if trial.params != refused} == {TrialState.COMPLETE}
    failed = [trial for trial in trials if trial.params == refused]
    assert failed, "more trials, or another seed, are needed for the combination to come up"
    for trial in failed:
        assert trial.state is TrialState.FAIL
        assert trial.user_attrs["reason"].startswith("ConfigError: train.free_bits requires a KL per dimension")
    assert "failed: ConfigError: train.free_bits needs" in results.describe(failed[0])


def test_a_search_whose_first_three_trials_fail_stops(here):
    params = small(n_trials=9, space={"learning_rate": [1e29, 1e30]}, train__learning_rate=1e30)
    with pytest.raises(SearchError, match=r"first 3 trials all failed.*trial 2: DivergedError: training diverged"):
        worked(params)
    with pytest.raises(SearchError, match="first 6 trials all failed"):  # asked again, it tries again
        worked(params)


def test_a_trial_that_is_behind_is_pruned_but_never_that_of_params_yaml(here, monkeypatch):
    class Impatient(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    monkeypatch.setattr("vae.search.study._pruner", lambda params: Impatient())
    first, *others = worked(small(n_trials=3)).trials
    assert (first.state, len(first.intermediate_values)) == (TrialState.COMPLETE, 2)
    assert [(trial.state, len(trial.intermediate_values)) for trial in others] == [(TrialState.PRUNED, 1)] * 2
    states = Counter((run.info.status, run.data.tags["state"]) for run in children())
    assert states == {("FINISHED", "COMPLETE"): 1, ("FINISHED", "PRUNED"): 2}


@pytest.mark.parametrize(
    "pruner, kind", [("median", "MedianPruner"), ("hyperband", "HyperbandPruner"), ("none", "NopPruner")]
)
def test_the_pruner_is_the_one_that_is_asked_for(here, pruner, kind):
    tracking.connect(SEARCH_EXPERIMENT)
    assert type(open_study(small(pruner=pruner), read_dataset(), open_storage()).pruner).__name__ == kind


def test_rate_distortion_minimises_both_and_prunes_nothing(here):
    params = small(n_trials=4, objective="rate_distortion")
    study = worked(params)
    assert study.metric_names == ["distortion", "rate"]
    for trial in study.trials:
        assert trial.state is TrialState.COMPLETE
        assert trial.values == [trial.user_attrs["reconstruction"], trial.user_attrs["kl"]]
        assert not trial.intermediate_values and len(trial.user_attrs["curve"]) == 2
        assert sum(trial.values) == pytest.approx(min(trial.user_attrs["curve"]))
    results.write(study, params)
    best = min(study.trials, key=lambda trial: sum(trial.values))
    assert results.best_trial(study.trials).number == best.number
    assert (here / "search/pareto_front.png").exists()


def test_a_trial_has_a_run_below_that_of_the_search(here):
    study = worked(small(n_trials=2))
    runs = children()
    assert sorted(run.data.tags["trial"] for run in runs) == ["0", "1"]
    for run in runs:
        trial = study.trials[int(run.data.tags["trial"])]
        assert run.data.tags["mlflow.parentRunId"] == study.user_attrs["mlflow_run"]
        assert float(run.data.params["train.beta"]) == trial.params["beta"]
        assert run.data.params["train.epochs"] == "2"
        assert run.data.metrics["summary/val/neg_elbo"] == pytest.approx(trial.value)
        curve = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/neg_elbo")
        assert {point.step: point.value for point in curve} == pytest.approx(trial.intermediate_values)


def test_trials_go_on_when_mlflow_is_in_trouble(here, monkeypatch):
    def refuse(*arguments, **options):
        raise mlflow.exceptions.MlflowException("no room")

    tracking.connect(SEARCH_EXPERIMENT)
    monkeypatch.setattr(mlflow, "start_run", refuse)
    (trial,) = worked(small(n_trials=1)).trials
    assert trial.state is TrialState.COMPLETE


# Trials whose worker died


def abandoned(params, owner):
    """A study in which one trial is running that nobody works on."""
    tracking.connect(SEARCH_EXPERIMENT)
    study = open_study(params, read_dataset(), open_storage())
    trial = study.ask(distributions(params))
    if owner:
        trial.set_user_attr("worker", owner)
        # As if its worker had died before it could tell the trial of the run.
        tags = {"mlflow.parentRunId": study.user_attrs["mlflow_run"], "trial": str(trial.number)}
        with mlflow.start_run(run_name="trial 0", tags=tags) as run:
            pass
        mlflow.MlflowClient().update_run(run.info.run_id, "RUNNING")
    return study, trial


def test_a_dead_workers_trial_is_queued_again_with_its_values(here):
    params = small(n_trials=2)
    study, lost = abandoned(params, "gone")
    assert retry_dead(study, {"here"}, 0) == 1
    assert retry_dead(study, {"here"}, 0) == 0
    dead, again = study.trials
    assert (dead.state, again.state, dead.params) == (TrialState.FAIL, TrialState.WAITING, lost.params)
    assert counted(study.trials) == [again] and finished(study.trials) == []
    (run,) = mlflow.search_runs(filter_string="tags.trial = '0'", output_format="list")
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "KILLED")
    trials = worked(params).trials
    assert [trial.state for trial in counted(trials)] == [TrialState.COMPLETE] * 2
    assert trials[1].params == lost.params


def test_a_search_that_dies_while_it_retries_a_trial_leaves_the_rest_to_the_next(here):
    study, lost = abandoned(small(n_trials=2), "gone")
    study.tell(lost.number, state=TrialState.FAIL)
    assert retry_dead(study, {"here"}, 0) == 1
    assert retry_dead(study, {"here"}, 0) == 0
    assert [trial.state for trial in counted(study.trials)] == [TrialState.WAITING]


def test_a_run_that_ended_just_before_its_worker_died_does_not_count(here):
    study, _ = abandoned(small(), "gone")
    (run,) = children()
    mlflow.MlflowClient().set_tag(run.info.run_id, "state", "COMPLETE")
    mlflow.MlflowClient().set_terminated(run.info.run_id, "FINISHED")
    retry_dead(study, set(), 0)
    (run,) = children()
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "KILLED")


def test_params_yamls_trial_is_run_again_also_outside_of_the_space(here):
    params = small(n_trials=1, model__latent_dim=20)
    study, lost = abandoned(params, "gone")
    assert lost.params["latent_dim"] == 20
    retry_dead(study, set(), 0)
    (trial,) = counted(worked(params).trials)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, lost.params)


def test_the_trial_of_a_living_worker_is_left_alone(here):
    study, _ = abandoned(small(), "here")
    assert retry_dead(study, {"here"}, 0) == 0


def test_a_trial_just_taken_is_given_time_to_get_its_workers_name(here):
    study, _ = abandoned(small(), None)
    assert retry_dead(study, {"here"}, 60) == 0
    assert retry_dead(study, {"here"}, 0) == 1


def test_a_trial_that_kills_its_worker_each_time_fails_in_the_end(here):
    study, _ = abandoned(small(), "gone")
    for _ in range(RETRIES):
        assert retry_dead(study, set(), 0) == 1
        study.ask().set_user_attr("worker", "gone")
    assert retry_dead(study, set(), 0) == 0
    (last,) = counted(study.trials)
    assert last.state is TrialState.FAIL
    assert "failed: its worker died" in results.describe(last)


# The storage


def test_an_unfinished_last_record_is_dropped(here):
    trials = worked(small(n_trials=1)).trials
    path = here / "search/study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "study')
    assert optuna.load_study(study_name=None, storage=journal()).trials == trials
    assert path.read_bytes() == whole


def test_a_damaged_journal_is_named_and_left_as_it_is(here):
    worked(small(n_trials=1))
    path = here / "search/study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (b"\x00\xff garbage\n", b'{"op_code": 99, "worker_id": "x"}\n', b"[]\n", b'{"op_code": 4}\n'):
        damaged = b"".join([*lines[:2], damage, *lines[2:]])
        path.write_bytes(damaged)
        with pytest.raises(SearchError, match=r"^search/study.journal is damaged") as caught:
            open_storage()
        assert len(str(caught.value).splitlines()) == 1
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "url, reason",
    [
        ("nonsense", "allowed is a URL such as postgresql://"),
        ("redis://127.0.0.1", "can't be used"),
        ("oracle://a@127.0.0.1/b", "can't be used"),
        ("postgresql://user:secret@127.0.0.1:1/optuna", r"postgresql://user:\*\*\*@127.0.0.1:1/optuna can't be used"),
        ("sqlite:////nowhere/at/all.db", "can't be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named_without_its_password(here, monkeypatch, url, reason):
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    with pytest.raises(SearchError, match=reason) as caught:
        open_storage()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "OPTUNA_STORAGE" in message and "secret" not in message


def test_a_study_in_a_database_is_copied_into_the_journal(here, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{here / 'study.db'}")
    monkeypatch.setattr(figures, "every", lambda *_: {})
    params = small(n_trials=2)
    study = worked(params)
    for _ in range(2):  # a copy that is there is replaced
        results.write(study, params)
        copied = optuna.load_study(study_name=study.study_name, storage=journal()).trials
        assert [(trial.params, trial.values) for trial in copied] == [(t.params, t.values) for t in study.trials]


def test_to_join_there_must_be_something_to_share(here):
    with pytest.raises(SearchError, match="set OPTUNA_STORAGE"):
        workers.join(small(), DATASET, "data/raw")


# Workers


@pytest.mark.parametrize(
    "asked, threads, missing, count, each",
    [("auto", 8, 40, 8, 1), ("auto", 8, 3, 3, 2), (2, 8, 40, 2, 4), (4, 2, 40, 4, 1), (3, 8, 1, 1, 8)],
)
def test_threads_are_divided_among_workers(monkeypatch, asked, threads, missing, count, each):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 64 * 2**30}))
    plan = workers.plan(load_params(overrides={"search.workers": asked, "train.device": "cpu"}), missing)
    assert (plan.workers, plan.threads, list(plan.devices)) == (count, each, ["cpu"])


def test_automatic_workers_fit_into_the_memory(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 8 * 2**30}))
    assert workers.plan(load_params(overrides={"train.device": "cpu"}), 40).workers == 5


# What it writes


@pytest.fixture
def study(here):
    """A study with four complete trials, a pruned and a failed one, without training."""
    params = small(n_trials=6)
    study = open_study(params, read_dataset(), open_storage())
    study.enqueue_trial(current_values(params))
    for number, (state, beta) in enumerate([("COMPLETE", 1.0)] * 1 + [("COMPLETE", b) for b in (0.5, 2.0, 4.0)]):
        values = current_values(params) | {"beta": beta, "latent_dim": 2 + number}
        curve = [120.0 + number, 100.0 - number]
        kl = 20.0 - 3 * number
        study.add_trial(trial_of(params, values, state, curve, reconstruction=curve[-1] - kl, kl=kl, best_epoch=2))
    study.add_trial(trial_of(params, values | {"beta": 3.0}, "PRUNED", [130.0]))
    study.add_trial(trial_of(params, values | {"beta": 0.6}, "FAIL", [], reason="DivergedError: so"))
    return study


def trial_of(params, values, state, curve, **attributes):
    return create_trial(
        state=TrialState[state],
        value=curve[-1] if state == "COMPLETE" else None,
        params=values,
        distributions=distributions(params),
        intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={"curve": curve, "seconds": 3.0, **attributes},
    )


def test_the_results_are_written_with_the_same_bytes_every_time(study, here):
    params = small(n_trials=6)
    written = results.write(study, params)
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in results.write(study, params)} == first
    assert {path.stem for path in written if path.suffix == ".png"} == FIGURES
    for path in written:
        assert path.exists()
        if path.suffix == ".png":
            assert np.asarray(Image.open(path).convert("L")).std() > 5
    rows = pd.read_csv(here / "search/trials.csv")
    assert list(rows["state"]) == ["COMPLETE"] * 4 + ["PRUNED", "FAIL"]
    assert list(rows["neg_elbo"][:5]) == [100.0, 99.0, 98.0, 97.0, 130.0]
    assert rows["reason"][5] == "DivergedError: so"
    complete = rows[:4]
    assert np.allclose(complete["neg_elbo"], complete["reconstruction"] + complete["kl"])
    best = YAML(typ="safe").load(here / "search/best_params.yaml")
    assert best == {"model": {"latent_dim": 5}, "train": {"beta": 4.0, "learning_rate": params.train.learning_rate}}


def test_the_closing_table_says_what_the_best_beats(study):
    params = small(n_trials=6, model__latent_dim=2)
    text = results.closing_table(study, params)
    table = [line.split() for line in text.splitlines()]
    assert table[0][:2] == ["trial", "neg_elbo"]
    assert [row[1] for row in table[1:5]] == ["97", "98", "99", "100"]
    assert "beats params.yaml's values" in text and "by 3.00 nats" in text
    assert "6 trials, 1 pruned, 1 failed" in text


def test_the_search_never_ends_worse_than_params_yaml(study):
    params = small(n_trials=6, model__latent_dim=5, train__beta=4.0)  # the best of all
    assert "nothing was better than params.yaml's values" in results.closing_table(study, params)


def test_without_a_complete_trial_there_is_nothing_to_write(here):
    params = small()
    study = open_study(params, read_dataset(), open_storage())
    with pytest.raises(SearchError, match="none of the 0 trials is complete"):
        results.write(study, params)


def test_figures_can_be_drawn_of_one_trial_and_of_choices(here):
    space = {"activation": ["silu", "tanh"], "residual": [True, False], "hidden_dims": [[16], [8, 8]]}
    params = small(n_trials=1, space=space)
    study = worked(params)
    assert {path.stem for path in results.write(study, params) if path.suffix == ".png"} == FIGURES
    study = worked(small(n_trials=3, space=space))
    results.write(study, params)


def test_the_curves_of_thousands_of_trials_are_a_few_artists():
    states = ["COMPLETE", "PRUNED"] * 1000
    curves = {number: [200.0 - number / 100, 150.0][: 2 - number % 2] for number in range(2000)}
    rows = pd.DataFrame({"trial": range(2000), "state": states, "neg_elbo": [min(curve) for curve in curves.values()]})
    (ax,) = figures.intermediate_values(rows, curves).axes
    complete, pruned = ax.collections
    assert [len(collection.get_segments()) for collection in (complete, pruned)] == [1000, 1000]
    np.testing.assert_array_equal(complete.get_segments()[2], [[1, 200 - 0.04], [2, 150]])
    crosses, best = ax.lines
    assert len(crosses.get_xdata()) == 1000 and crosses.get_ydata()[0] == 200 - 0.01
    assert best.get_label() == "best: trial 0"


def test_undominated_rows_are_those_that_no_other_beats():
    points = np.random.default_rng(0).integers(0, 8, (60, 2)).astype(float)
    expected = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert list(figures.undominated(points)) == expected
    assert 1 < sum(expected) < 60


# Adopting


BEST = "# comment\nmodel: {latent_dim: 5, hidden_dims: [8, 4]}\ntrain: {beta: 0.75, learning_rate: 1.5e-3}\n"


def test_adopting_changes_the_values_and_nothing_else(here):
    (here / "search").mkdir()
    (here / "search/best_params.yaml").write_text(BEST)
    path = here / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    before = path.read_text().splitlines()
    difference = adopt()
    after = path.read_text().splitlines()
    params = load_params()
    assert (params.model.latent_dim, params.model.hidden_dims) == (5, (8, 4))
    assert (params.train.beta, params.train.learning_rate) == (0.75, 0.0015)
    changed = [line for line in before if line not in after]
    assert {line.split(":")[0].strip() for line in changed} == {"latent_dim", "hidden_dims", "beta", "learning_rate"}
    comments = [[line.split("#")[1] for line in lines if "#" in line] for lines in (before, after)]
    assert comments[0] == comments[1]
    assert "-  beta: " in difference and "+  beta: 0.75" in difference
    assert adopt() == ""


def test_adopting_without_a_finished_search_is_refused(here):
    before = (here / "params.yaml").read_bytes()
    with pytest.raises(SearchError, match="no finished search"):
        adopt()
    assert (here / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "content, error",
    [
        ("train: {beta: -1.0}", ConfigError),
        ("train: {betta: 1.0}", ConfigError),
        ("[1, 2", SearchError),
        ("- 1", SearchError),
    ],
)
def test_values_that_are_not_allowed_are_not_adopted(here, content, error):
    (here / "search").mkdir()
    (here / "search/best_params.yaml").write_text(content)
    before = (here / "params.yaml").read_bytes()
    with pytest.raises(error):
        adopt()
    assert (here / "params.yaml").read_bytes() == before


def test_the_journal_holds_only_what_json_can(here):
    worked(small(n_trials=1, space={"max_grad_norm": [None, 1.0], "beta": {"low": 1, "high": 2}}))
    for line in (here / "search/study.journal").read_text().splitlines():
        assert math.isfinite(json.loads(line)["op_code"])
