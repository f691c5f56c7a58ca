"""What is searched, and where it is kept: the space, the storage, and which trials count."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import column, make_url, select, table
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from vae.config import Params, Range, searched_section
from vae.errors import SearchError
from vae.tracking import store as tracking
from vae.tracking.run import tolerant

FOLDER = Path("search")
JOURNAL = FOLDER / "study.journal"
HEARTBEAT_SECONDS = 5
STALE_SECONDS = 20  # without a heartbeat, after which a trial in a database counts as dead
RETRIES = 3  # of a trial whose worker died, before it counts as failed
CONNECT_SECONDS = 5
MLFLOW_RUN = "mlflow_run"  # the attribute of a study, and of each of its trials, that names its run

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
# Values of params.yaml outside of the space are meant to be tried; −ELBO is meant to be low.
warnings.filterwarnings("ignore", category=UserWarning, module=r"optuna\.")

# The space


def distributions(params: Params) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each searched parameter. The current value joins a list of choices."""
    return {name: _distribution(domain, _current(params, name)) for name, domain in params.search.space.items()}


def _distribution(domain: Range | tuple[Any, ...], current: Any) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution(list(dict.fromkeys(_encode(value) for value in (*domain, current))))
    if isinstance(domain.low, int) and isinstance(domain.high, int):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def current_values(params: Params) -> dict[str, Any]:
    """What params.yaml says of the searched parameters."""
    return {name: _encode(_current(params, name)) for name in params.search.space}


def _current(params: Params, name: str) -> Any:
    return getattr(getattr(params, searched_section(name)), name)


def suggest(trial: Trial, params: Params) -> dict[str, Any]:
    """The trial's values of the searched parameters."""
    return {name: _suggest(trial, name, domain) for name, domain in distributions(params).items()}


def _suggest(trial: Trial, name: str, domain: BaseDistribution) -> Any:
    match domain:
        case IntDistribution():
            return trial.suggest_int(name, domain.low, domain.high, log=domain.log)
        case FloatDistribution():
            return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
        case CategoricalDistribution():
            return trial.suggest_categorical(name, domain.choices)
    raise TypeError(domain)


def with_values(params: Params, values: Mapping[str, Any]) -> Params:
    """`params` with a trial's values, to be trained for `search.epochs`."""
    named = {f"{searched_section(name)}.{name}": _decode(value) for name, value in values.items()}
    # Compiling pays in a long training, not in a short trial.
    compiled = {"train.compile": False} if params.train.compile == "auto" else {}
    return params.replaced(named | {"train.epochs": params.search.epochs} | compiled)


def _encode(value: Any) -> Any:
    """Lists of layer widths as text: Optuna stores only scalars."""
    return json.dumps(value) if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


# The study

# What doesn't change what a trial's figures mean. Everything else names the study, so that only comparable trials
# share one; the searched parameters are left out too, since each trial brings its own.
NOT_COMPARED = {
    *("data.source", "data.mirrors", "train.epochs", "train.device", "train.precision", "train.compile"),
    *("search.n_trials", "search.workers", "search.pruner"),
}


def study_name(params: Params, dataset: Mapping[str, Any]) -> str:
    """The name under which comparable trials are kept: `vae-MNIST-1a2b3c4d`."""
    searched = {f"{searched_section(name)}.{name}" for name in params.search.space}
    defaults = Params().flat()  # left out, so that a parameter that comes with a new version changes no name
    compared = {
        name: value
        for name, value in params.flat().items()
        if name not in NOT_COMPARED | searched
        and value != defaults.get(name)
        and not name.startswith(("evaluate.", "render.", "search.space."))
    }
    space = {name: repr(domain) for name, domain in distributions(params).items()}
    facts = json.dumps([compared, space, dataset["sha256"]], sort_keys=True)
    return f"vae-{dataset['name']}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def open_study(params: Params, dataset: Mapping[str, Any], storage: BaseStorage, worker: int = 0) -> optuna.Study:
    """The study of these parameters, created where there is none, with params.yaml's values as its first trial."""
    name = study_name(params, dataset)
    names = metric_names(params)
    with alone(storage):
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(names))
            study.set_metric_names(names)
        if MLFLOW_RUN not in study.user_attrs:
            with tolerant():
                study.set_user_attr(MLFLOW_RUN, tracking.new_search(params))
        trials = study.get_trials(deepcopy=False)
        if len(counted(trials)) < params.search.n_trials:
            study.enqueue_trial(current_values(params), skip_if_exists=True)
    study.pruner = _pruner(params)
    # One seed for all workers, or for a search that goes on, would suggest the same values again.
    seed = np.random.SeedSequence([params.seed, worker, len(trials)]).generate_state(1)[0]
    study.sampler = TPESampler(seed=int(seed))
    return study


def metric_names(params: Params) -> list[str]:
    """What is minimised, in nats per validation image."""
    return ["distortion", "rate"] if params.search.objective == "rate_distortion" else ["−ELBO"]


def _pruner(params: Params) -> BasePruner:
    epochs = params.search.epochs
    match params.search.pruner:
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=_settled(epochs))
        case "hyperband":
            return HyperbandPruner(min_resource=_settled(epochs), max_resource=epochs)
        case "none":
            return NopPruner()


