"""Stages that run in the test's process: importing torch and MLflow for each of them would cost seconds."""

import runpy
import signal
import sys

import pytest

from vae.tracking.store import EXPERIMENT, mlflow


class Outcome:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def succeeds(self):
        assert self.code == 0, self.err
        return self

    def fails_with(self, *words):
        """Exit code 1 and one line with all of `words`. (A traceback would have ended the test before.)"""
        assert (self.code, self.err.count("\n")) == (1, 1), self.err
        assert self.err.startswith("error: ")
        for word in words:
            assert word in self.err


@pytest.fixture
def stage_in(monkeypatch, capsys):
    """Runs a stage of a project as `python pipeline/NAME.py` does."""
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    on_termination = signal.getsignal(signal.SIGTERM)

    def run(project, name, *flags):
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "argv", [f"pipeline/{name}.py", *flags])
        code, message = 0, ""
        try:
            runpy.run_path(f"pipeline/{name}.py", run_name="__main__")
        except SystemExit as stop:  # Python prints a text and exits with 1
            code, message = (1, f"{stop.code}\n") if isinstance(stop.code, str) else (stop.code or 0, "")
        out, err = capsys.readouterr()
        return Outcome(code, out, err + message)

    yield run
    signal.signal(signal.SIGTERM, on_termination)


@pytest.fixture
def stage(stage_in, project):
    """The same in the test's own copy of the project."""
    return lambda name, *flags: stage_in(project, name, *flags)


@pytest.fixture
def runs_of():
    """The MLflow runs of a project, newest first."""

    def runs(project):
        client = mlflow.MlflowClient(project.store)
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        return client.search_runs([experiment], order_by=["start_time DESC"])

    return runs
