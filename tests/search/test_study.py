"""Studies and trials in this process: which trials share a study, what they store, and which are run again."""

from collections import Counter
from unittest.mock import DEFAULT, Mock

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from search_support import DATASET, small
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.errors import SearchError
from vae.models.vae import VAE
from vae.search import group, report, study
from vae.search.storage import journal_path, open_storage
from vae.search.study import RETRIES, DeadTrials, counted, finished, hand_back, open_study, score, study_name
from vae.tracking.store import mlflow
from vae.training.loop import fit

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 1}, False),
        ({"data.binarization": "static"}, False),
        ({"search.epochs": 3}, False),
        ({"search.objective": "rate_distortion"}, False),
        ({"search.space": {"beta": [1, 2]}}, False),
        ({"train.beta": 2.0}, True),  # searched: each trial has its own value
        ({"train.epochs": 99, "train.device": "cuda", "evaluate.importance_samples": 7}, True),
        ({"search.n_trials": 99, "search.workers": 3, "search.pruner": "none"}, True),
    ],
)
def test_only_comparable_trials_share_a_study(change, same):
    assert (study_name(small().replaced(change), DATASET) == study_name(small(), DATASET)) is same


def test_a_studys_name_depends_on_images_code_and_all_values_including_defaults(monkeypatch, tmp_path):
    before = study_name(small(), DATASET)
    assert study_name(small(), DATASET | {"sha256": {"train-images-idx3-ubyte": "1"}}) != before
    (tmp_path / "loop.py").write_text("another training loop")
    monkeypatch.setattr(study, "TRAINING_CODE", [tmp_path])
    assert study_name(small(), DATASET) != before
    values = Mock(return_value="0" * 16)
    monkeypatch.setattr(study, "fingerprint", values)
    study_name(small(), DATASET)
    defaults = {"train.free_bits": 0.0, "model.residual": True, "data.binarization": "dynamic"}
    assert values.call_args.args[0][0].items() >= defaults.items()


def test_the_total_is_exact_and_a_larger_one_adds_the_difference(here):
    before = here.search(small(n_trials=2)).trials
    journal = journal_path().read_bytes()
    assert [each.state for each in before] == [COMPLETE] * 2
    assert here.search(small(n_trials=2)).trials == before
    assert journal_path().read_bytes() == journal  # nothing is written when nothing is left to do
    after = here.search(small(n_trials=4)).trials
    assert after[:2] == before and len(after) == 4
    points = Counter(tuple(each.params.values()) for each in after)
    assert max(points.values()) == 1  # a seed used twice would suggest the same again


def test_a_search_by_one_worker_is_reproducible(here):
    first = [each.params for each in here.search(small()).trials]
    journal_path().unlink()
    assert [each.params for each in here.search(small()).trials] == first


