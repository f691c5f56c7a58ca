"""`python -m vae.search.dashboard`, really started and asked over HTTP."""

import os
import signal
import socket
import sys

import psutil
import pytest
import requests

from search_support import small
from support import Project
from vae.search.storage import open_storage
from vae.search.study import open_study


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_dashboard_shows_the_study_to_this_machine_only_and_hides_the_storage_s_password(here, port, monkeypatch):
    url = f"sqlite:///{here.root / 'studies.db'}?password=hunter2"
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    study = open_study(small(), here.dataset, open_storage())
    command = [sys.executable, "-m", "vae.search.dashboard", str(port)]
    server = Project(here.root).start(
        *command, until="optuna-dashboard: ", OPTUNA_STORAGE=url, PYTHONPATH=os.pathsep.join(sys.path)
    )
    try:
        address = f"http://127.0.0.1:{port}"
        studies = requests.get(f"{address}/api/studies", timeout=20).json()["study_summaries"]
        assert [each["study_name"] for each in studies] == [study.study_name]
        assert requests.get(f"http://localhost:{port}/dashboard", timeout=20).ok
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}", ""):
            answer = requests.get(f"{address}/api/studies", headers={"Host": host}, timeout=20)
            assert answer.status_code == 403 and study.study_name not in answer.text, host
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert not any("hunter2" in argument for process in family for argument in process.cmdline())
    finally:
        server.send_signal(signal.SIGINT)
    out, error = server.communicate(timeout=20)
    assert server.returncode == 130 and "hunter2" not in out + error and "Traceback" not in error
