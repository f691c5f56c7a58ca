"""A run in MLflow that loses nothing of what it is told, whatever becomes of MLflow meanwhile.

What a call can't send is kept, in order, in memory and in a folder of the run's, and goes first at the next call.
What is left when the process ends is sent by the next one (`send_unsent`). Times are those of the first attempt, so
that MLflow knows a figure which it is sent twice.
"""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from vae.errors import TrackingError
from vae.files import write_json

__all__ = ["TROUBLE", "MlflowException", "Run", "mlflow", "one_line", "send_unsent", "tolerant", "warn_once"]

# What MLflow raises when its store is in trouble: its own errors, and those of what it stands on.
TROUBLE = (MlflowException, requests.RequestException, SQLAlchemyError, CommandError, ImportError, OSError)
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the run is gone, or deleted
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints a traceback of what it raises
PATIENCE = 10  # after an attempt in vain, none for ten times as long as that took: MLflow's trouble costs a tenth
ENTRIES = "entries.json"

Entry = dict[str, Any]


class Run:
    """An open run. `folder` is where it keeps what it can't send; `params` are those that it has already."""

    def __init__(self, run_id: str, folder: Path, params: Mapping[str, str] | None = None) -> None:
        self.id = run_id
        self._folder = folder
        self._params = set(params or ())
        self._unsent = _kept_in(folder)
        self._not_before = 0.0

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters. A run's can't change: those that it has stay."""
        self._log({"params": {name: str(value) for name, value in params.items() if name not in self._params}})

    def log_metrics(self, metrics: Mapping[str, Any], prefix: str = "", step: int = 0) -> None:
        """Add the numbers among `metrics`, under `prefix`."""
        numbers = {f"{prefix}{key}": float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        self._log({"metrics": numbers, "step": step})

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._log({"tags": {key: str(value) for key, value in tags.items()}})

    def log_dataset(self, name: str, digest: str, folder: Path | str) -> None:
        """Add the data set that it is trained on, and that lies in `folder`."""
        self._log({"dataset": [name, digest, "local", json.dumps({"uri": str(folder)})]})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Add a file."""
        self._log({"artifact": str(path.absolute()), "folder": folder})

    def end(self, status: str) -> None:
        """End it as FINISHED, FAILED or KILLED, with a last attempt to send what is left."""
        try:
            with uninterrupted():
                mlflow.end_run(status)
        except TROUBLE as error:
            warn_once(error)
            self._unsent.append({"status": status, "timestamp": _now()})
        if self._unsent:
            self.send()

    def send(self) -> bool:
        """Send what waits, in order; false where MLflow refuses some of it for good."""
        self._unsent.sort(key=lambda entry: "artifact" in entry)  # files lie elsewhere, and hold up nothing else
        started = time.monotonic()
        refused = False
        try:
            with uninterrupted():
                while self._unsent:
                    _send(self.id, self._unsent[0])
                    del self._unsent[0]
        except TROUBLE as error:
            warn_once(error)
            refused = isinstance(error, MlflowException) and error.error_code in REFUSALS
            self._not_before = time.monotonic() + PATIENCE * (time.monotonic() - started)
        self._keep()
        return not refused

    def forget(self) -> None:
        """Delete what it has kept."""
        self._unsent = []
        self._keep()

    def _log(self, entry: Entry) -> None:
        self._unsent.append({**entry, "timestamp": _now()})
        if time.monotonic() >= self._not_before:
            self.send()
        else:
            self._keep()

    def _keep(self) -> None:
        """Make the folder hold what is unsent, with copies of files, which the next training may write anew."""
        if not self._unsent:
            if self._folder.exists():
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        try:
            for entry in self._unsent:
                if "artifact" in entry and self._folder not in (path := Path(entry["artifact"])).parents:
                    copy = self._folder / "files" / (entry["folder"] or "") / path.name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    entry["artifact"] = str(shutil.copy(path, copy))
            write_json(self._folder / ENTRIES, self._unsent)
        except OSError as error:  # no place for it: it stays in memory
            warn_once(error)


def send_unsent(folder: Path) -> None:
    """Send what runs of earlier processes have kept in folders of their own in `folder`.

    What MLflow refuses, since the run was deleted, is dropped with a warning; what it can't take now is kept.
    """
    if not folder.is_dir():
        return
    try:
        with FileLock(folder / ".lock", blocking=False):
            for path in sorted(folder.glob(f"*/{ENTRIES}")):
                run = Run(path.parent.name, path.parent)
                if not run.send():
                    print(f"warning: run {run.id} takes nothing more: what was kept for it is dropped", file=sys.stderr)
                    run.forget()
    except Timeout:  # another process is at it
        pass


def _kept_in(folder: Path) -> list[Entry]:
    try:
        entries: list[Entry] = json.loads((folder / ENTRIES).read_text())
        return entries
    except (OSError, ValueError):
        return []


def _send(run_id: str, entry: Entry) -> None:
    client = MlflowClient()
    log_batch = partial(client.log_batch, run_id, synchronous=True)
    match entry:
        case {"metrics": metrics, "step": step, "timestamp": timestamp}:
            log_batch(metrics=[Metric(key, value, timestamp, step) for key, value in metrics.items()])
        case {"params": params}:
            log_batch(params=[Param(key, value) for key, value in params.items()])
        case {"tags": tags}:
            log_batch(tags=[RunTag(key, value) for key, value in tags.items()])
        case {"dataset": dataset}:
            context = [InputTag("mlflow.data.context", "training")]
            client.log_inputs(run_id, [DatasetInput(Dataset(*dataset), context)])
        case {"artifact": path, "folder": folder}:
            if Path(path).exists():  # else another process has sent it meanwhile
                client.log_artifact(run_id, path, folder)
        case {"status": status, "timestamp": timestamp}:
            client.set_terminated(run_id, status, timestamp)


def _now() -> int:
    return int(time.time() * 1000)


_warned = False


def warn_once(error: BaseException) -> None:
    """One warning a process; from then on MLflow has a second, not ten, to answer."""
    global _warned
    if not _warned:
        print(f"warning: not tracked in MLflow for now: {one_line(error)}", file=sys.stderr)
    _warned = True
    os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its threads would say the same again and again


@contextmanager
def tolerant() -> Iterator[None]:
    """Trouble with MLflow becomes a warning: a training is worth more than its log."""
    try:
        with uninterrupted():
            yield
    except (*TROUBLE, TrackingError) as error:
        warn_once(error)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and a termination wait for the end of the block: one that broke into a transaction left SQLite locked."""
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


def one_line(error: BaseException) -> str:
    """What an error says, on one line of some length; SQLAlchemy adds the whole of its statement."""
    return " ".join(str(error).split("[SQL:")[0].split())[:300]
