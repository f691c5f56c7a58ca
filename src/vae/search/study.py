"""The study: which trials are comparable, which of them count, and how a dead worker's trial is run again."""

import itertools
import math
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from vae import tracking
from vae.config import CONTINUED, Params
from vae.errors import SearchError
from vae.files import TRAINING_CODE, fingerprint
from vae.search.space import current_values, distributions, dotted_names
from vae.search.storage import exclusive_lock

HEARTBEAT_SECONDS = 5
DEAD_SECONDS = 20  # without a heartbeat, after which a trial's worker counts as dead
RETRIES = 3  # of a trial whose worker died, before it counts as failed
FAILURE_LIMIT = 3  # failed trials in a row after which a search stops
UNSUITABLE = ("ConfigError", "DivergedError")  # failures that tell of a trial's values, not of the machine
MLFLOW_RUN = "mlflow_run"  # the attribute of a study, and of each of its trials, that names its run

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# Values of params.yaml outside of the space are tried on purpose; −ELBO is minimized on purpose.
warnings.filterwarnings("ignore", category=UserWarning, module=r"optuna\.")

# Parameters that don't change what a trial's metrics mean. All others are part of the study's name, so that only
# comparable trials share a study; the searched parameters are not, since each trial has its own values of them.
NOT_COMPARED = {
    *("data.source", "data.mirrors", "train.epochs", "train.device", "train.precision", "train.compile"),
    *("train.nproc", "train.timeout"),
    *CONTINUED,
}


def study_name(params: Params, dataset: Mapping[str, Any]) -> str:
    """The name of the study of comparable trials, `vae-MNIST-1a2b3c4d`: a fingerprint of params, images and code."""
    excluded = NOT_COMPARED | set(dotted_names(params).values())
    compared = {
        name: value
        for name, value in params.flat().items()
        if name not in excluded and not name.startswith(("evaluate.", "render.", "search.space."))
    }
    space = {name: repr(domain) for name, domain in distributions(params).items()}
    return f"vae-{dataset['name']}-{fingerprint([compared, space, dataset['sha256']], TRAINING_CODE)[:8]}"


def open_study(
    params: Params, dataset: Mapping[str, Any], storage: BaseStorage, worker: int = 0, parent: str = ""
) -> optuna.Study:
    """The study of these parameters, created if necessary, with the values of params.yaml as its first trial.

    `parent` is the run of the search that a study of finals belongs to.
    """
    name = study_name(params, dataset)
    names = metric_names(params)
    with exclusive_lock(storage):
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(names))
            study.set_metric_names(names)
        if MLFLOW_RUN not in study.user_attrs:
            with tracking.tolerant():
                study.set_user_attr(MLFLOW_RUN, tracking.new_search(params, dataset, parent))
        trials = study.get_trials(deepcopy=False)
        if len(counted(trials)) < params.search.n_trials:
            study.enqueue_trial(current_values(params), skip_if_exists=True)
    study.pruner = _pruner(params)
    # With one seed for all workers, or for a resumed search, the sampler would suggest the same values again.
    seed = np.random.SeedSequence([params.seed, worker, len(trials)]).generate_state(1)[0]
    study.sampler = TPESampler(seed=int(seed))
    return study


def metric_names(params: Params) -> list[str]:
    """What is minimized, in nats per validation image."""
    if params.search.objective == "rate_distortion":
        return ["distortion", "rate"]
    return ["importance-weighted bound" if params.train.objective == "iwae" else "−ELBO"]


def _pruner(params: Params) -> BasePruner:
    epochs = params.search.epochs
    match params.search.pruner:
        case "median":
            # Trials are compared after seven tenths of their training. Before, with a schedule such as one_cycle, a
            # large learning rate looks worse than it ends (docs/search.md).
            return MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs * 7 // 10))
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=epochs)
        case "none":
            return NopPruner()


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All trials but those that were queued again, under another number, after their worker died."""
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [trial for trial in trials if trial.number not in again]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The counted trials that are complete, pruned or failed."""
    return [trial for trial in counted(study.get_trials(deepcopy=False)) if trial.state.is_finished()]


