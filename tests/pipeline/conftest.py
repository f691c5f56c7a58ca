"""Stages that run in the test's process, and a project's runs."""

import runpy
import sys

import pytest

from vae.tracking.store import EXPERIMENT, mlflow


@pytest.fixture
def stage_in(monkeypatch, called):
    """Runs a stage of a project as `python pipeline/NAME.py` does."""

    def run(project, name, *flags):
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "argv", [f"pipeline/{name}.py", *flags])
        return called(lambda: runpy.run_path(f"pipeline/{name}.py", run_name="__main__"))

    return run


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
