"""The benchmark under load, at small sizes."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import load
from vae.errors import VAEError


@pytest.fixture
def output(monkeypatch, tmp_path):
    """Where the benchmark writes its table, the only file that it may leave behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "OUTPUT", tmp_path / "load.csv")
    yield tmp_path / "load.csv"
    assert {path.name for path in tmp_path.iterdir()} <= {"load.csv"}


def measured(monkeypatch, output, part):
    """The table of one part, with a small size as its full size."""
    monkeypatch.setattr(load, "SIZES", {"processes": 2, "epochs": 2, "trials": 20, "history": 60, "runs": 11})
    monkeypatch.setattr(load, "PARTS", {part: load.PARTS[part]})
    load.main([])
    table = pd.read_csv(output)
    assert (table["what"] == part).all() and (table["value"] > 0).all()
    return table


@pytest.mark.slow
def test_parallel_loggers_lose_nothing(output, monkeypatch):
    table = measured(monkeypatch, output, "many_loggers")
    assert (table["compared_with"] == "1 process").all() and (table["ratio"] > 0).all()


def test_early_and_late_trials_of_a_long_study_are_compared(output, monkeypatch):
    samples = {"ended": range(20), "cpu": [n * n for n in range(20)], "parent": 700, "worker": range(100, 120)}
    monkeypatch.setattr(load, "prepare_study", lambda trials: None)
    monkeypatch.setattr(load, "watched_search", lambda: (pd.DataFrame(samples), 3.0))
    table = measured(monkeypatch, output, "long_study")
    assert table["ratio"].dropna().tolist() == [1.0, 37.0, 1.0, 1.19]
    assert table["value"].tolist() == [1.0, 37.0, 700.0, 119.0, 3.0]


def test_a_lost_metric_is_an_error(empty_store):
    with load.empty_project():
        Path("mlruns").mkdir()
        shutil.copy(empty_store, "mlruns")
        load.log_run("logger", 2)
        load.check_all_logged(1, 2)
        with pytest.raises(VAEError, match=r"not all was logged: 1 runs of 2; logger: train/neg_elbo of 2 epochs"):
            load.check_all_logged(2, 3)


def test_a_smaller_run_is_printed_but_not_written(output, monkeypatch, capsys):
    monkeypatch.setattr(load, "PLOTS", 1)
    load.main(["long_history", "--history", "60"])
    assert "| long_history | 60 epochs | training_history.png |" in capsys.readouterr().out
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["nothing"], "unknown part nothing"), (["--trials", "5"], "--trials is 5, allowed is 20")],
)
def test_invalid_names_and_sizes_are_refused(arguments, reason, output, capsys):
    with pytest.raises(SystemExit):
        load.main(arguments)
    assert reason in capsys.readouterr().err
