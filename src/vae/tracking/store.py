"""The MLflow store: where it is, connecting to it, and artifacts that were moved with the project."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import mlflow
import requests
from alembic.util import CommandError
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from vae.errors import TrackingError, hide_passwords, one_line
from vae.files import project_root

EXPERIMENT = "vae-mnist"
SEARCH_EXPERIMENT = "vae-mnist-search"
ANSWER_SECONDS = 5
LOCK_SECONDS = 60  # creating the tables takes seconds, also for the processes that wait their turn
BUSY_SECONDS = 20  # as long as MLflow waits for a locked database
LOCATIONS = [("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")]
LOCATIONS += [("model_versions", "storage_location"), ("model_versions", "source")]

# What MLflow raises if its store is in trouble: its own errors, and those of the libraries below it.
MLFLOW_ERRORS = (MlflowException, SQLAlchemyError, sqlite3.Error, CommandError, ImportError, OSError)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or else that of the SQLite database in the project's `mlruns/`."""
    # SQLAlchemy decodes the path. MLflow does not: it creates an encoded folder, unless the URI names the driver.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite+pysqlite:///{quote(str(_own_database()))}"


def shown_store() -> str:
    """The store, as it may be shown to everyone: the path of an SQLite database, or the URI without its password."""
    return str(database() or hide_passwords(tracking_uri()))


def store_id() -> str:
    """Identifies the store whatever its password is, and the project's own one wherever the project is."""
    return "mlruns" if database() == _own_database() else shown_store().replace("***@", "").rstrip("/")


def ui_link(experiment: str, run_id: str = "") -> str:
    """The page of an experiment's runs, or of one of them, by their IDs: on the server, or on that of `make ui`."""
    own = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', 5000)}"
    root = store_id() if tracking_uri().startswith("http") else own
    # Without the workflow's type, MLflow may show a page for language models.
    return f"{root}/#/experiments/{experiment}/runs" + (f"/{run_id}" if run_id else "?workflowType=machine_learning")


def _own_database() -> Path:
    return project_root() / "mlruns" / "mlflow.db"


def database() -> Path | None:
    """The file of an SQLite database."""
    uri = tracking_uri()
    is_sqlite = uri.startswith("sqlite") and ":///" in uri
    return Path(make_url(uri).database or "").absolute() if is_sqlite else None


def connect(experiment: str = EXPERIMENT) -> None:
    """Select the store and the experiment in MLflow, and create what does not exist.

    Raises TrackingError if the store cannot be used: within ten seconds if it does not answer, within twenty if another
    process locks the SQLite database.
    """
    try:
        _require_answer(tracking_uri())
        mlflow.set_tracking_uri(tracking_uri())
        experiment_id(experiment)
        mlflow.set_experiment(experiment)
    except MLFLOW_ERRORS as error:
        raise TrackingError(f"the MLflow store {shown_store()} can't be used: {_reason(error)}") from None


def _require_answer(uri: str) -> None:
    """Raise an error soon if the server does not answer, where MLflow would try for minutes."""
    if uri.startswith("http"):
        url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name"
        requests.get(url, {"experiment_name": EXPERIMENT}, timeout=ANSWER_SECONDS, stream=True).close()  # any answer
    elif uri.startswith(("postgresql", "mysql")):
        create_engine(uri, connect_args={"connect_timeout": ANSWER_SECONDS}).connect().close()


def _reason(error: Exception) -> str:
    reason = one_line(error)
    if isinstance(error, requests.RequestException):
        return f"it does not answer ({type(error).__name__}): start it, or unset MLFLOW_TRACKING_URI to use mlruns/"
    if "error code 401" in reason:
        return (
            "it wants another user name and password: write them to ~/.mlflow/credentials (docs/team.md), "
            "or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if "out-of-date database schema" in reason or "Can't locate revision" in reason:
        return (
            "it was written by another version of MLflow. If by an older one, copy it, then "
            f"`mlflow db upgrade {hide_passwords(tracking_uri())}`; if by a newer one, install that version"
        )
    return reason


def experiment_id(name: str) -> str:
    """The ID of an experiment. If it does not exist, it is created, and so is its SQLite database."""
    if tracking_uri().startswith("http"):
        return _find_or_create(name)
    file = database() or _own_database()  # of another kind of database, the project keeps the artifacts
    file.parent.mkdir(parents=True, exist_ok=True)
    # Processes that create the same database at once destroy it, whatever projects they belong to.
    with FileLock(file.parent / f".{file.name}.lock", timeout=LOCK_SECONDS):
        artifacts = (file.parent / "artifacts").as_uri()
        if database() and not file.exists():
            SqlAlchemyStore(tracking_uri(), artifacts)  # MLflow's own choice, a path, may hold a quote: not valid SQL
        found = _find_or_create(name, artifacts)
        if database() == _own_database():
            _move_artifacts(file, artifacts)
        return found


def _find_or_create(name: str, artifacts: str | None = None) -> str:
    if experiment := mlflow.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    # The tag makes the UI show training runs first.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(mlflow.create_experiment(name, artifacts, kind))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or not (found := mlflow.get_experiment_by_name(name)):
            raise
        return str(found.experiment_id)  # another machine has created it on the server meanwhile


def _move_artifacts(file: Path, here: str) -> None:
    """Correct MLflow's absolute paths after the project's folder was moved or copied."""
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection, connection:
        found = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlruns/artifacts'"
        for old in {location for (location,) in connection.execute(found)} - {here}:
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = :here || substr({column}, :length + 1) "
                    f"WHERE substr({column}, 1, :length) = :old",
                    {"here": here, "old": old, "length": len(old)},
                )
