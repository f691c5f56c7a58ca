"""The links that commands print open the runs in the UI; `make ui` leaves nothing behind."""

import os
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import psutil
import pytest
import requests

from mlflow_server import free_port
from support import ENVIRONMENT, stage_process
from vae import tracking
from vae.tracking.store import ui_link


def test_a_run_ends_with_its_link(store, capsys):
    with tracking.open_run("linked") as run:
        pass
    experiment = tracking.mlflow.get_run(run.id).info.experiment_id
    link = f"  http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run.id}\n"
    assert capsys.readouterr().out == f"MLflow run (`make ui` serves it):\n{link}"
    assert max(map(len, link.splitlines())) <= 80


def test_the_link_of_a_server_has_its_address_and_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@host:8443/mlflow/")
    assert ui_link("3", "ab12") == "https://host:8443/mlflow/#/experiments/3/runs/ab12"


def test_a_port_that_another_server_has_is_refused_in_one_line(store):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # it answers 501
        Thread(target=server.serve_forever, daemon=True).start()
        environment = {**ENVIRONMENT, "DVC_ROOT": str(store), "MLFLOW_PORT": str(server.server_port)}
        with stage_process("-m", "vae.tracking", "ui", cwd=store, env=environment) as ui:
            errors = ui.communicate(timeout=120)[1]
        server.shutdown()
    assert ui.returncode == 1 and errors.startswith("error: something answers at") and "MLFLOW_PORT" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_prints_its_link_last_and_ends_all_its_processes(store, number):
    environment = {**ENVIRONMENT, "DVC_ROOT": str(store), "MLFLOW_PORT": str(free_port())}
    command = ["-m", "vae.tracking", "ui"]
    with stage_process(*command, cwd=store, env=environment) as ui:
        link = next(line for line in ui.stdout if "/#/experiments/" in line).strip()
        assert requests.get(link, timeout=30).ok
        with stage_process(*command, cwd=store, env=environment) as second:
            assert "MLFLOW_PORT" in second.communicate(timeout=60)[1]
        children = psutil.Process(ui.pid).children(recursive=True)
        (os.killpg if number == signal.SIGINT else os.kill)(ui.pid, number)  # Ctrl-C reaches all of them
        rest, errors = ui.communicate(timeout=60)
    assert (ui.returncode, rest) == (0, "") and "Traceback" not in errors
    assert len(children) == 2 and not any(child.is_running() for child in children)
