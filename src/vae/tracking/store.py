"""MLflow, and nothing but MLflow: where the store is, one run for all stages, what every run carries.

Metric files are written before anything is logged, and trouble in mid-run never ends a training (`vae.run`).
"""

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock

from vae.config import ModelParams, Params
from vae.device import Hardware
from vae.errors import TrackingError
from vae.files import project_root
from vae.tracking.run import TROUBLE, MlflowException, Run, mlflow, one_line, send_unsent, tolerant, warn_once

EXPERIMENT = "vae-mnist"
SEARCH_EXPERIMENT = "vae-mnist-search"
REACHABLE_SECONDS = 5.0
BUSY_SECONDS = 20.0  # as long as MLflow itself waits for a locked database
SYSTEM_METRICS_SECONDS = 5
CODE = ["src", "pipeline", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"]


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite database in the project's `mlruns/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_store()


def _own_store() -> str:
    return f"sqlite:///{project_root() / 'mlruns' / 'mlflow.db'}"


def _unsent() -> Path:
    """The folder of what runs of this store couldn't send. Ours may move; the URI of another may hold a password."""
    uri = tracking_uri()
    store = "local" if uri == _own_store() else hashlib.sha256(uri.encode()).hexdigest()[:8]
    return project_root() / "mlruns" / "unsent" / store


def connect(experiment: str = EXPERIMENT) -> None:
    """Point MLflow at the store and the experiment, creating what isn't there; send what earlier processes couldn't.

    Raises TrackingError where the store can't be used: within ten seconds where a server is out of reach, twenty where
    another process locks the database.
    """
    _connect(experiment)
    send_unsent(_unsent())


def _connect(experiment: str) -> None:
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        try:  # any answer will do: only silence means that the server isn't there
            requests.get(uri, timeout=REACHABLE_SECONDS)
        except requests.RequestException as error:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI is {uri}, which doesn't answer ({type(error).__name__}): start it, or unset the "
                "variable to track in mlruns/"
            ) from None
    try:
        mlflow.set_tracking_uri(uri)
        if uri.startswith("http"):
            mlflow.set_experiment(experiment)
            return
        folder = project_root() / "mlruns"
        folder.mkdir(exist_ok=True)
        # Two processes that create the database at once destroy it.
        with FileLock(folder / ".lock"):
            if mlflow.get_experiment_by_name(experiment) is None:
                mlflow.create_experiment(
                    experiment,
                    artifact_location=(folder / "artifacts").as_uri(),
                    # Tells the UI to show training runs first.
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            _move_artifacts(folder)
            mlflow.set_experiment(experiment)
    except (*TROUBLE, sqlite3.Error) as error:
        reason = one_line(error)
        if "out-of-date database schema" in reason or "Can't locate revision" in reason:
            reason = (
                f"another version of MLflow made it. If an older one, copy it, then `mlflow db upgrade {uri}`; "
                "if a newer one, install that"
            )
        raise TrackingError(f"the MLflow store {uri} can't be used: {reason}") from None


def _move_artifacts(folder: Path) -> None:
    """Make the database in `folder` find the artifacts beside it where both were moved: MLflow has absolute paths."""
    database = folder / "mlflow.db"
    if not database.exists():  # the store is another one
        return
    here = (folder / "artifacts").as_uri()
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection, connection:
        found = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlruns/artifacts'"
        for old in {location for (location,) in connection.execute(found)} - {here}:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                connection.execute(
                    f"UPDATE {table} SET {column} = :here || substr({column}, :length + 1) "
                    f"WHERE substr({column}, 1, :length) = :old",
                    {"here": here, "old": old, "length": len(old)},
                )


@contextmanager
def run(name: str, *, run_id: str | None = None) -> Iterator[Run]:
    """Open the run `run_id`, or a new one called `name` where there is none such.

    It ends as FINISHED, FAILED, or, after Ctrl-C or a termination, KILLED.
    """
    opened = _open(name, run_id)
    with _ending(opened):
        yield opened


def _open(name: str, run_id: str | None) -> Run:
    if run_id and not _exists(run_id):
        print(f"warning: run {run_id} is not in {tracking_uri()}: opening a new one", file=sys.stderr)
        run_id = None
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
    try:
        active = mlflow.start_run(run_id, run_name=None if run_id else name, log_system_metrics=True)
    except TROUBLE as error:
        raise TrackingError(f"no run can be opened in {tracking_uri()}: {one_line(error)}") from None
    return Run(active.info.run_id, _unsent() / active.info.run_id, active.data.params)


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)


def epochs_logged(run: Run) -> int:
    """The last epoch in a training's run, 0 where there is none. Raises TrackingError."""
    try:
        curve = mlflow.MlflowClient().get_metric_history(run.id, "val/neg_elbo")
    except TROUBLE as error:
        raise TrackingError(f"run {run.id} can't be read: {one_line(error)}") from None
    return max((point.step for point in curve), default=0)


