"""One process's share of a search: it takes trials until the study is complete, and trains each with `fit()`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from vae.config import Params
from vae.data.datasets import load, split_validation
from vae.device import Hardware, resolve
from vae.errors import SearchError
from vae.search.group import train_here, train_in_processes
from vae.search.space import current_values, distributions, with_values
from vae.search.storage import DATABASE_ERRORS, exclusive_lock, open_storage
from vae.search.study import (
    MLFLOW_RUN,
    DeadTrials,
    check_failure_limit,
    counted,
    finished,
    hand_back,
    heartbeat,
    in_state,
    open_study,
)
from vae.tracking import Run, trial_run
from vae.training.loop import Record, criterion

POLL_SECONDS = 1.0

Values = float | tuple[float, float]


class Worker:
    """Holds what all trials of a process share: the study, the images, the device."""

    def __init__(self, params: Params, dataset: Mapping[str, Any], folder: Path, name: str, number: int) -> None:
        self.params, self.dataset, self.folder, self.name = params, dataset, folder, name
        self.parts = split_validation(load(folder, "train"), params.data.validation_size)
        self.storage = open_storage()
        self.study = open_study(params, dataset, self.storage, number)
        self.earlier = {trial.number for trial in finished(self.study)}
        self.dead_trials = DeadTrials()

    def run(self, on_trial: Callable[[FrozenTrial], None] = lambda _: None) -> None:
        """Run trials until there are `search.n_trials`, including those of workers that die meanwhile.

        Calls `on_trial` with each trial that has ended. Raises SearchError when trial after trial fails.
        """
        while True:
            try:
                check_failure_limit(self.study, self.earlier)
                if trial := self._take():
                    self._run(trial)
                    on_trial(self.study.get_trials(deepcopy=False)[trial.number])
                elif not in_state(self.study, TrialState.RUNNING):
                    return
                else:
                    time.sleep(POLL_SECONDS)
            except UpdateFinishedTrialError:
                pass  # this process was stopped for so long that another one runs the trial again
            except DATABASE_ERRORS:  # the connection was cut; a trial that was running is queued again
                self.study.get_trials(deepcopy=False)  # reconnects, or raises

    def _take(self) -> Trial | None:
        """Start a trial if the study is short of one or one is waiting."""
        with exclusive_lock(self.storage):  # otherwise two processes could both start the last trial
            self.dead_trials.requeue(self.study)
            full = len(counted(self.study.get_trials(deepcopy=False))) >= self.params.search.n_trials
            if full and not in_state(self.study, TrialState.WAITING):
                return None
            trial = self.study.ask(distributions(self.params))
            trial.set_user_attr("worker", self.name)
            return trial

    def _run(self, trial: Trial) -> None:
        """Train a trial and store its outcome; a trial that is interrupted is queued again."""
        try:
            with heartbeat(trial):
                values = self._train(trial)
            self._tell(trial, TrialState.COMPLETE, values)
        except optuna.TrialPruned:
            self._tell(trial, TrialState.PRUNED)
        except (SearchError, UpdateFinishedTrialError, *DATABASE_ERRORS):
            raise
        except Exception as error:
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split())[:500])
            self._tell(trial, TrialState.FAIL)
        except BaseException:
            hand_back(self.study, self.storage, {self.name})
            raise

    def _tell(self, trial: Trial, state: TrialState, values: Values | None = None) -> None:
        self.study.tell(trial, values, state=state, skip_if_finished=True)

    def _train(self, trial: Trial) -> Values:
        """Train with the trial's values; its metrics are stored with it, and as a run in MLflow.

        Returns the metrics of the best epoch at β = 1, whatever β the model was trained with.
        """
        params = with_values(self.params, trial.params)
        hardware = resolve(params.train)
        if hardware.device.type == "cuda":
            torch.cuda.empty_cache()  # of an earlier trial that ran out of memory
        state, started = "KILLED", time.perf_counter()
        history: list[Record] = []
        parent = self.study.user_attrs.get(MLFLOW_RUN)
        with trial_run(trial.number, parent, params, hardware, self.dataset) as run:
            try:
                trial.set_user_attr(MLFLOW_RUN, run.id)
                self._fit(trial, params, hardware, history, run)
                state = "COMPLETE"
            except optuna.TrialPruned:
                state = "PRUNED"
            except Exception:
                state = "FAILED"
                raise
            finally:
                key = criterion(params.train)
                seconds = round(time.perf_counter() - started, 3)
                metrics = _store_metrics(trial, history, key, seconds)
                run.log_metrics(metrics, prefix="summary/val/")
                run.log_metrics({"seconds": seconds}, prefix="summary/")
                run.log_tags({"state": state})
        if state == "PRUNED":  # raised only here, since a pruned trial's run in MLflow has not failed
            raise optuna.TrialPruned
        if params.search.objective == "rate_distortion":
            return metrics["reconstruction"], metrics["kl"]
        return metrics[key.removeprefix("val/")]

    def _fit(self, trial: Trial, params: Params, hardware: Hardware, history: list[Record], run: Run) -> None:
        # The values of params.yaml are trained to the end: all others are compared with them.
        may_prune = trial.params != current_values(self.params)

        def on_epoch(record: Record) -> None:
            history.append(record)
            epoch = int(record["epoch"])
            run.log_metrics({name: value for name, value in record.items() if "/" in name}, step=epoch)
            if params.search.objective == "elbo":
                trial.report(record[criterion(params.train)], epoch)
                if may_prune and epoch < params.train.epochs and trial.should_prune():
                    raise optuna.TrialPruned

        if params.train.nproc > 1:
            train_in_processes(params, self.dataset, self.folder, on_epoch)
        else:
            train_here(params, hardware, self.dataset, self.parts, on_epoch)


def _store_metrics(trial: Trial, history: list[Record], key: str, seconds: float) -> Record:
    """Store with the trial `key` of every epoch, and the best epoch's validation metrics, which are returned."""
    trial.set_user_attr("curve", [record[key] for record in history])
    trial.set_user_attr("seconds", seconds)
    if not history:
        return {}
    best = min(history, key=lambda record: record[key])
    names = dict.fromkeys(("neg_elbo", "reconstruction", "kl", key.removeprefix("val/")))
    metrics = {name: best[f"val/{name}"] for name in names}
    for name, value in {**metrics, "best_epoch": int(best["epoch"])}.items():
        trial.set_user_attr(name, value)
    return metrics
