import importlib
import shutil
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import pytest
import requests

from support import ROOT
from vae.errors import VAEError

TINY = {"processes": 2, "epochs": 2, "trials": 20, "history": 60, "runs": 11}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """The benchmark; it must leave the current folder and the committed results as they are."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("load")
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "load.csv")
    yield module
    assert {path.name for path in tmp_path.iterdir()} <= {"load.csv"}


@pytest.fixture
def quick_store(load, monkeypatch, empty_store):
    """Temporary projects start with MLflow's database, which takes seconds to create."""
    empty_project = load.empty_project

    @contextmanager
    def project():
        with empty_project():
            Path("mlruns").mkdir()
            shutil.copy(empty_store, "mlruns")
            yield

    monkeypatch.setattr(load, "empty_project", project)


def measured(load, monkeypatch, part):
    """The table of one part at a tiny size, which counts as the full size here."""
    monkeypatch.setattr(load, "SIZES", TINY)
    monkeypatch.setattr(load, "PARTS", {part: load.PARTS[part]})
    load.main([])
    table = pd.read_csv(load.OUTPUT)
    assert (table["what"] == part).all() and (table["value"] > 0).all()
    return table.set_index("figure")


@pytest.mark.slow
def test_parallel_loggers_lose_nothing(load, monkeypatch):
    table = measured(load, monkeypatch, "many_loggers")
    assert (table["compared_with"] == "1 process").all() and (table["ratio"] > 0).all()


def test_early_and_late_trials_of_a_long_study_are_compared(load, monkeypatch):
    samples = pd.DataFrame(
        {"ended": range(20), "cpu": [n * n for n in range(20)], "parent": 700, "worker": range(100, 120)}
    )
    monkeypatch.setattr(load, "prepare_study", lambda trials: None)
    monkeypatch.setattr(load, "watched_search", lambda: (samples, 3.0))
    table = measured(load, monkeypatch, "long_study")
    assert table["ratio"].dropna().tolist() == [1.0, 37.0, 1.0, 1.19]
    assert table["value"].tolist() == [1.0, 37.0, 700.0, 119.0, 3.0]


def test_the_first_page_of_a_crowded_store_is_requested(load, quick_store, monkeypatch):
    counts = []

    def post(url, json, timeout):
        assert url == "http://server/ajax-api/2.0/mlflow/runs/search" and json["max_results"] == 100
        counts.append(len(load.store()[0].search_runs(json["experiment_ids"])))
        response = requests.Response()
        response.status_code = 200
        return response

    monkeypatch.setattr(load, "server", lambda: nullcontext("http://server"))
    monkeypatch.setattr(load.requests, "post", post)
    monkeypatch.setattr(load, "log_in_parallel", lambda processes, epochs: [load.log_run("one more", epochs)])
    table = measured(load, monkeypatch, "crowded_store")
    assert len(table) == 3 and (table["compared_with"] == "10 runs").all()
    assert sorted(set(counts)) == [10, 12]  # 11, and the one that was opened in between


def test_a_lost_metric_is_an_error(load, quick_store):
    with load.empty_project():
        load.log_run("logger", 2)
        load.check_all_logged(1, 2)
        with pytest.raises(VAEError, match=r"not all was logged: 1 runs of 2; logger: train/neg_elbo of 2 epochs"):
            load.check_all_logged(2, 3)


def test_a_smaller_run_is_printed_but_not_written(load, monkeypatch, capsys):
    monkeypatch.setattr(load, "PLOTS", 1)
    load.main(["long_history", "--history", "60"])
    assert "| long_history | 60 epochs | training_history.png |" in capsys.readouterr().out
    assert not load.OUTPUT.exists()


def test_invalid_names_and_sizes_are_refused(load, capsys):
    for arguments, reason in (
        (["nothing"], "unknown part nothing"),
        (["--trials", "5"], "--trials is 5, allowed is 20"),
    ):
        with pytest.raises(SystemExit):
            load.main(arguments)
        assert reason in capsys.readouterr().err
