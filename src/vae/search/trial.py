"""One process's share of a search: it takes trials until the study has them all, and trains each with `fit()`."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from vae.config import Params
from vae.data.datasets import load, split_validation
from vae.device import Hardware, resolve
from vae.errors import SearchError
from vae.models.vae import VAE
from vae.search.study import (
    MLFLOW_RUN,
    alone,
    counted,
    current_values,
    finished,
    in_state,
    open_storage,
    open_study,
    reason,
    suggest,
    with_values,
)
from vae.tracking import store as tracking
from vae.tracking.run import Run
from vae.training.loop import Fitted, Record, fit

POLL_SECONDS = 1.0
HOPELESS = 3  # trials that fail before any has succeeded


class Worker:
    """Holds what lasts from trial to trial: the study, the images, the device."""

    def __init__(self, params: Params, dataset: Mapping[str, Any], folder: Path, name: str, number: int) -> None:
        self.params, self.name = params, name
        self.train, self.validation = split_validation(load(folder, "train"), params.data.validation_size)
        self.storage = open_storage()
        self.study = open_study(params, dataset, self.storage, number)
        self.failures_before = failures(self.study)

    def run(self, on_trial: Callable[[FrozenTrial], None] = lambda _: None) -> None:
        """Run trials until there are `search.n_trials`, also those of others that die meanwhile.

        Calls `on_trial` with each one that has ended. Raises SearchError where the first ones all fail.
        """
        while True:
            require_hope(self.study, self.failures_before)
            if self._next(on_trial):
                continue
            if not in_state(self.study, TrialState.RUNNING):
                return
            time.sleep(POLL_SECONDS)

    def _next(self, on_trial: Callable[[FrozenTrial], None]) -> bool:
        """Run one trial, if the study has room for it or one is waiting."""
        with ExitStack() as turn:
            turn.enter_context(alone(self.storage))  # else two processes could both start the last trial
            optuna.storages.fail_stale_trials(self.study)  # where the storage has heartbeats: queues the dead again
            full = len(counted(self.study.get_trials(deepcopy=False))) >= self.params.search.n_trials
            if full and not in_state(self.study, TrialState.WAITING):
                return False

            def objective(trial: Trial) -> float | tuple[float, float]:
                turn.close()  # the trial is taken: the next process may count
                return self._run(trial)

            callback = [lambda _, trial: on_trial(trial)]
            self.study.optimize(objective, n_trials=1, catch=(Exception,), callbacks=callback)
        return True

    def _run(self, trial: Trial) -> float | tuple[float, float]:
        """Train a trial; what it came to is kept with it, and as a run in MLflow."""
        trial.set_user_attr("worker", self.name)
        try:
            return self._train(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split())[:500])
            raise

    def _train(self, trial: Trial) -> float | tuple[float, float]:
        values = suggest(trial, self.params)
        params = with_values(self.params, values)
        # Two objectives can't be pruned; params.yaml's values mustn't, for all others are compared with them.
        may_prune = self.params.search.objective == "elbo" and values != current_values(self.params)
        hardware = resolve(params.train)
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()  # the next trial shouldn't pay for one that ran out of memory
        state = "KILLED"
        history: list[Record] = []
        with tracking.trial_run(trial.number, self.study.user_attrs.get(MLFLOW_RUN), params, hardware) as run:
            started = time.perf_counter()
            try:
                trial.set_user_attr(MLFLOW_RUN, run and run.id)
                fitted = self._fit(trial, params, hardware, history, may_prune, run)
                state = "COMPLETE"
            except optuna.TrialPruned:
                state = "PRUNED"
            except Exception:
                state = "FAILED"
                raise
            finally:
                trial.set_user_attr("curve", [record["val/neg_elbo"] for record in history])
                trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))
                if run:
                    run.log_tags({"state": state})
            if state == "COMPLETE":
                return self._values(trial, fitted, run)
        raise optuna.TrialPruned

    def _fit(
        self, trial: Trial, params: Params, hardware: Hardware, history: list[Record], may_prune: bool, run: Run | None
    ) -> Fitted:
        def on_epoch(record: Record) -> None:
            history.append(record)
            epoch = int(record["epoch"])
            if run:
                run.log_metrics({name: value for name, value in record.items() if "/" in name}, step=epoch)
            if params.search.objective == "elbo":
                trial.report(record["val/neg_elbo"], epoch)
                if may_prune and epoch < params.train.epochs and trial.should_prune():
                    raise optuna.TrialPruned

        model = VAE.from_params(params.model, params.seed)
        model.initialize_from_data(self.train.images)
        return fit(
            model,
            self.train,
            self.validation,
            params.train,
            hardware,
            binarization=params.data.binarization,
            seed=params.seed,
            on_epoch=on_epoch,
        )

    def _values(self, trial: Trial, fitted: Fitted, run: Run | None) -> float | tuple[float, float]:
        """What is minimised: the best epoch's figures at β = 1, whatever β it was trained with."""
        reconstruction, kl = fitted.best["val/reconstruction"], fitted.best["val/kl"]
        trial.set_user_attr("best_epoch", fitted.best_epoch)
        trial.set_user_attr("reconstruction", reconstruction)
        trial.set_user_attr("kl", kl)
        if run:
            figures = {"reconstruction": reconstruction, "kl": kl, "neg_elbo": reconstruction + kl}
            run.log_metrics(figures, prefix="summary/val/")
        if self.params.search.objective == "rate_distortion":
            return reconstruction, kl
        return reconstruction + kl


def failures(study: optuna.Study) -> int:
    """How many trials failed."""
    return sum(trial.state is TrialState.FAIL for trial in finished(study.get_trials(deepcopy=False)))


def require_hope(study: optuna.Study, failures_before: int) -> None:
    """Raise SearchError where no trial has ever succeeded, and three have failed since there were `failures_before`."""
    ended = finished(study.get_trials(deepcopy=False))
    failed = [trial for trial in ended if trial.state is TrialState.FAIL]
    if len(failed) < len(ended) or len(failed) - failures_before < HOPELESS:
        return
    reasons = "; ".join(f"trial {trial.number}: {reason(trial)}" for trial in failed[-HOPELESS:])
    raise SearchError(f"the first {len(failed)} trials all failed, so the search stops here: {reasons}")
