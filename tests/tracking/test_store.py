"""The store is found, created and shared, or refused in one line, and never shows a password."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

import stack
from mlflow_server import Server, free_port
from support import ENVIRONMENT, stage_process
from vae import tracking
from vae.errors import TrackingError
from vae.tracking.run import unsynced
from vae.tracking.store import experiment_id, store_id

SECRET = "s3cret"
client = tracking.mlflow.MlflowClient


@contextmanager
def answering(status=None, headers=()):
    """The URL of an HTTP server that answers every request with `status`, or never."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if status is None:
                return closing.wait()
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    closing = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:{SECRET}@127.0.0.1:{server.server_port}"
        closing.set()
        server.shutdown()


def refusal(uri=None, limit=10.0):
    """The line with which connect() gives up, within the time."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    started = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        tracking.connect()
    assert time.monotonic() - started < limit
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg", "mysql+pymysql"])
def test_an_unreachable_store_is_refused_within_ten_seconds(scheme):
    assert f"{scheme}://***@127.0.0.1" in refusal(f"{scheme}://user:{SECRET}@127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (None, [], "unset MLFLOW_TRACKING_URI"),
        (404, [], "http://***@127.0.0.1"),
        (503, [("Retry-After", "3600")], "http://***@127.0.0.1"),
    ],
    ids=["no answer", "not MLflow", "overloaded"],
)
def test_a_server_that_does_not_serve_mlflow_is_refused_within_ten_seconds(status, headers, words):
    with answering(status, headers) as uri:
        assert words in refusal(uri)


def test_a_long_retry_after_delays_no_training_and_leaves_the_timeouts_as_they_are(store, monkeypatch, capsys):
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_HTTP")}
    run = tracking.Run("trained", "0123456789abcdef" * 2)
    with answering(503, [("Retry-After", "60")]) as uri:
        tracking.mlflow.set_tracking_uri(uri)
        started = time.monotonic()
        run.log_metrics({"loss": 1.0})
        assert time.monotonic() - started < 20
    assert len(list(unsynced().glob("*/run.json"))) == 1
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_HTTP")} == before
    assert SECRET not in capsys.readouterr().err


@pytest.fixture
def new_project(tmp_path, monkeypatch):
    """The root of a project without a store, in a path that is no URL."""
    root = tmp_path / 'it\'s a "100%41?" #1'
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("other_version", [False, True])
def test_a_store_that_mlflow_cannot_read_is_refused(new_project, other_version):
    path = new_project / "mlruns" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(b"" if other_version else b"not a database " * 1000)
    if other_version:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
            database.execute("INSERT INTO alembic_version VALUES ('0123456789ab')")
    message = refusal()
    assert str(path) in message
    assert ("mlflow db upgrade sqlite" in message) == other_version


def test_a_locked_database_is_refused_within_twenty_seconds(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "locked.db")
    with closing(sqlite3.connect(tmp_path / "locked.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in refusal(f"sqlite:///{tmp_path / 'locked.db'}", limit=25)


@pytest.mark.slow
def test_a_project_in_any_path_has_its_store_inside_and_the_ui_shows_it(new_project):
    (new_project / "note.txt").write_text("kept")
    tracking.connect()
    with tracking.open_run("first") as run:
        run.log_artifact(new_project / "note.txt", "notes")
        run.log_metrics({"loss": 1.0})
    tracking.connect()  # finds what is there
    experiment = client().get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment.experiment_id == client().get_run(run.id).info.experiment_id
    assert {path.name for path in new_project.iterdir()} == {"mlruns", "note.txt"}
    assert list(new_project.parent.iterdir()) == [new_project]
    assert {path.name for path in (new_project / "mlruns").iterdir()} >= {"mlflow.db", "artifacts"}
    port = free_port()
    environment = {**ENVIRONMENT, "DVC_ROOT": str(new_project), "MLFLOW_PORT": str(port)}
    with stage_process("-m", "vae.tracking", "ui", cwd=new_project, env=environment) as ui:
        url = f"http://127.0.0.1:{port}/get-artifact?path=notes/note.txt&run_id={run.id}"
        assert wait_for(url, ui) == b"kept"
        for process in Path("/proc").glob("[0-9]*/cmdline"):  # the store, which may hold a password, is no argument
            command = process.read_bytes() if process.exists() else b""
            assert b"mlflow.db" not in command or b"pytest" in command


def wait_for(url, process):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(url, timeout=20) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.slow
def test_projects_may_create_a_store_that_they_share_at_once(tmp_path):
    program = (
        "from vae import tracking\n"
        "print('ready', flush=True); input()\n"
        "tracking.connect()\n"
        "with tracking.open_run('one of four') as run: run.log_metrics({'value': 1})\n"
    )
    uri = f"sqlite:///{tmp_path / 'shared' / 'x.db'}"
    environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri}
    with ExitStack() as running:
        processes = []
        for number in range(4):
            root = tmp_path / f"project {number}"
            root.mkdir()
            process = stage_process("-c", program, cwd=root, env=environment, stdin=subprocess.PIPE)
            processes.append(running.enter_context(process))
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
        for process in processes:
            print("go", file=process.stdin, flush=True)
        errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    experiment = client(uri).get_experiment_by_name(tracking.EXPERIMENT)
    runs = client(uri).search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics["value"]) for run in runs] == [("FINISHED", 1.0)] * 4


def test_a_store_is_the_same_one_whatever_its_password_and_however_its_address_ends(new_project, monkeypatch):
    ids = set()
    for uri in ("http://user:old@host:5000", "http://user:new@host:5000/", "http://host:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        ids.add(store_id())
    assert ids == {"http://host:5000"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_id() == "mlruns"  # also after the project was moved


TRAINING = f"""
import json
from pathlib import Path
from vae import tracking
from vae.config import Params
from vae.workflow.tracked_training import tracked_training
params = Params().replaced({{
    "data.source": "bundled", "data.validation_size": 500, "data.mirrors": ["http://me:{SECRET}@mirror/mnist/"],
    "model.hidden_dims": [16], "model.latent_dim": 2, "model.prior_width": 8,
    "train.epochs": 6, "train.device": "cpu", "train.precision": "fp32", "train.compile": False,
}})
dataset, raw = json.loads(Path("dataset.json").read_text()), Path("raw")
with tracked_training(params, dataset, raw, Path("w.safetensors"), Path("history.csv")) as training:
    print(training.run.id)
