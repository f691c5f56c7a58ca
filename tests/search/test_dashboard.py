"""`python -m vae.search.dashboard`, started as a process and requested over HTTP."""

import os
import signal
import sys

import psutil
import requests

from mlflow_server import free_port
from search_support import small
from support import Project
from vae.search.storage import open_storage
from vae.search.study import open_study


def test_the_dashboard_shows_the_study_to_this_machine_only_and_hides_the_storages_password(here, monkeypatch):
    url = f"sqlite:///{here.root / 'studies.db'}?password=hunter2"
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    study = open_study(small(), here.dataset, open_storage())
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "vae.search.dashboard", address.split(":")[1]]
    environment = {"OPTUNA_STORAGE": url, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = Project(here.root).start(*command, until="optuna-dashboard: ", **environment)
    try:
        studies = requests.get(f"http://{address}/api/studies", timeout=60).json()["study_summaries"]
        assert [each["study_name"] for each in studies] == [study.study_name]
        assert requests.get(f"http://{address.replace('127.0.0.1', 'localhost')}/dashboard", timeout=60).ok
        for host in ("evil.example", "127.0.0.1", f"127.0.0.1.evil.example:{address.split(':')[1]}", ""):
            answer = requests.get(f"http://{address}/api/studies", headers={"Host": host}, timeout=60)
            assert answer.status_code == 403 and study.study_name not in answer.text, host
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert not any("hunter2" in argument for process in family for argument in process.cmdline())
    finally:
        server.send_signal(signal.SIGINT)
    out, error = server.communicate(timeout=60)
    assert server.returncode == 130 and "hunter2" not in out + error and "Traceback" not in error
