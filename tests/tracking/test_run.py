"""What is logged arrives in MLflow, once, whatever happens to MLflow meanwhile."""

import shutil
import signal

import pytest
from filelock import FileLock

import vae.tracking.run as run_module
from vae import tracking
from vae.config import Params
from vae.errors import TrackingError
from vae.tracking.run import unsynced

from .conftest import CPU, DATASET

MISSING = "0123456789abcdef" * 2
client = tracking.mlflow.MlflowClient


def kept():
    return list(unsynced().glob("*/run.json"))


def curve(run_id, name="loss"):
    return [(point.step, point.value) for point in client().get_metric_history(run_id, name)]


def status(run_id):
    return client().get_run(run_id).info.status


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("error", "ending"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_with_its_block(error, ending):
    try:
        with tracking.open_run("named") as run:
            if error:
                raise error
    except BaseException as raised:
        assert type(raised) is error
    assert (status(run.id), client().get_run(run.id).info.run_name) == (ending, "named")
    assert tracking.mlflow.active_run() is None


@pytest.mark.usefixtures("store")
def test_a_reopened_run_keeps_what_it_has_and_gets_more(capsys):
    with tracking.open_run("trained") as run:
        run.log_params({"seed": 0})
        run.log_metrics({"kl": 25, "dataset": "MNIST", "patience": None}, prefix="val/", step=1)
    with tracking.open_run("again", run.id) as again:
        again.log_params({"seed": 1, "beta": 4.0})
        again.log_metrics({"kl": 24.0}, prefix="val/", step=2)
    assert again.last_step("val/kl") == 2
    reopened = client().get_run(run.id)
    assert (reopened.info.run_name, reopened.info.status) == ("trained", "FINISHED")
    assert reopened.data.params == {"seed": "0", "beta": "4.0"}
    assert curve(run.id, "val/kl") == [(1, 25.0), (2, 24.0)]
    assert "MLflow refuses seed" in capsys.readouterr().err  # the parameters of a run can't change
    assert not kept()


@pytest.mark.usefixtures("store")
def test_a_run_that_does_not_exist_or_is_deleted_is_replaced_with_a_warning(capsys):
    with tracking.open_run("deleted") as deleted:
        pass
    client().delete_run(deleted.id)
    for missing in (MISSING, deleted.id):
        with tracking.open_run("instead", missing) as run:
            pass
        assert client().get_run(run.id).info.run_name == "instead"
        assert f"warning: run {missing} is not in " in capsys.readouterr().err


def test_what_a_locked_database_does_not_take_is_logged_by_the_next_call(lock, capsys):
    with tracking.open_run("locked") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        lock(True)
        for step in (2, 3):
            run.log_metrics({"loss": float(step)}, step=step)
        run.log_tags({"seen": "later"})
        assert len(kept()) == 1
        lock(False)
        run.log_metrics({"loss": 4.0}, step=4)
        assert not kept()
    assert curve(run.id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert client().get_run(run.id).data.tags["seen"] == "later"
    warning = "warning: not tracked in MLflow for now: (sqlite3.OperationalError) database is locked\n"
    assert capsys.readouterr().err == warning


def test_what_is_left_at_the_end_is_logged_by_the_next_stage_once_with_its_times(lock, store, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with tracking.open_run("left") as run:
        lock(True)
        run.log_params({"beta": 4.0})
        for step in (1, 2):
            run.log_metrics({"loss": float("nan") if step == 2 else 1.0}, step=step)
        run.log_dataset("MNIST", "ab12", tmp_path)
        run.log_artifact(note, "notes")
    note.unlink()  # as the next training does
    lock(False)
    assert status(run.id) == "RUNNING"
    shutil.copytree(unsynced(), tmp_path / "copy")
    with tracking.open_run("next"):
        pass
    assert not kept()
    shutil.copytree(tmp_path / "copy", unsynced(), dirs_exist_ok=True)  # as after a kill just before it is deleted
    assert tracking.sync() == []
    left = client().get_run(run.id)
    assert (left.info.status, left.data.params) == ("FINISHED", {"beta": "4.0"})
    assert left.inputs.dataset_inputs[0].dataset.name == "MNIST"
    first, second = client().get_metric_history(run.id, "loss")
    assert first.timestamp <= second.timestamp <= left.info.end_time
    assert next((store / "mlruns" / "artifacts" / run.id).rglob("notes/note.txt")).read_text() == "kept"


@pytest.mark.parametrize("created", [False, True], ids=["not created", "created, but the answer was lost"])
@pytest.mark.usefixtures("store")
def test_a_trial_whose_run_mlflow_could_not_create_is_logged_later(created, monkeypatch):
    create = client.create_run

    def fail(*arguments, **options):
        if created:
            create(*arguments, **options)
        raise ConnectionError("down")

    tracking.connect(tracking.SEARCH_EXPERIMENT)
    parent = tracking.new_search(Params(), DATASET)
    with monkeypatch.context() as patch:
        patch.setattr(client, "create_run", fail)
        patch.setattr(run_module, "BACKOFF", 1e6)
        with tracking.trial_run(5, parent, Params(), CPU, DATASET) as run:
            run.log_metrics({"val/kl": 1.0}, step=1)
    assert run.id == "" and len(kept()) == 1
    monkeypatch.setattr(run_module._Attempts, "next", 0.0)
    assert tracking.sync() == []
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    (trial,) = tracking.mlflow.search_runs(filter_string=query, output_format="list")
    assert (trial.info.run_name.split(" · ")[0], trial.info.status) == ("trial 5", "FINISHED")
    assert (trial.data.metrics, trial.data.params["seed"]) == ({"val/kl": 1.0}, "0")


def test_failed_attempts_cost_at_most_a_tenth_of_the_time(lock, monkeypatch):
    run = tracking.Run("patient")
    lock(True)
    monkeypatch.setattr(run_module, "BACKOFF", 1e6)
    run.log_metrics({"loss": 1.0}, step=1)
    lock(False)
    run.log_metrics({"loss": 2.0}, step=2)
    assert run.id == ""
    monkeypatch.setattr(run_module._Attempts, "next", 0.0)
    run.log_metrics({"loss": 3.0}, step=3)
    assert curve(run.id) == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.usefixtures("store")
def test_what_mlflow_refuses_blocks_and_drops_nothing_else(capsys):
    with tracking.open_run("refused") as run:
        run.log_params(
            {f"p{number}": number for number in range(20)} | {"bad|name": 1, "k" * 300: 2, "long": "x" * 9000}
        )
        for step in (1, 2):
            run.log_metrics({"loss": 1.0, "nan": float("nan"), "worse|name": 1.0}, step=step)
        run.log_tags({"after": "it"})
    data = client().get_run(run.id).data
    assert data.params.keys() == {*(f"p{number}" for number in range(20)), "long"}
    assert data.metrics.keys() == {"loss", "nan"} and data.tags["after"] == "it"
    assert curve(run.id) == [(1, 1.0), (2, 1.0)]
    assert status(run.id) == "FINISHED" and not kept()
    refused = [line.split()[3].rstrip(",") for line in capsys.readouterr().err.splitlines()]
    assert sorted(refused) == ["bad|name", "k" * 300, "worse|name"]  # each once


@pytest.mark.usefixtures("store")
def test_what_a_deleted_run_misses_waits_until_it_is_restored(capsys):
    with tracking.open_run("deleted") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        client().delete_run(run.id)
        run.log_metrics({"loss": 2.0}, step=2)
    assert capsys.readouterr().err.count("warning: ") == 1
    assert len(tracking.sync()) == 1
    assert not capsys.readouterr().err
    client().restore_run(run.id)
    assert tracking.sync() == []
    assert curve(run.id) == [(1, 1.0), (2, 2.0)]
    assert status(run.id) == "FINISHED"


def test_what_belongs_to_another_store_waits_for_that_one(lock, store, empty_store, monkeypatch):
    with tracking.open_run("local") as run:
        lock(True)
        run.log_metrics({"loss": 1.0}, step=1)
        with tracking.trial_run(0, None, Params(), CPU, DATASET) as trial:
            pass
    lock(False)
    assert trial.id == ""
    shutil.copy(empty_store, store / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'elsewhere.db'}")
    tracking.connect()
    assert len(tracking.sync()) == 2
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.connect()
    assert tracking.sync() == []
    assert curve(run.id) == [(1, 1.0)]


@pytest.mark.usefixtures("store")
def test_files_that_cannot_be_stored_hold_up_nothing_else(store, tmp_path):
    artifacts, aside = store / "mlruns" / "artifacts", store / "aside"
    artifacts.mkdir(exist_ok=True)
    note = tmp_path / "note.txt"
    note.write_text("stored in the end")
    with tracking.open_run("unwritable") as run:
        artifacts.rename(aside)
        artifacts.write_text("a file where the folder was")  # root may write into any folder
        run.log_artifact(note)
        run_module._Attempts.next = 0.0
        run.log_metrics({"loss": 1.0}, step=1)
    assert curve(run.id) == [(1, 1.0)]
    assert status(run.id) == "FINISHED"
    artifacts.unlink()
    aside.rename(artifacts)
    assert tracking.sync() == []
    assert next((artifacts / run.id).rglob("note.txt")).read_text() == "stored in the end"


@pytest.mark.usefixtures("store")
def test_damaged_folders_and_another_sync_are_no_obstacle():
    for number, content in enumerate(["", "[{", "\0", "{}", '{"name": 1, "id": 2}']):
        folder = unsynced() / str(number)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(content)
    assert len(tracking.sync()) == 5
    with FileLock(unsynced() / ".lock"):
        assert len(tracking.sync()) == 5


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_mlflow_has_written(number):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    with pytest.raises(KeyboardInterrupt), tracking.open_run("interrupted") as run, tracking.tolerant():
        signal.raise_signal(number)
        client().log_metric(run.id, "written", 1.0)
    assert signal.signal(number, before) is stop
    assert (status(run.id), curve(run.id, "written")) == ("KILLED", [(0, 1.0)])


def test_a_mistake_in_the_code_is_not_taken_for_trouble_with_mlflow():
    with pytest.raises(KeyError), tracking.tolerant():
        raise KeyError("mistake")


def test_a_stage_whose_store_fails_keeps_its_metrics_for_a_run_of_its_own(lock):
    lock(True)
    with tracking.resume(Params(), CPU, DATASET, "ab12") as resumed:
        resumed.log_metrics({"nll": 80.5}, prefix="test/")
    with pytest.raises(TrackingError, match="locked"), tracking.open_run("required"):
        pass
    with pytest.raises(TrackingError, match="locked"):
        resumed.last_step("val/kl")
    lock(False)
    assert tracking.sync() == []
    (kept_run,) = tracking.mlflow.search_runs(filter_string="metrics.`test/nll` = 80.5", output_format="list")
    assert kept_run.data.tags["model.sha256"] == "ab12"