def test_the_first_trial_has_the_values_of_params_yaml_and_trains_like_the_train_stage(here):
    outside = {"train__beta": 9.0, "train__learning_rate": 0.004, "model__latent_dim": 20}  # of the space
    params = small(n_trials=1, **outside)
    (first,) = here.search(params).trials
    assert first.params == {"latent_dim": 20, "beta": 9.0, "learning_rate": 0.004}
    train, validation = split_validation(load(here.raw, "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.initialize_from_data(train.images)
    params = params.replaced({"train.epochs": 2, "train.compile": False})
    fitted = fit(model, train, validation, params.train, resolve(params.train), seed=params.seed)
    assert first.value == fitted.best["val/neg_elbo"]  # at β = 1, not the loss of the training, with β = 9
    assert list(first.intermediate_values.values()) == [record["val/neg_elbo"] for record in fitted.history]


def test_with_the_objective_iwae_trials_are_ranked_pruned_and_adopted_by_the_bound_that_chose_the_weights(here):
    params = small(n_trials=2, train__objective="iwae", train__importance_samples=5)
    found = here.search(params)
    for each in found.trials:
        curve = mlflow.MlflowClient().get_metric_history(each.user_attrs["mlflow_run"], "val/neg_bound")
        assert each.intermediate_values == {point.step: point.value for point in curve}
        assert each.value == score(each) == min(each.intermediate_values.values()) < each.user_attrs["neg_elbo"]
    assert report.best_trial(found.trials).value == min(each.value for each in found.trials)


def test_a_failing_trial_is_kept_with_its_reason_and_the_search_continues(here):
    space = {"prior": ["standard", "vampprior"], "free_bits": [0.0, 0.1], "learning_rate": [1e-3, 2e9]}
    params = small(n_trials=8, epochs=1, space=space, train__learning_rate=1e-3)
    trials = here.search(params).trials
    assert len(trials) == 8
    reasons = {"ConfigError: train.free_bits requires": 0, "DivergedError: training diverged at epoch 1": 0}
    for each in trials:
        refused = each.params["prior"] == "vampprior" and each.params["free_bits"] > 0
        bad = refused or each.params["learning_rate"] > 1
        assert each.state is (FAIL if bad else COMPLETE)
        if bad:
            (reason,) = [known for known in reasons if each.user_attrs["reason"].startswith(known)]
            reasons[reason] += 1
            assert f"failed: {reason}" in report.describe(each, params)
    assert min(reasons.values()) > 0, "another seed is needed for both failures to occur"
    states = Counter((run.info.status, run.data.tags.get("state")) for run in here.runs())
    assert states["FINISHED", "COMPLETE"] == sum(each.state is COMPLETE for each in trials)
    assert states["FAILED", "FAILED"] == reasons["DivergedError: training diverged at epoch 1"]


def test_a_search_stops_when_the_first_three_trials_fail_and_tries_again_when_it_is_started_again(here):
    params = small(n_trials=9, space={"learning_rate": [1e9, 2e9]}, train__learning_rate=2e9)
    for number in (2, 5):
        with pytest.raises(SearchError, match=rf"last 3 trials all failed.*trial {number}: DivergedError"):
            here.search(params)


@pytest.mark.parametrize("error", [torch.cuda.CudaError(2), OSError(28, "No space left on device")])
def test_a_search_stops_after_three_failures_in_a_row_also_after_a_success(here, monkeypatch, error):
    trained = Mock(wraps=fit, side_effect=[DEFAULT, *[error] * 9])
    monkeypatch.setattr(group, "fit", trained)
    params = small(n_trials=9, epochs=1)
    with pytest.raises(SearchError, match=rf"last 3 trials all failed.*trial 3: {type(error).__name__}"):
        here.search(params)
    trials = open_study(params, here.dataset, open_storage()).trials
    assert [each.state for each in trials] == [COMPLETE, FAIL, FAIL, FAIL]


def test_a_trial_that_is_behind_is_pruned_but_never_that_of_params_yaml(here, monkeypatch):
    pruner = Mock(spec=optuna.pruners.BasePruner, prune=Mock(return_value=True))
    monkeypatch.setattr(study, "_pruner", lambda params: pruner)
    first, second = here.search(small(n_trials=2)).trials
    assert (first.state, len(first.intermediate_values)) == (COMPLETE, 2)
    assert (second.state, len(second.intermediate_values)) == (PRUNED, 1)
    states = Counter((run.info.status, run.data.tags["state"]) for run in here.runs())
    assert states == {("FINISHED", "COMPLETE"): 1, ("FINISHED", "PRUNED"): 1}


@pytest.mark.parametrize(("pruner", "earliest"), [("median", 7), ("hyperband", 1), ("none", None)])
def test_the_pruner_compares_trials_from_an_epoch_on(pruner, earliest):
    params = small(epochs=10, pruner=pruner)
    pruned, trials = [], optuna.create_study(pruner=study._pruner(params))
    for number in range(30):
        trial = trials.ask()
        for epoch in range(1, 10):
            trial.report(float(number), epoch)  # each is worse than all before
            if trial.should_prune():
                pruned.append(epoch)
                break
        trials.tell(trial, float(number))
    assert min(pruned, default=None) == earliest


def test_rate_distortion_minimizes_both_and_prunes_nothing(here):
    params = small(n_trials=2, objective="rate_distortion")
    found = here.search(params)
    assert found.metric_names == ["distortion", "rate"]
    for each in found.trials:
        assert each.state is COMPLETE
        assert each.values == [each.user_attrs["reconstruction"], each.user_attrs["kl"]]
        assert not each.intermediate_values and len(each.user_attrs["curve"]) == 2
        assert sum(each.values) == pytest.approx(score(each))
    report.write(found, params)
    assert report.best_trial(found.trials).number == np.argmin([sum(each.values) for each in found.trials])


def test_a_trial_has_an_mlflow_run_below_that_of_the_search(here):
    found = here.search(small(n_trials=1))
    (run,), (only,) = here.runs(), found.trials
    assert run.data.tags["mlflow.parentRunId"] == found.user_attrs["mlflow_run"]
    assert (run.info.run_id, run.data.tags["trial"]) == (only.user_attrs["mlflow_run"], "0")
    assert float(run.data.params["train.beta"]) == only.params["beta"]
    assert run.data.params["train.epochs"] == "2"
    assert run.data.metrics["summary/val/neg_elbo"] == pytest.approx(only.value)
    curve = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/neg_elbo")
    assert {point.step: point.value for point in curve} == pytest.approx(only.intermediate_values)


# Trials whose worker died


@pytest.fixture
def no_patience(monkeypatch):
    """A heartbeat is missed at once."""
    monkeypatch.setattr(study, "DEAD_SECONDS", 0)


def test_a_dead_trial_is_queued_again_with_its_values(here, no_patience):
    params = small(n_trials=1, model__latent_dim=20)  # outside of the space
    worker = here.worker(params)
    dead = worker._take()
    tags = {"mlflow.parentRunId": worker.study.user_attrs["mlflow_run"], "trial": "0"}
    with mlflow.start_run(run_name="trial 0", tags=tags):
        pass  # its run ended just before its worker died, and the trial doesn't know of it
    for _ in range(2):
        DeadTrials().requeue(worker.study)
        first, again = worker.study.trials
        assert (first.state, again.state) == (FAIL, TrialState.WAITING)
        assert counted(worker.study.trials) == [again] and finished(worker.study) == []
    (run,) = here.runs()
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "KILLED")
    (last,) = counted(here.search(params).trials)
    assert (last.state, last.params) == (COMPLETE, dead.params)


def test_a_trial_that_was_lost_but_not_yet_queued_again_is_found(here, no_patience):
    worker = here.worker(small(n_trials=1))
    study._release(worker.study, worker._take().number)
    DeadTrials().requeue(worker.study)
    assert [each.state for each in counted(worker.study.trials)] == [TrialState.WAITING]


def test_a_trial_whose_worker_was_stopped_while_taking_it_is_handed_back(here, monkeypatch):
    worker = here.worker(small(n_trials=1))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(optuna.Trial, "set_user_attr", Mock(side_effect=SystemExit))  # as on SIGTERM
        worker._take()
    assert [each.state for each in worker.study.trials] == [TrialState.RUNNING]
    hand_back(worker.study, worker.storage, {worker.name})
    assert [each.state for each in worker.study.trials] == [FAIL, TrialState.WAITING]


def test_a_trial_with_a_heartbeat_is_left_alone(here, monkeypatch):
    clock = iter(range(0, 1000, study.DEAD_SECONDS - 1))
    monkeypatch.setattr(study.time, "monotonic", lambda: next(clock))
    worker, dead_trials = here.worker(small(n_trials=1)), DeadTrials()
    running = worker._take()
    for beat in range(3):
        running.set_user_attr("heartbeat", beat)
        dead_trials.requeue(worker.study)
    assert [each.state for each in worker.study.trials] == [TrialState.RUNNING]
    dead_trials.requeue(worker.study)
    dead_trials.requeue(worker.study)
    assert [each.state for each in worker.study.trials] == [FAIL, TrialState.WAITING]


def test_the_heartbeat_beats_while_a_trial_is_trained(here, monkeypatch):
    monkeypatch.setattr(study, "HEARTBEAT_SECONDS", 0.02)
    (only,) = here.search(small(n_trials=1)).trials
    assert only.user_attrs["heartbeat"] > 1


def test_a_trial_that_kills_its_worker_each_time_fails_in_the_end(here, no_patience):
    params = small(n_trials=1)
    worker = here.worker(params)
    for _ in range(RETRIES + 1):
        worker._take()
        DeadTrials().requeue(worker.study)
    (last,) = counted(worker.study.trials)
    assert last.state is FAIL and "failed: its worker died" in report.describe(last, params)