def in_state(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The study's trials in one of these states."""
    return study.get_trials(deepcopy=False, states=states)


def score(trial: FrozenTrial) -> float:
    """The lowest value of the metric that trials are ranked by, in nats per validation image; NaN without an epoch.

    It is the metric that the training's best weights are chosen by: −ELBO at β = 1, or the negative importance-weighted
    bound with train.objective `iwae`.
    """
    return float(min(trial.user_attrs.get("curve") or [math.nan]))


def failure_reason(trial: FrozenTrial) -> str:
    """Why a trial failed."""
    return str(trial.user_attrs.get("reason", "its worker died"))


def check_failure_limit(study: optuna.Study, earlier: set[int]) -> None:
    """Raise SearchError if the last FAILURE_LIMIT trials that ended all failed, not counting those in `earlier`.

    Once a trial has succeeded, failures due to a trial's own values don't count: a part of the space may be unsuitable.
    """
    ended = sorted(finished(study), key=lambda trial: (trial.datetime_complete, trial.number))
    succeeded = any(trial.state is not TrialState.FAIL for trial in ended)
    recent = [trial for trial in ended if trial.number not in earlier]
    if succeeded:
        recent = [trial for trial in recent if not failure_reason(trial).startswith(UNSUITABLE)]
    failed = [trial for trial in recent[-FAILURE_LIMIT:] if "reason" in trial.user_attrs]
    if len(failed) == FAILURE_LIMIT:
        reasons = "; ".join(f"trial {trial.number}: {failure_reason(trial)}" for trial in failed)
        raise SearchError(
            f"the last {FAILURE_LIMIT} trials all failed, so the search stops; the same command resumes it. {reasons}"
        )


@contextmanager
def heartbeat(trial: Trial) -> Iterator[None]:
    """Increase the trial's attribute `heartbeat` every HEARTBEAT_SECONDS while the block runs."""
    stop = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            with suppress(Exception):  # the training's own reports meet the same error
                trial.set_user_attr("heartbeat", count)
            if stop.wait(HEARTBEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1)  # a database may be slow to answer


class DeadTrials:
    """Finds the running trials whose heartbeat stands still for DEAD_SECONDS, by the clock of this process."""

    def __init__(self) -> None:
        self._first_seen: dict[tuple[int, Any], float] = {}

    def requeue(self, study: optuna.Study) -> None:
        """Queue the trials of dead workers again. Needs the exclusive lock."""
        now = time.monotonic()
        for trial in in_state(study, TrialState.RUNNING):
            seen = self._first_seen.setdefault((trial.number, trial.user_attrs.get("heartbeat")), now)
            if now - seen >= DEAD_SECONDS:
                _release(study, trial.number)
        requeue_lost(study)


def hand_back(study: optuna.Study, storage: BaseStorage, workers: Collection[str]) -> None:
    """Queue the trials of these workers, which are ending, again."""
    with exclusive_lock(storage):
        for trial in in_state(study, TrialState.RUNNING):
            # A trial without a worker was being taken: since we have the lock, that worker has ended.
            if trial.user_attrs.get("worker") in {None, *workers}:
                _release(study, trial.number)
        requeue_lost(study)


def _release(study: optuna.Study, number: int) -> None:
    """Mark a running trial as lost (failed, without a reason), and end its run in MLflow."""
    if parent := study.user_attrs.get(MLFLOW_RUN):
        with tracking.tolerant():
            tracking.end_dead_trial(number, parent)
    with suppress(UpdateFinishedTrialError):  # it was finished meanwhile
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def requeue_lost(study: optuna.Study) -> None:
    """Queue lost trials again with their values, RETRIES times at most. Needs the exclusive lock."""
    for trial in map(deepcopy, finished(study)):
        if trial.state is not TrialState.FAIL or "reason" in trial.user_attrs:
            continue
        trial.user_attrs = {}
        if "fixed_params" in trial.system_attrs:  # values of params.yaml, possibly outside of the space: set from there
            trial.params, trial.distributions = {}, {}
        RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)