"""


@pytest.mark.slow
def test_a_training_whose_server_is_frozen_goes_on_and_is_logged_by_make_sync(tmp_path, empty_store, bundled):
    project = tmp_path / "project"
    shutil.copytree(bundled[0].parent, project)
    with Server(tmp_path, empty_store) as server:
        url = server.url.replace("://", f"://user:{SECRET}@")
        environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
        with stage_process("-c", TRAINING, cwd=project, env=environment) as training:
            lines = [training.stdout.readline() for _ in range(3)]
            assert lines[-1].startswith("epoch   1/6")
            server.signal(signal.SIGSTOP)
            rest, errors = training.communicate(timeout=240)
        assert training.returncode == 0 and "epoch   6/6" in rest, errors
        assert errors.startswith("warning: not tracked in MLflow for now: ") and errors.count("warning: ") == 1
        (project / "w.safetensors").unlink()  # as if the next training had overwritten it
        server.signal(signal.SIGCONT)
        environment["MLFLOW_TRACKING_URI"] = url.replace(SECRET, f"new-{SECRET}") + "/"
        sync = [sys.executable, "-m", "vae.tracking", "sync"]
        done = subprocess.run(sync, cwd=project, env=environment, text=True, capture_output=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "") and "has everything" in done.stdout
        run_id = rest.split("/")[-1].strip()
        run = client(server.url).get_run(run_id)
        curve = client(server.url).get_metric_history(run_id, "val/neg_elbo")
        files = {file.path for file in client(server.url).list_artifacts(run_id)}
    assert [point.step for point in curve] == list(range(1, 7))
    assert run.info.status == "FINISHED" and "summary/val/neg_elbo" in run.data.metrics
    assert files >= {"w.safetensors", "history.csv"} and "model.sha256" in run.data.tags
    assert SECRET not in "".join([*lines, rest, errors, done.stdout, str(run.to_dictionary())])
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_gets_everything_once(tmp_path, empty_store, monkeypatch, capsys):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Server(tmp_path, empty_store) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        tracking.connect()
        with tracking.open_run("interrupted") as run:
            for step in range(1, 9):
                if step == 3:
                    server.signal(signal.SIGKILL)
                if step == 6:
                    server.start()
                run.log_metrics({"loss": float(step), "bad|name": 1.0}, step=step)
            run.log_params({"worse|name": 1, "p": 2})
        points = [(point.step, point.value) for point in client().get_metric_history(run.id, "loss")]
        logged = client().get_run(run.id)
    assert points == [(step, float(step)) for step in range(1, 9)]
    assert (logged.data.params, logged.info.status) == ({"p": "2"}, "FINISHED")
    warnings = sorted(line.split(":")[1].split(",")[0].strip() for line in capsys.readouterr().err.splitlines())
    assert warnings == [
        "MLflow refuses bad|name",
        "MLflow refuses worse|name",
        "not tracked in MLflow for now",
    ]


@pytest.mark.slow
def test_a_training_during_which_s3_is_killed_and_started_again_loses_nothing(tmp_path, empty_store, bundled):
    undisturbed, project = tmp_path / "undisturbed", tmp_path / "project"
    for folder in (undisturbed, project):
        shutil.copytree(bundled[0].parent, folder)
    subprocess.run([sys.executable, "-c", TRAINING], cwd=undisturbed, env=ENVIRONMENT, check=True)
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    with ExitStack() as store:
        store.enter_context(stack.s3("vae", port))
        variables = {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", **keys}
        with Server(tmp_path, empty_store, "s3://vae/mlflow", **variables) as server:
            environment = {**ENVIRONMENT, "MLFLOW_TRACKING_URI": server.url}
            with stage_process("-c", TRAINING, cwd=project, env=environment) as training:
                assert any(line.startswith("epoch   1/6") for line in training.stdout)
                store.close()
                assert training.stderr.readline().startswith("warning: not tracked in MLflow for now: ")
                store.enter_context(stack.s3("vae", port))
                rest, errors = training.communicate(timeout=240)
            assert training.returncode == 0 and "warning: " not in errors
            sync = [sys.executable, "-m", "vae.tracking", "sync"]
            subprocess.run(sync, cwd=project, env=environment, check=True)
            run_id = rest.split("/")[-1].strip()
            run = client(server.url).get_run(run_id)
            files = {file.path for file in client(server.url).list_artifacts(run_id)}
            curve = client(server.url).get_metric_history(run_id, "val/neg_elbo")
            pictures = " ".join(file.path for file in client(server.url).list_artifacts(run_id, "images"))
            logged = Path(client(server.url).download_artifacts(run_id, "w.safetensors", str(tmp_path)))
    assert [point.step for point in curve] == list(range(1, 7)) and run.info.status == "FINISHED"
    assert files == {"w.safetensors", "history.csv", "images"}
    assert all(f"+step+{step}+" in pictures for step in (2, 4, 6))
    weights = (undisturbed / "w.safetensors").read_bytes()
    assert (project / "w.safetensors").read_bytes() == logged.read_bytes() == weights


def test_an_experiment_that_another_machine_creates_meanwhile_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracking.connect()
    find, not_yet = tracking.mlflow.get_experiment_by_name, iter([None])
    monkeypatch.setattr(tracking.mlflow, "get_experiment_by_name", lambda name: next(not_yet, find(name)))
    assert experiment_id("vae-mnist") == find("vae-mnist").experiment_id
    assert next(not_yet, "asked") == "asked"