def new_search(params: Params) -> str:
    """Create the run that a search's trials belong to, for `run(…, run_id=…)` to open; returns its id."""
    with mlflow.start_run(run_name="search") as active:
        # How many trials, workers and how pruned may change when the search goes on; a run's params can't.
        changeable = ("search.n_trials", "search.workers", "search.pruner")
        mlflow.log_params({name: value for name, value in _loggable(params).items() if name not in changeable})
        mlflow.set_tags(_origin())
        return str(active.info.run_id)


@contextmanager
def trial_run(number: int, parent: str | None, params: Params, hardware: Hardware) -> Iterator[Run | None]:
    """The run of a search's trial, below that of the search; None where MLflow is in trouble.

    It ends as `run()` does. Trouble never ends the trial.
    """
    tags = {"trial": str(number)} | ({"mlflow.parentRunId": parent} if parent else {})
    run_id = None
    with tolerant():
        run_id = mlflow.start_run(run_name=f"trial {number}", tags=tags).info.run_id
    if run_id is None:
        yield None
        return
    run = Run(run_id, _unsent() / run_id)
    with _ending(run):
        log_params(run, params, hardware)
        yield run


def end_dead_trial(number: int, parent: str) -> None:
    """End the run of a search's trial whose process died, also one that ended just before the trial could.

    It is found by its tags: the process may have told no one.
    """
    query = f"tags.`mlflow.parentRunId` = '{parent}' and tags.trial = '{number}'"
    client = mlflow.MlflowClient()
    for run in mlflow.search_runs(filter_string=query, output_format="list"):
        client.set_tag(run.info.run_id, "state", "KILLED")
        client.set_terminated(run.info.run_id, "KILLED")


@contextmanager
def resume(params: Params, hardware: Hardware, run_id: str | None) -> Iterator[Run]:
    """The run that trained the model; where the store doesn't have it, a new one that carries the parameters too.

    Where the store is in trouble, what it is told waits until the store is there again.
    """
    try:
        opened = _open(run_name(params), run_id)
    except TrackingError as error:
        if not run_id:
            raise
        warn_once(error)
        opened = Run(run_id, _unsent() / run_id)
    with _ending(opened):
        if opened.id != run_id:
            log_params(opened, params, hardware)
        yield opened


def _exists(run_id: str) -> bool:
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def log_params(run: Run, params: Params, hardware: Hardware) -> None:
    """What params.yaml says of a training under dotted names, what `auto` came to, and the code's state as tags."""
    run.log_params({name: value for name, value in _loggable(params).items() if not name.startswith("search.")})
    run.log_tags({"device": str(hardware.device), "precision": hardware.precision, **_origin()})


def _loggable(params: Params) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.flat().items()}


def log_dataset(run: Run, record: Mapping[str, Any], folder: Path | str) -> None:
    """The data set as the run's input, and its name, source and checksum as tags."""
    checksum = record["sha256"]["train-images-idx3-ubyte"]
    run.log_dataset(record["name"], checksum[:8], folder)
    run.log_tags({"dataset": record["name"], "dataset.source": record["source"], "data.sha256": checksum})


def log_training(run: Run, summary: Mapping[str, Any], model_sha256: str, artifacts: Sequence[Path]) -> None:
    """What a finished training adds to its run."""
    run.log_metrics(summary, prefix="summary/")
    run.log_tags({"model.sha256": model_sha256})
    for path in artifacts:
        run.log_artifact(path)


def log_search(run: Run, summary: Mapping[str, Any], artifacts: Sequence[Path]) -> None:
    """What a search found, in its run: numbers as metrics, all as tags, files as artifacts."""
    run.log_metrics(summary)
    run.log_tags(summary)
    for path in artifacts:
        run.log_artifact(path)


def _origin() -> dict[str, str]:
    """The code's commit and whether it was changed since; DVC's experiment, where it is one."""
    tags = {"dvc.experiment": os.environ.get("DVC_EXP_NAME", ""), "git.commit": _git("rev-parse", "HEAD")}
    if tags["git.commit"]:
        tags["mlflow.source.git.commit"] = tags["git.commit"]
        tags["git.dirty"] = str(bool(_git("status", "--porcelain", "--", *CODE))).lower()
    return {key: value for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_name(params: Params) -> str:
    """What differs between runs, in short: `mlp512x2-z32-b1-lr2e-3`."""
    return (
        f"{params.model.architecture}{_widths(params.model)}-z{params.model.latent_dim}-b{params.train.beta:g}"
        f"-lr{_scientific(params.train.learning_rate)}"
    )


def _widths(model: ModelParams) -> str:
    widths = model.hidden_dims
    return f"{widths[0]}x{len(widths)}" if len(set(widths)) == 1 else "-".join(map(str, widths))


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def serve_ui(port: int = 5000) -> None:
    """Become the MLflow server of the store that the stages write to, for this machine only."""
    uri = tracking_uri()
    if uri.startswith("http"):
        sys.exit(f"MLFLOW_TRACKING_URI is {uri}: open that")
    connect()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *options])
