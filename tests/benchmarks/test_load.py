import importlib
from contextlib import nullcontext

import pandas as pd
import pytest
import requests

from support import ROOT

TINY = {"processes": 2, "epochs": 2, "trials": 20, "history": 60, "runs": 11}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """The benchmark, which leaves the current folder alone and its own results as they are."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("load")
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "load.csv")
    yield module
    assert {path.name for path in tmp_path.iterdir()} <= {"load.csv"}


def measured(load, monkeypatch, part):
    """The table of one part at a tiny size, as if that were the whole benchmark."""
    monkeypatch.setattr(load, "SIZES", TINY)
    monkeypatch.setattr(load, "PARTS", {part: load.PARTS[part]})
    load.main([])
    table = pd.read_csv(load.OUTPUT)
    assert (table["what"] == part).all() and (table["value"] > 0).all()
    return table.set_index("figure")


@pytest.mark.slow
def test_loggers_in_processes_of_their_own_lose_nothing(load, monkeypatch):
    table = measured(load, monkeypatch, "many_loggers")
    assert (table["compared_with"] == "1 process").all() and (table["ratio"] > 0).all()


def test_a_long_studys_trials_are_compared_early_and_late(load, monkeypatch):
    looks = pd.DataFrame(
        {"ended": range(20), "cpu": [n * n for n in range(20)], "parent": 700, "worker": range(100, 120)}
    )
    monkeypatch.setattr(load, "prepare_study", lambda trials: None)
    monkeypatch.setattr(load, "watched_search", lambda: (looks, 3.0))
    table = measured(load, monkeypatch, "long_study")
    assert table["ratio"].dropna().tolist() == [1.0, 37.0, 1.0, 1.19]
    assert table["value"].tolist() == [1.0, 37.0, 700.0, 119.0, 3.0]


def test_a_crowded_store_is_asked_for_its_first_page(load, monkeypatch):
    counts = []

    def post(url, json, timeout):
        assert url == "http://server/ajax-api/2.0/mlflow/runs/search" and json["max_results"] == 100
        counts.append(len(load.store()[0].search_runs(json["experiment_ids"])))
        response = requests.Response()
        response.status_code = 200
        return response

    monkeypatch.setattr(load, "server", lambda: nullcontext("http://server"))
    monkeypatch.setattr(load.requests, "post", post)
    monkeypatch.setattr(load, "logged_side_by_side", lambda processes, epochs: [load.log_run("one more", epochs)])
    table = measured(load, monkeypatch, "crowded_store")
    assert len(table) == 3 and (table["compared_with"] == "10 runs").all()
    assert sorted(set(counts)) == [10, 12]  # with the one that was opened in between


def test_what_was_lost_is_an_error(load):
    with load.empty_project():
        load.log_run("logger", 2)
        load.require_all_logged(1, 2)
        with pytest.raises(SystemExit, match=r"not all was logged: 1 runs of 2; logger: train/neg_elbo of 2 epochs"):
            load.require_all_logged(2, 3)


def test_a_smaller_run_is_printed_and_not_written(load, monkeypatch, capsys):
    monkeypatch.setattr(load, "DRAWINGS", 1)
    load.main(["long_history", "--history", "60"])
    assert "| long_history | 60 epochs | training_history.png |" in capsys.readouterr().out
    assert not load.OUTPUT.exists()


def test_bad_names_and_sizes_are_refused(load, capsys):
    for arguments, reason in ((["nothing"], "unknown part nothing"), (["--trials", "5"], "too small: --trials")):
        with pytest.raises(SystemExit):
            load.main(arguments)
        assert reason in capsys.readouterr().err
