import importlib
import shutil
from pathlib import Path

import pandas as pd
import pytest

from support import ROOT
from vae.errors import ConfigError
from vae.tracking.store import mlflow  # which configures MLflow before it imports it

SMALL = {
    "data.validation_size": 500,
    "model.hidden_dims": (16,),
    "model.latent_dim": 2,
    "model.prior": "standard",
    "train.epochs": 3,
    "train.batch_size": 500,
    "evaluate.importance_samples": 2,
}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def published(tmp_path, monkeypatch, bundled, empty_store, benchmark):
    """The benchmark in an empty folder, with two tiny recipes, on the bundled digits as if they were all of MNIST."""
    module, recipe = benchmark("published"), benchmark("recipes").Recipe
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


def trained_epochs(monkeypatch):
    """The list to which each epoch is appended that is trained from now on."""
    epochs = []
    monkeypatch.setattr(
        "vae.workflow.tracked_training.describe", lambda record, of: epochs.append(record["epoch"]) or ""
    )
    return epochs


def test_each_recipe_gets_a_row_and_a_run_and_is_not_trained_twice(published, monkeypatch):
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

    before = published.OUTPUT.read_bytes()
    epochs = trained_epochs(monkeypatch)
    published.main(["two"])  # the row of the other recipe stays
    assert published.OUTPUT.read_bytes() == before
    assert epochs == []


def test_an_interrupted_recipe_resumes_in_the_same_run_with_the_same_result(published, monkeypatch):
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
    epochs = trained_epochs(monkeypatch)
    published.main(["one"])
    assert epochs == [2, 3]
    again = pd.read_csv(published.OUTPUT)
    assert again["weights_sha256"].tolist() == whole["weights_sha256"].tolist()
    assert again["ours"].tolist() == whole["ours"].tolist()
    assert len(mlflow.search_runs(experiment_names=["published"])) == 2
    history = pd.read_csv(next(published.RESULTS.glob("one-*")) / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert not list(published.RESULTS.glob("*/checkpoints"))


def test_a_result_is_kept_by_all_values_defaults_included_and_by_the_code(published, monkeypatch, tmp_path):
    assert all((path / "__init__.py").is_file() for path in published.CODE)
    recipe = published.RECIPES[0]
    code = tmp_path / "code"
    code.mkdir()
    (code / "model.py").write_text("x = 1")
    monkeypatch.setattr(published, "CODE", [code])
    before = published.result_folder(recipe, recipe.params)
    for name, value in {"search.n_trials": 3, "render.dpi": 50}.items():
        assert published.result_folder(recipe, recipe.params.replaced({name: value})) == before
    for name, value in {"train.beta": 2.0, "evaluate.chunk_size": 500, "seed": 1}.items():
        assert published.result_folder(recipe, recipe.params.replaced({name: value})) != before, name
    (code / "model.py").write_text("x = 2")
    assert published.result_folder(recipe, recipe.params) != before

    hashed = []
    monkeypatch.setattr(published, "fingerprint", lambda values, paths: hashed.append(values))
    published.result_folder(recipe, recipe.params)
    for section in ("data", "model", "train", "evaluate"):  # a default that changes in config.py is another recipe
        assert hashed[0][section].keys() == getattr(recipe.params, section).model_dump().keys()


def test_a_shortened_recipe_is_printed_but_not_written(published, capsys):
    published.main(["one", "--epochs", "1"])
    assert "run with train.epochs=1" in capsys.readouterr().out
    assert not published.OUTPUT.exists()


def test_invalid_names_numbers_and_images_are_refused(published, monkeypatch, bundled, capsys):
    for arguments, reason in ((["three"], "unknown recipe three, allowed are one, two"), (["--epochs", "0"], "epochs")):
        with pytest.raises(SystemExit):
            published.main(arguments)
        assert reason in capsys.readouterr().err
    monkeypatch.setattr(published, "fetch_dataset", lambda params: bundled[1])
    with pytest.raises(ConfigError, match="all of MNIST"):
        published.main(["one"])


def test_the_recipes_are_valid(benchmark):
    recipes = benchmark("recipes")
    names = [recipe.name for recipe in recipes.RECIPES]
    assert len(set(names)) == len(names)
    for recipe in recipes.RECIPES:
        assert recipe.params.evaluate.importance_samples >= 500
        if recipe.name.startswith("iwae-paper"):
            assert recipe.params.train.epochs <= 328, "a tenth of the paper's"


def test_the_table_of_the_speed_run_has_the_shortest_training_that_reaches_each_target(benchmark):
    speedrun = benchmark("speedrun")
    rows = [("plain", 4, 9.0, 95.0), ("plain", 8, 18.0, 87.9), ("quick", 8, 30.0, 86.0), ("quick", 16, 60.0, 84.4)]
    table = pd.DataFrame(rows, columns=["recipe", "epochs", "seconds", "nll"])
    times = speedrun.times(table).set_index("test NLL")
    assert times.loc["≤ 88.0"].tolist() == ["18 s (8 epochs)", "30 s (8 epochs)"]
    assert times.loc["≤ 84.5"].tolist() == ["not reached", "60 s (16 epochs)"]
    assert times.loc["≤ 83.5"].tolist() == ["not reached", "not reached"]
    figure = speedrun.curves(table)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [2, 2]
