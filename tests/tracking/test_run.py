"""What a run is told arrives in MLflow, once and in order, whatever becomes of MLflow meanwhile."""

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import torch
from sqlalchemy import event

import vae.tracking.run
from mlflow_server import Server
from support import ENVIRONMENT
from vae.config import Params
from vae.device import Hardware
from vae.errors import TrackingError
from vae.tracking import store as tracking
from vae.tracking.run import Run, mlflow

_get_store = mlflow.tracking._tracking_service.utils._get_store

MlflowClient = mlflow.MlflowClient


@pytest.fixture(autouse=True)
def not_yet_warned(monkeypatch):
    monkeypatch.setattr(vae.tracking.run, "_warned", False)


@pytest.fixture
def store(tmp_path, empty_store, monkeypatch):
    """A project's root with a store."""
    root = tmp_path / "project"
    (root / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, root / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(root))
    tracking.connect()
    return root


def unsent(root):
    """The files of what waits to be sent."""
    return [path for path in (root / "mlruns" / "unsent").rglob("*") if path.is_file() and path.name != ".lock"]


def curve(run_id, name="loss"):
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, name)]


@pytest.fixture
def lock(store):
    """A call locks the database as another process would; the next one lets go."""
    with closing(sqlite3.connect(store / "mlruns" / "mlflow.db", isolation_level=None)) as database:
        yield lambda on: database.execute("BEGIN EXCLUSIVE" if on else "ROLLBACK")


@pytest.fixture
def impatient(store, monkeypatch):
    """MLflow waits for a locked database for a moment, not 20 seconds; a run asks again at every call."""
    monkeypatch.setattr(vae.tracking.run, "PATIENCE", 0)
    engine = _get_store().engine

    def shorten(connection, cursor, statement, parameters, *_):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters

    event.listen(engine, "before_cursor_execute", shorten, retval=True)
    yield
    event.remove(engine, "before_cursor_execute", shorten)


@pytest.mark.usefixtures("impatient")
def test_what_a_locked_database_does_not_take_goes_first_when_it_does_again(store, lock, capsys):
    with tracking.run("locked") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        lock(True)
        for step in (2, 3):
            run.log_metrics({"loss": float(step)}, step=step)
        run.log_tags({"seen": "later"})
        assert [path.name for path in unsent(store)] == ["entries.json"]
        lock(False)
        run.log_metrics({"loss": 4.0}, step=4)
        assert not unsent(store)
    assert curve(run.id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert MlflowClient().get_run(run.id).data.tags["seen"] == "later"
    assert capsys.readouterr().err == (
        "warning: not tracked in MLflow for now: (sqlite3.OperationalError) database is locked\n"
    )


@pytest.mark.usefixtures("impatient")
def test_what_is_left_at_the_end_is_sent_by_the_next_command_with_its_times(store, lock, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with tracking.run("left") as run:
        lock(True)
        run.log_params({"beta": 4.0})
        for step in (1, 2):
            run.log_metrics({"loss": float(step)}, step=step)
        run.log_dataset("MNIST", "ab12", tmp_path)
        run.log_artifact(note, "notes")
    note.unlink()  # as the next training does
    lock(False)
    assert MlflowClient().get_run(run.id).info.status == "RUNNING"
    tracking.connect()
    tracked = MlflowClient().get_run(run.id)
    assert (tracked.info.status, tracked.data.params) == ("FINISHED", {"beta": "4.0"})
    assert tracked.inputs.dataset_inputs[0].dataset.name == "MNIST"
    points = MlflowClient().get_metric_history(run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 2.0)]
    assert points[0].timestamp <= points[1].timestamp <= tracked.info.end_time
    assert next((store / "mlruns" / "artifacts" / run.id).rglob("note.txt")).read_text() == "kept"
    assert not unsent(store)


@pytest.mark.usefixtures("impatient")
def test_what_is_sent_twice_is_there_once(store, lock, tmp_path):
    with tracking.run("twice") as run:
        lock(True)
        run.log_metrics({"loss": 1.0}, step=1)
        folder = run._folder
        shutil.copytree(folder, tmp_path / "copy")  # as it is after a kill between sending and deleting
        lock(False)
    shutil.copytree(tmp_path / "copy", folder)
    tracking.connect()
    assert curve(run.id) == [(1, 1.0)]
    assert not unsent(store)


@pytest.mark.usefixtures("impatient")
def test_after_an_attempt_in_vain_there_is_none_for_some_time(lock, monkeypatch):
    with tracking.run("patient") as run:
        lock(True)
        monkeypatch.setattr(vae.tracking.run, "PATIENCE", 1e6)
        run.log_metrics({"loss": 1.0}, step=1)
        monkeypatch.setattr(vae.tracking.run, "_send", lambda *_: pytest.fail("it was asked again"))
        run.log_metrics({"loss": 2.0}, step=2)
        monkeypatch.undo()
        lock(False)
    assert curve(run.id) == [(1, 1.0), (2, 2.0)]  # the end is always an attempt


@pytest.mark.usefixtures("impatient")
def test_what_belongs_to_another_server_waits_for_that_one(store, lock, monkeypatch):
    with tracking.run("local") as run:
        lock(True)
        run.log_metrics({"loss": 1.0}, step=1)
    lock(False)
    elsewhere = store / "elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}")
    tracking.connect()
    assert unsent(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.connect()
    assert curve(run.id) == [(1, 1.0)]
    assert not unsent(store)


def test_a_run_that_is_deleted_in_the_middle_ends_nothing_and_what_waits_for_it_is_dropped(store, capsys):
    with tracking.run("deleted") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        MlflowClient().delete_run(run.id)
        run.log_metrics({"loss": 2.0}, step=2)
        run.log_metrics({"loss": 3.0}, step=3)
    assert unsent(store)
    tracking.connect()
    assert not unsent(store)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: not tracked in MLflow for now: ")
    assert second == f"warning: run {run.id} takes nothing more: what was kept for it is dropped"


def test_a_run_that_is_restored_gets_what_it_missed(store):
    with tracking.run("restored") as run:
        MlflowClient().delete_run(run.id)
        run.log_metrics({"loss": 1.0}, step=1)
    MlflowClient().restore_run(run.id)
    tracking.connect()
    assert curve(run.id) == [(1, 1.0)]
    assert MlflowClient().get_run(run.id).info.status == "FINISHED"


def test_files_that_cannot_be_stored_hold_up_nothing_else(store, tmp_path):
    artifacts, aside = store / "mlruns" / "artifacts", store / "aside"
    artifacts.mkdir(exist_ok=True)
    note = tmp_path / "note.txt"
    note.write_text("stored in the end")
    with tracking.run("unwritable") as run:
        artifacts.rename(aside)
        artifacts.write_text("a file where the folder was")  # root may write into any folder
        run.log_artifact(note)
        run.log_metrics({"loss": 1.0}, step=1)
    assert curve(run.id) == [(1, 1.0)]
    assert MlflowClient().get_run(run.id).info.status == "FINISHED"
    artifacts.unlink()
    aside.rename(artifacts)
    tracking.connect()
    assert next((artifacts / run.id).rglob("note.txt")).read_text() == "stored in the end"


@pytest.mark.parametrize("content", ["", "[{", "\0"])
def test_what_was_kept_and_is_damaged_is_no_obstacle(store, content):
    folder = store / "mlruns" / "unsent" / "local" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "entries.json").write_text(content)
    tracking.connect()


