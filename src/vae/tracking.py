"""MLflow, and nothing but MLflow: where the store is, one run for all stages, what every run carries.

Metric files are written before anything is logged, and trouble in mid-run never ends a training: it is said once.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before MLflow is imported: a dead server is given up after seconds, not minutes; nothing is reported home.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

import mlflow
import requests
from alembic.util import CommandError
from filelock import FileLock
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from vae.config import ModelParams, Params
from vae.device import Hardware
from vae.errors import TrackingError

EXPERIMENT = "vae-mnist"
SEARCH_EXPERIMENT = "vae-mnist-search"
REACHABLE_SECONDS = 5.0
SYSTEM_METRICS_SECONDS = 5
# What MLflow raises when its store is in trouble: its own errors, and those of what it stands on.
TROUBLE = (MlflowException, requests.RequestException, SQLAlchemyError, CommandError, ImportError, OSError)
CODE = ["src", "pipeline", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"]


def project_root() -> Path:
    """The project's folder; under `dvc exp run --temp` that of the main repository, not of the temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite database in the project's `mlruns/`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlruns' / 'mlflow.db'}"


def connect(experiment: str = EXPERIMENT) -> None:
    """Point MLflow at the store and the experiment, creating what isn't there.

    Raises TrackingError, within ten seconds, where the store can't be reached.
    """
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
            mlflow.set_experiment(experiment)
    except TROUBLE as error:
        raise TrackingError(f"the MLflow store {uri} can't be used: {_one_line(error)}") from None


@contextmanager
def run(name: str, *, run_id: str | None = None) -> Iterator[str]:
    """Open the run `run_id`, or a new one called `name` where there is none such; yields its id.

    It ends as FINISHED, FAILED, or, after Ctrl-C or a termination, KILLED.
    """
    if run_id and not _exists(run_id):
        print(f"warning: run {run_id} is not in {tracking_uri()}: opening a new one", file=sys.stderr)
        run_id = None
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
    try:
        active = mlflow.start_run(run_id, run_name=None if run_id else name, log_system_metrics=True)
    except TROUBLE as error:
        raise TrackingError(f"no run can be opened in {tracking_uri()}: {_one_line(error)}") from None
    with _ending():
        yield active.info.run_id


@contextmanager
def _ending() -> Iterator[None]:
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        with tolerant():
            mlflow.end_run(status)


def new_search(params: Params) -> str:
    """Create the run that a search's trials belong to, for `run(…, run_id=…)` to open; returns its id."""
    with mlflow.start_run(run_name="search") as active:
        # How many trials, workers and how pruned may change when the search goes on; a run's params can't.
        changeable = ("search.n_trials", "search.workers", "search.pruner")
        mlflow.log_params({name: value for name, value in _loggable(params).items() if name not in changeable})
        mlflow.set_tags(_origin())
        return str(active.info.run_id)


@contextmanager
def trial_run(number: int, parent: str | None, params: Params, hardware: Hardware) -> Iterator[str | None]:
    """The run of a search's trial, below that of the search; yields its id, None where MLflow is in trouble.

    It ends as `run()` does. Trouble never ends the trial.
    """
    run_id = None
    with tolerant():
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run_id = mlflow.start_run(run_name=f"trial {number}", tags=tags | {"trial": str(number)}).info.run_id
        log_params(params, hardware)
    with _ending():
        yield run_id


def end_dead_trial(number: int, parent: str) -> None:
    """End the run of a search's trial whose process died. It is found by its tags: the process may have told no one."""
    query = f"tags.`mlflow.parentRunId` = '{parent}' and tags.trial = '{number}' and attributes.status = 'RUNNING'"
    client = mlflow.MlflowClient()
    for run in mlflow.search_runs(filter_string=query, output_format="list"):
        client.set_tag(run.info.run_id, "state", "KILLED")
        client.set_terminated(run.info.run_id, "KILLED")


def log_tags(tags: Mapping[str, Any]) -> None:
    """Set tags of the open run."""
    mlflow.set_tags(dict(tags))


@contextmanager
def resume(params: Params, hardware: Hardware, run_id: str | None) -> Iterator[str]:
    """The run that trained the model; where the store doesn't have it, a new one that carries the parameters too."""
    with run(run_name(params), run_id=run_id) as active:
        if active != run_id:
            log_params(params, hardware)
        yield active


def _exists(run_id: str) -> bool:
    try:
        return bool(mlflow.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


_warned = False


@contextmanager
def tolerant() -> Iterator[None]:
    """Trouble with MLflow becomes one warning: a training is worth more than its log.

    Ctrl-C and a termination wait for the end of the block: one that broke into a transaction left SQLite locked.
    """
    global _warned
    try:
        with _uninterrupted():
            yield
    except (*TROUBLE, TrackingError) as error:
        if not _warned:
            print(f"warning: not tracked in MLflow: {_one_line(error)}", file=sys.stderr)
        _warned = True
        # From here on a server that is gone costs a second an epoch, not twenty; once back, it is used again.
        os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its threads would say the same again and again


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no signal handler runs in another one
        yield
        return
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: held.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def log_params(params: Params, hardware: Hardware) -> None:
    """What params.yaml says of a training under dotted names, what `auto` came to, and the code's state as tags."""
    mlflow.log_params({name: value for name, value in _loggable(params).items() if not name.startswith("search.")})
    mlflow.set_tags({"device": str(hardware.device), "precision": hardware.precision, **_origin()})


def _loggable(params: Params) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.flat().items()}


def log_metrics(metrics: Mapping[str, Any], prefix: str = "", step: int | None = None) -> None:
    """The numbers among `metrics`, under `prefix`."""
    numbers = {f"{prefix}{key}": float(value) for key, value in metrics.items() if isinstance(value, int | float)}
    mlflow.log_metrics(numbers, step=step)


def log_dataset(record: Mapping[str, Any], folder: Path | str) -> None:
    """The data set as the run's input, and its name, source and checksum as tags."""
    checksum = record["sha256"]["train-images-idx3-ubyte"]
    with warnings.catch_warnings():  # MLflow registers its source of local files twice, and says so each time
        warnings.simplefilter("ignore", UserWarning)
        source = resolve_dataset_source(str(folder))
    mlflow.log_input(MetaDataset(source, name=record["name"], digest=checksum[:8]), context="training")  # type: ignore[abstract]
    mlflow.set_tags({"dataset": record["name"], "dataset.source": record["source"], "data.sha256": checksum})


def log_training(summary: Mapping[str, Any], model_sha256: str, artifacts: Sequence[Path]) -> None:
    """What a finished training adds to its run."""
    log_metrics(summary, prefix="summary/")
    mlflow.set_tag("model.sha256", model_sha256)
    for path in artifacts:
        log_artifact(path)


def log_search(summary: Mapping[str, Any], artifacts: Sequence[Path]) -> None:
    """What a search found, in its open run: numbers as metrics, all as tags, files as artifacts."""
    log_metrics(summary)
    log_tags(summary)
    for path in artifacts:
        log_artifact(path)


def log_artifact(path: Path, folder: str | None = None) -> None:
    """Add a file to the open run."""
    mlflow.log_artifact(str(path), folder)


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def serve_ui(port: int = 5000) -> None:
    """Become the MLflow server of the store that the stages write to, for this machine only."""
    uri = tracking_uri()
    if uri.startswith("http"):
        sys.exit(f"MLFLOW_TRACKING_URI is {uri}: open that")
    connect()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *options])


if __name__ == "__main__":
    try:
        serve_ui()
    except TrackingError as error:
        sys.exit(f"error: {error}")
