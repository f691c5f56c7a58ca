import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pandas as pd
import pytest
import torch

import vae.tracking.run
from mlflow_server import Server
from support import ENVIRONMENT
from vae.config import ModelParams, Params, TrainParams
from vae.device import Hardware
from vae.errors import TrackingError
from vae.tracking import store as tracking
from vae.tracking.run import MlflowException, mlflow, tolerant  # which sets MLflow up before it imports it

MlflowClient = mlflow.MlflowClient

CPU = Hardware(torch.device("cpu"), "fp32", False)


@pytest.fixture(scope="module")
def store(tmp_path_factory, empty_store):
    """A store that most tests share."""
    root = tmp_path_factory.mktemp("store")
    (root / "mlruns").mkdir()
    shutil.copy(empty_store, root / "mlruns")
    before = dict(os.environ)
    os.environ["DVC_ROOT"] = str(root)
    tracking.connect()
    yield root
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fresh_root(tmp_path, monkeypatch):
    """A project's root without a store."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def database_of(root):
    return f"sqlite:///{root / 'mlruns' / 'mlflow.db'}"


def of_a_training(params):
    """The names of the parameters that a training's run carries: all but the search's."""
    return {name for name in params.flat() if not name.startswith("search.")}


def the_run(run_id):
    return MlflowClient().get_run(run_id)


def test_connect_creates_the_database_and_the_experiment_and_keeps_artifacts_beside_it(fresh_root, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("kept")
    tracking.connect()
    with tracking.run("first") as tracked:
        tracked.log_artifact(note, "notes")
    client = MlflowClient(database_of(fresh_root))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    assert the_run(tracked.id).info.experiment_id == experiment.experiment_id
    assert [path.read_text() for path in (fresh_root / "mlruns" / "artifacts").rglob("note.txt")] == ["kept"]
    assert [file.path for file in client.list_artifacts(tracked.id, "notes")] == ["notes/note.txt"]


@pytest.mark.usefixtures("store")
def test_connect_finds_what_is_there_when_it_is_called_again():
    before = MlflowClient().get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    tracking.connect()
    with tracking.run("again") as tracked:
        pass
    assert the_run(tracked.id).info.experiment_id == before


@pytest.mark.slow
def test_four_processes_may_open_a_new_store_at_once(fresh_root):
    program = (
        "from vae import tracking\n"
        "print('ready', flush=True); input()\n"
        "tracking.connect()\n"
        "with tracking.run('one of four') as run: run.log_metrics({'value': 1})\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {**ENVIRONMENT, "DVC_ROOT": str(fresh_root)}
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    client = MlflowClient(database_of(fresh_root))
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics["value"]) for run in runs] == [("FINISHED", 1.0)] * 4


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("trouble", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_a_run_ends_as_what_happened_in_it(trouble, status):
    try:
        with tracking.run("named") as tracked:
            if trouble:
                raise trouble
    except BaseException as error:
        assert type(error) is trouble
    info = the_run(tracked.id).info
    assert (info.status, info.run_name) == (status, "named")
    assert mlflow.active_run() is None


@pytest.mark.usefixtures("store")
def test_a_resumed_run_keeps_its_params_and_gets_further_metrics():
    with tracking.run("trained") as trained:
        tracking.log_params(trained, Params(), CPU)
        for epoch in (1, 2, 3):
            trained.log_metrics({"kl": 10.0 * epoch}, prefix="val/", step=epoch)
    before = the_run(trained.id)
    with tracking.run("evaluated", run_id=trained.id) as resumed:
        resumed.log_metrics({"nll": 80.5}, prefix="test/")
    after = the_run(trained.id)
    assert resumed.id == trained.id
    assert after.data.params == before.data.params
    assert (after.info.run_name, after.info.status) == ("trained", "FINISHED")
    assert after.data.metrics["test/nll"] == 80.5
    curve = MlflowClient().get_metric_history(trained.id, "val/kl")
    assert [(point.step, point.value) for point in curve] == [(1, 10.0), (2, 20.0), (3, 30.0)]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("deleted", [False, True], ids=["unknown", "deleted"])
def test_a_run_that_is_not_there_is_replaced_by_a_new_one_and_said_so(deleted, capsys):
    missing = "0123456789abcdef" * 2
    if deleted:
        with tracking.run("to be deleted") as deleted_run:
            missing = deleted_run.id
        MlflowClient().delete_run(missing)
    with tracking.run("instead", run_id=missing) as tracked:
        pass
    assert tracked.id != missing
    assert the_run(tracked.id).info.run_name == "instead"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert missing in line


@pytest.mark.usefixtures("store")
def test_a_stage_resumes_the_run_of_its_model_as_it_is():
    with tracking.run("trained") as trained:
        tracking.log_params(trained, Params(), CPU)
    with tracking.resume(Params(seed=1), CPU, trained.id) as resumed:
        pass
    assert resumed.id == trained.id
    assert (the_run(trained.id).info.run_name, the_run(trained.id).data.params["seed"]) == ("trained", "0")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("run_id", [None, "0123456789abcdef" * 2])
def test_a_stage_whose_model_has_no_run_opens_one_that_says_how_it_was_trained(run_id):
    params = Params(seed=1)
    with tracking.resume(params, CPU, run_id) as opened:
        pass
    run = the_run(opened.id)
    assert run.info.run_name == tracking.run_name(params)
    assert run.data.params.keys() == of_a_training(params)
    assert (run.data.params["seed"], run.data.tags["precision"]) == ("1", "fp32")


@pytest.mark.usefixtures("store")
def test_only_numbers_are_logged_as_metrics():
    with tracking.run("numbers") as tracked:
        tracked.log_metrics({"units": 3, "nll": 80.5, "dataset": "MNIST", "patience": None}, prefix="test/")
    assert the_run(tracked.id).data.metrics == {"test/units": 3.0, "test/nll": 80.5}


@pytest.mark.usefixtures("store")
def test_every_parameter_is_logged_under_its_dotted_name_with_the_hardware(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = Params(seed=7, model=ModelParams(hidden_dims=(64, 32)), train=TrainParams(beta=4.0))
    with tracking.run("params") as tracked:
        tracking.log_params(tracked, params, Hardware(torch.device("cpu"), "bf16", True))
    data = the_run(tracked.id).data
    assert data.params.keys() == of_a_training(params)
    some = {"seed": "7", "train.beta": "4.0", "model.hidden_dims": "[64, 32]", "train.max_grad_norm": "None"}
    assert {name: data.params[name] for name in some} == some
    assert (data.tags["device"], data.tags["precision"]) == ("cpu", "bf16")
    assert "git.commit" not in data.tags  # this folder is in no repository


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with a commit, and the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "src/code.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as committed\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=Begin")
    return tmp_path


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("changed", "dirty"),
    [(None, "false"), ("README.md", "false"), ("params.yaml", "true"), ("src/code.py", "true"), ("src/new.py", "true")],
)
def test_a_run_carries_the_commit_and_whether_the_code_was_changed_since(repository, changed, dirty):
    if changed:
        (repository / changed).write_text("changed\n")
    with tracking.run("tags") as tracked:
        tracking.log_params(tracked, Params(), CPU)
    tags = the_run(tracked.id).data.tags
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["git.dirty"] == dirty


@pytest.mark.usefixtures("store")
def test_a_run_carries_the_name_of_its_dvc_experiment(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "brave-name")
    with tracking.run("experiment") as tracked:
        tracking.log_params(tracked, Params(), CPU)
    assert the_run(tracked.id).data.tags["dvc.experiment"] == "brave-name"


@pytest.mark.usefixtures("store")
def test_the_data_set_is_an_input_of_the_run_and_in_its_tags(bundled, recwarn):
    folder, record = bundled
    with tracking.run("data") as tracked:
        tracking.log_dataset(tracked, record, folder)
    run = the_run(tracked.id)
    (entry,) = run.inputs.dataset_inputs
    checksum = record["sha256"]["train-images-idx3-ubyte"]
    assert (entry.dataset.name, entry.dataset.digest) == ("MNIST-bundled-5000", checksum[:8])
    assert str(folder) in entry.dataset.source
    assert [tag.value for tag in entry.tags if tag.key == "mlflow.data.context"] == ["training"]
    expected = {"dataset": "MNIST-bundled-5000", "dataset.source": "bundled", "data.sha256": checksum}
    assert {name: run.data.tags[name] for name in expected} == expected
    assert not [warning for warning in recwarn if "resolve_dataset_source" in str(warning.message)]


@pytest.mark.usefixtures("store")
def test_a_finished_training_adds_its_summary_its_checksum_and_its_files(tmp_path):
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"weights")
    with tracking.run("training") as tracked:
        tracking.log_training(tracked, {"best_epoch": 3, "val/kl": 25.0}, "ab12", [model])
    run = the_run(tracked.id)
    assert run.data.metrics == {"summary/best_epoch": 3.0, "summary/val/kl": 25.0}
    assert run.data.tags["model.sha256"] == "ab12"
    assert [file.path for file in MlflowClient().list_artifacts(tracked.id)] == ["vae.safetensors"]


@pytest.mark.parametrize(
    ("model", "train", "name"),
    [
        ({"hidden_dims": (512, 512)}, {"learning_rate": 2e-3}, "mlp512x2-z32-b1-lr2e-3"),
        ({"hidden_dims": (512, 256), "latent_dim": 2}, {"beta": 4.0}, "mlp512-256-z2-b4-lr1e-3"),
        ({"hidden_dims": (64,)}, {"beta": 0.5, "learning_rate": 1.5e-4}, "mlp64x1-z32-b0.5-lr1.5e-4"),
        ({"architecture": "conv", "hidden_dims": (32, 64, 64)}, {"beta": 0.0}, "conv32-64-64-z32-b0-lr1e-3"),
        ({"architecture": "conv", "hidden_dims": (32, 32)}, {"learning_rate": 1.0}, "conv32x2-z32-b1-lr1e0"),
    ],
)
def test_a_run_is_named_after_what_differs_between_runs(model, train, name):
    assert tracking.run_name(Params(model=ModelParams(**model), train=TrainParams(**train))) == name


def test_trouble_in_the_log_is_said_once_and_ends_nothing(monkeypatch, capsys):
    monkeypatch.setattr(vae.tracking.run, "_warned", False)
    for trouble in (MlflowException("the\nserver is gone"), OSError("disk full")):
        with tolerant():
            raise trouble
    assert capsys.readouterr().err == "warning: not tracked in MLflow for now: the server is gone\n"


def test_a_mistake_in_the_code_is_not_taken_for_trouble_in_the_log():
    with pytest.raises(KeyError), tolerant():
        raise KeyError("mistake")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_mlflow_has_written(number):
    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt), tracking.run("interrupted") as tracked, tolerant():
            signal.raise_signal(number)
            tracked.log_metrics({"written": 1.0})
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    run = the_run(tracked.id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"written": 1.0})


def failure():
    """The one line with which connect() gives up, and the seconds until then."""
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        tracking.connect()
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - started


@pytest.mark.parametrize("answers", [False, True], ids=["closed port", "accepts and never answers"])
def test_a_server_out_of_reach_is_an_error_within_seconds(answers, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        message, seconds = failure()
    assert uri in message
    assert seconds < 10


def test_a_server_that_is_not_mlflow_is_an_error(monkeypatch):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        message, seconds = failure()
        server.shutdown()
    assert uri in message
    assert seconds < 10


def a_file_that_is_no_database(path):
    path.write_bytes(b"not a database " * 1000)


def a_database_of_another_mlflow(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('0123456789ab')")


@pytest.mark.parametrize("write", [a_file_that_is_no_database, a_database_of_another_mlflow])
def test_a_store_that_mlflow_cannot_read_is_an_error_that_names_it(fresh_root, write):
    path = fresh_root / "mlruns" / "mlflow.db"
    path.parent.mkdir()
    write(path)
    message, _ = failure()
    assert str(path) in message
    assert ("mlflow db upgrade sqlite:///" in message) == (write is a_database_of_another_mlflow)


@pytest.fixture
def server(tmp_path, empty_store):
    with Server(tmp_path, empty_store) as server:
        yield server


@pytest.mark.slow
def test_a_real_server_takes_everything_that_a_run_carries(server, monkeypatch, tmp_path, bundled):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    note = tmp_path / "note.txt"
    note.write_text("over the network")
    tracking.connect()
    with tracking.run("remote") as tracked:
        tracking.log_params(tracked, Params(), CPU)
        tracking.log_dataset(tracked, bundled[1], bundled[0])
        tracked.log_metrics({"kl": 25.0}, prefix="val/", step=1)
        tracking.log_training(tracked, {"best_epoch": 1}, "ab12", [note])
    client = MlflowClient(server.url)
    run = client.get_run(tracked.id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "remote")
    assert run.data.params.keys() == of_a_training(Params())
    assert run.data.metrics == {"val/kl": 25.0, "summary/best_epoch": 1.0}
    assert run.inputs.dataset_inputs[0].dataset.name == "MNIST-bundled-5000"
    assert [path.read_text() for path in (tmp_path / "artifacts").rglob("note.txt")] == ["over the network"]
    assert not (tmp_path / "project").exists()  # nothing beside the server's store


def train_without(server, project, number, epochs):
    """A training whose server gets a signal in its first epochs: it ends well, and says once what is the matter."""
    environment = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
    command = [sys.executable, "pipeline/train.py", f"--epochs={epochs}"]
    training = project.start(*command, until="epoch", **environment)
    server.signal(number)
    started = time.monotonic()
    rest, errors = training.communicate(timeout=300)
    seconds = time.monotonic() - started
    assert training.returncode == 0, errors
    assert f"epoch {epochs:>3}/" in rest
    assert len(pd.read_csv(project / "metrics/history.csv")) == epochs
    assert (project / "metrics/train.json").stat().st_mtime > (project / "dvc.lock").stat().st_mtime
    assert errors.startswith("warning: not tracked in MLflow for now: ")
    assert errors.count("\n") == 1
    assert seconds < 90  # one that waited for the server at each epoch would take many minutes


@pytest.mark.slow
def test_a_training_outlives_its_server_and_warns_once(server, project):
    train_without(server, project, signal.SIGKILL, epochs=60)


@pytest.mark.slow
def test_what_a_training_could_not_send_is_sent_by_the_next_command(server, project, monkeypatch):
    train_without(server, project, signal.SIGSTOP, epochs := 8)
    server.signal(signal.SIGCONT)
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    tracking.connect()  # as the next stage does
    client = MlflowClient(server.url)
    run_id = json.loads((project / "models/run.json").read_text())["run_id"]
    curve = client.get_metric_history(run_id, "val/neg_elbo")
    assert [point.step for point in curve] == list(range(1, epochs + 1))
    assert [point.timestamp for point in curve] == sorted({point.timestamp for point in curve})
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "summary/val/neg_elbo" in run.data.metrics
    assert "model.sha256" in run.data.tags
    assert {file.path for file in client.list_artifacts(run_id)} >= {"vae.safetensors", "history.csv"}
    assert not list((project / "mlruns/unsent").glob("*/*/*"))