def test_a_parameter_that_a_run_has_stays_and_new_ones_are_added(store):
    with tracking.run("trained") as run:
        run.log_params({"seed": 0})
    with tracking.run("trained", run_id=run.id) as again:
        again.log_params({"seed": 1, "beta": 4.0})
    assert MlflowClient().get_run(run.id).data.params == {"seed": "0", "beta": "4.0"}
    assert not unsent(store)


@pytest.mark.usefixtures("impatient")
def test_a_stage_whose_store_fails_keeps_its_figures_for_the_runs_store(lock):
    cpu = Hardware(torch.device("cpu"), "fp32", compile=False)
    with tracking.run("trained") as run:
        pass
    lock(True)
    with tracking.resume(Params(), cpu, run.id) as resumed:
        resumed.log_metrics({"nll": 80.5}, prefix="test/")
    with pytest.raises(TrackingError, match="locked"), tracking.resume(Params(), cpu, None):
        pass
    lock(False)
    tracking.connect()
    assert MlflowClient().get_run(run.id).data.metrics == {"test/nll": 80.5}


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_gets_everything_in_order(tmp_path, empty_store, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Server(tmp_path, empty_store) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        tracking.connect()
        with tracking.run("interrupted") as run:
            for step in range(1, 9):
                if step == 3:
                    server.signal(signal.SIGKILL)
                if step == 6:
                    server.start()
                run.log_metrics({"loss": float(step)}, step=step)
            assert curve(run.id) == [(step, float(step)) for step in range(1, 9)]
        assert MlflowClient().get_run(run.id).info.status == "FINISHED"
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_it_could_not_send(store):
    program = (
        "import os, sqlite3\n"
        "from vae import tracking, run\n"
        "tracking.connect()\n"
        "with tracking.run('killed') as active:\n"
        "    active.log_metrics({'loss': 1.0}, step=1)\n"
        "    os.rename('mlruns/mlflow.db', 'aside.db'); os.mkdir('mlruns/mlflow.db')\n"
        "    tracking.mlflow.tracking._tracking_service.utils._get_store().engine.dispose()\n"
        "    active.log_metrics({'loss': 2.0}, step=2)\n"
        "    print(active.id, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**ENVIRONMENT, "DVC_ROOT": str(store)}
    killed = subprocess.run([sys.executable, "-c", program], cwd=store, env=environment, text=True, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = killed.stdout.strip()
    (store / "mlruns" / "mlflow.db").rmdir()
    (store / "aside.db").rename(store / "mlruns" / "mlflow.db")
    tracking.connect()
    assert curve(run_id) == [(1, 1.0), (2, 2.0)]


def test_a_run_without_trouble_leaves_no_folder(store):
    with tracking.run("plain") as run:
        run.log_metrics({"loss": 1.0}, step=1)
    assert isinstance(run, Run)
    assert not run._folder.exists()
