"""A project with an MLflow store, and a second process that locks it."""

import shutil
import sqlite3
from contextlib import closing

import pytest
import torch
from sqlalchemy import event

import vae.tracking.run as run_module
from vae import tracking
from vae.device import Hardware

CPU = Hardware(torch.device("cpu"), "fp32", False)
DATASET = {"name": "MNIST", "source": "bundled", "sha256": {"train-images-idx3-ubyte": "ab12" * 16}}


@pytest.fixture(autouse=True)
def no_attempts_yet(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(run_module._Attempts, "reported", set())
    monkeypatch.setattr(run_module._Attempts, "next", 0.0)


@pytest.fixture
def store(tmp_path, empty_store, monkeypatch):
    """The root of a project with a store that MLflow is connected to."""
    root = tmp_path / "project"
    (root / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, root / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(root))
    tracking.connect()
    return root


@pytest.fixture
def lock(store, monkeypatch):
    """Locks the database as another process would, and releases it. MLflow waits for a moment instead of 20 s."""

    def shorten(connection, cursor, statement, parameters, *_):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters

    monkeypatch.setattr(run_module, "BACKOFF", 0)
    engine = tracking.mlflow.tracking._tracking_service.utils._get_store().engine
    event.listen(engine, "before_cursor_execute", shorten, retval=True)
    with closing(sqlite3.connect(store / "mlruns" / "mlflow.db", isolation_level=None)) as database:
        yield lambda on: database.execute("BEGIN EXCLUSIVE" if on else "ROLLBACK")
    event.remove(engine, "before_cursor_execute", shorten)