def _settled(epochs: int) -> int:
    """The epoch from which a trial is compared with others: seven tenths of its training.

    Until its schedule lowers it, a large learning rate looks worse than it ends. Under one_cycle the trials' order
    in the middle of their training says little of that at its end (`docs/search.md`).
    """
    return max(1, epochs * 7 // 10)


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """All trials but those that died and were queued again under another number."""
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [trial for trial in trials if trial.number not in again]


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The counted trials that have come to an end: complete, pruned or failed."""
    return [trial for trial in counted(trials) if trial.state.is_finished()]


def reason(trial: FrozenTrial) -> str:
    """Why a trial failed."""
    return str(trial.user_attrs.get("reason", "its worker died"))


def in_state(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The study's trials in one of these states."""
    return study.get_trials(deepcopy=False, states=states)


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Deal with a trial whose worker died: end its run in MLflow, and queue it again, `RETRIES` times at most."""
    _end_run(study, trial)
    _queue_again(study, trial)


def _end_run(study: optuna.Study, trial: FrozenTrial) -> None:
    if parent := study.user_attrs.get(MLFLOW_RUN):
        with tolerant():
            tracking.end_dead_trial(trial.number, parent)


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    trial = deepcopy(trial)
    trial.user_attrs = {}  # else the new trial would be the dead worker's from the start
    if "fixed_params" in trial.system_attrs:  # params.yaml's values: set again from there, also outside of the space
        trial.params, trial.distributions = {}, {}
    RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)


def retry_dead(study: optuna.Study, alive: set[str], patience: float) -> int:
    """Retry the running trials of workers that aren't `alive`; returns how many. A database's heartbeats do it there.

    A trial younger than `patience` seconds may not have got its worker's name yet. A search that is killed between
    these steps leaves nothing that the next one wouldn't find and finish.
    """
    if storage_url():
        return 0
    for trial in in_state(study, TrialState.RUNNING):
        if _is_dead(trial, alive, patience):
            _end_run(study, trial)
            study.tell(trial.number, state=TrialState.FAIL)
    lost = [trial for trial in finished(study.get_trials(deepcopy=False)) if _is_lost(trial)]
    for trial in lost:
        _queue_again(study, trial)
    return len(lost)


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether its worker died, and it may be queued again: one that failed by itself has a reason."""
    retries = len(trial.system_attrs.get("retry_history", []))
    return trial.state is TrialState.FAIL and "reason" not in trial.user_attrs and retries < RETRIES


def _is_dead(trial: FrozenTrial, alive: set[str], patience: float) -> bool:
    owner = trial.user_attrs.get("worker")
    if owner is None and trial.datetime_start:
        return time.time() - trial.datetime_start.timestamp() >= patience
    return owner not in alive


# The storage


def storage_url() -> str:
    """OPTUNA_STORAGE, a database that several machines share; empty where the journal is meant."""
    return os.environ.get("OPTUNA_STORAGE", "")


def open_storage() -> BaseStorage:
    """The database that OPTUNA_STORAGE names, or else the journal.

    Raises SearchError where the database can't be reached or the journal is damaged.
    """
    FOLDER.mkdir(exist_ok=True)
    return _database(storage_url()) if storage_url() else journal()


def journal(path: Path = JOURNAL) -> JournalStorage:
    """The journal as a storage. Raises SearchError where it is damaged."""
    try:
        _cut_torn_record(path)
        # The system's file lock: unlike Optuna's lock files, it ends with its process, however that ends.
        lock: Any = FileLock(path.with_suffix(".lock"), poll_interval=0.005)
        return JournalStorage(JournalFileBackend(str(path), lock))
    except OSError as error:
        raise SearchError(f"{path} can't be used: {error.strerror}") from None
    except Exception as error:  # whatever replaying a damaged record comes to
        raise SearchError(
            f"{path} is damaged ({type(error).__name__}: {error}): restore it with `dvc checkout -f {path}`, or move "
            "it away to start anew"
        ) from None


def _cut_torn_record(path: Path) -> None:
    """Drop an unfinished last line, the mark of a power loss: the next record would be glued to it."""
    if not path.exists():
        return
    with FileLock(path.with_suffix(".lock")), path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _database(url: str) -> RDBStorage:
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        options = {} if url.startswith("sqlite") else {"connect_args": {"connect_timeout": CONNECT_SECONDS}}
    except ArgumentError:
        raise SearchError(
            f"OPTUNA_STORAGE is {url!r}, allowed is a URL such as postgresql://user:password@host/database"
        ) from None
    for attempt in range(5):
        try:
            return RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=STALE_SECONDS,
                heartbeat_stale_trial_callback=retry,
            )
        except (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
            # Two processes that create the tables at once get in each other's way: one has to look again.
            if attempt < 4 and isinstance(cause, DBAPIError) and "exist" in str(cause):
                time.sleep(0.5)
                continue
            if isinstance(error, ImportError):
                error = ImportError(f"{error.__cause__ or error} (`pip install 'vae-mnist-pipeline[databases]'`)")
            raise SearchError(f"OPTUNA_STORAGE {shown} can't be used: {' '.join(str(error).split())[:300]}") from None
    raise AssertionError


@contextmanager
def alone(storage: BaseStorage) -> Iterator[None]:
    """Lets in one process at a time, on whatever machine: counting the trials and taking one go together."""
    with FileLock(FOLDER / ".turn.lock"):
        if not isinstance(storage, RDBStorage):
            yield
            return
        with storage.engine.begin() as connection:  # one row of Optuna's that nothing else locks
            connection.execute(select(column("version_info_id")).select_from(table("version_info")).with_for_update())
            yield
