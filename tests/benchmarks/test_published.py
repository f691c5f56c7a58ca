import importlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from support import ROOT
from vae.errors import ConfigError
from vae.tracking.store import mlflow  # which sets MLflow up before it imports it

SMALL = {
    "data.validation_size": 500,
    "model.hidden_dims": (16,),
    "model.latent_dim": 2,
    "train.epochs": 3,
    "train.batch_size": 500,
    "evaluate.importance_samples": 2,
}


@pytest.fixture
def published(tmp_path, monkeypatch, bundled, empty_store):
    """The benchmark in an empty folder, with two tiny recipes, on the bundled digits as if they were all of MNIST."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("published")
    recipe = importlib.import_module("recipes").Recipe
    folder, record = bundled
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(folder, "data/raw")
    Path("mlruns").mkdir()
    shutil.copy(empty_store, "mlruns")
    monkeypatch.setattr(module, "fetch_dataset", lambda params: record | {"source": "directory"})
    recipes = (
        recipe("one", "someone, table 1", 100.0, SMALL),
        recipe("two", "someone, table 2", 90.0, SMALL | {"seed": 1}),
    )
    monkeypatch.setattr(module, "RECIPES", recipes)
    return module


def trainings(monkeypatch):
    """The epochs that are trained from here on."""
    epochs = []
    monkeypatch.setattr(
        "vae.workflow.tracked_training.describe", lambda record, of: epochs.append(record["epoch"]) or ""
    )
    return epochs


def test_each_recipe_has_a_row_with_its_protocol_and_a_run(published):
    published.main([])
    table = pd.read_csv(published.OUTPUT)
    assert table["recipe"].tolist() == ["one", "two"]
    assert table["published"].tolist() == [100.0, 90.0]
    assert (table["importance_samples"] == 2).all() and (table["epochs"] == 3).all()
    assert table["ours"].between(100, 400).all() and (table["ours"] <= table["neg_elbo"] + 1).all()
    runs = mlflow.search_runs(experiment_names=["published"])
    assert sorted(runs["tags.mlflow.runName"]) == ["one", "two"]
    for row in table.itertuples():
        run = runs[runs["tags.recipe"] == row.recipe].iloc[0]
        assert run["status"] == "FINISHED"
        assert round(run["metrics.test/nll"], 2) == row.ours
        assert run["tags.model.sha256"] == row.weights_sha256


def test_what_has_a_result_is_not_trained_again_and_one_recipe_leaves_the_others_rows(published, monkeypatch):
    published.main([])
    before = published.OUTPUT.read_bytes()
    epochs = trainings(monkeypatch)
    published.main(["two"])
    assert published.OUTPUT.read_bytes() == before
    assert epochs == []


def test_an_interrupted_recipe_goes_on_in_the_same_run_to_the_same_result(published, monkeypatch):
    published.main(["one"])
    whole = pd.read_csv(published.OUTPUT)
    shutil.rmtree(published.RESULTS)
    interrupted = []

    def interrupt(record, epochs):
        interrupted.append(record["epoch"])
        if len(interrupted) == 2:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("vae.workflow.tracked_training.describe", interrupt)
        published.main(["one"])
    epochs = trainings(monkeypatch)
    published.main(["one"])
    assert epochs == [2, 3]
    again = pd.read_csv(published.OUTPUT)
    assert again["weights_sha256"].tolist() == whole["weights_sha256"].tolist()
    assert again["ours"].tolist() == whole["ours"].tolist()
    assert len(mlflow.search_runs(experiment_names=["published"])) == 2
    history = pd.read_csv(next(published.RESULTS.glob("one-*")) / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert not list(published.RESULTS.glob("*/checkpoints"))


def test_a_shortened_recipe_is_printed_and_not_written(published, capsys):
    published.main(["one", "--epochs", "1"])
    assert "run with train.epochs=1" in capsys.readouterr().out
    assert not published.OUTPUT.exists()


def test_bad_names_and_numbers_are_refused(published, capsys):
    for arguments, reason in ((["three"], "unknown recipe three: there are one, two"), (["--epochs", "0"], "from 1")):
        with pytest.raises(SystemExit):
            published.main(arguments)
        assert reason in capsys.readouterr().err


def test_the_bundled_digits_are_no_mnist(published, monkeypatch, bundled):
    monkeypatch.setattr(published, "fetch_dataset", lambda params: bundled[1])
    with pytest.raises(ConfigError, match="all of MNIST"):
        published.main(["one"])


def test_the_recipes_parameters_are_allowed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    recipes = importlib.import_module("recipes")
    names = [recipe.name for recipe in recipes.RECIPES]
    assert len(set(names)) == len(names)
    for recipe in recipes.RECIPES:
        assert recipe.params.evaluate.importance_samples >= 500
        if recipe.name.startswith("iwae-paper"):
            assert recipe.params.train.epochs <= 328, "a tenth of the paper's"


def test_the_speed_runs_table_names_the_shortest_training_that_gets_there(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speedrun = importlib.import_module("speedrun")
    rows = [("plain", 4, 9.0, 95.0), ("plain", 8, 18.0, 87.9), ("quick", 8, 30.0, 86.0), ("quick", 16, 60.0, 84.4)]
    table = pd.DataFrame(rows, columns=["recipe", "epochs", "seconds", "nll"])
    lines = speedrun.times(table).splitlines()
    assert "| ≤ 88.0 | 18 s (8 epochs) | 30 s (8 epochs) |" in lines
    assert "| ≤ 84.5 | not reached | 60 s (16 epochs) |" in lines
    assert "| ≤ 83.5 | not reached | not reached |" in lines
    figure = speedrun.curves(table)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [2, 2]
