"""The benchmark against published results, with tiny recipes."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import published
import speedrun
from recipes import RECIPES, Recipe
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
def project(tmp_path, monkeypatch, bundled, empty_store):
    """An empty folder with two tiny recipes, and the bundled digits as if they were all of MNIST."""
    folder, record = bundled
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "data/raw")
    Path("mlruns").mkdir()
    shutil.copy(empty_store, "mlruns")
    monkeypatch.setattr(published, "fetch_dataset", lambda params: record | {"source": "directory"})
    recipes = (
        Recipe("one", "someone, table 1", 100.0, 128, SMALL),
        Recipe("two", "someone, table 2", 90.0, 5000, SMALL | {"seed": 1}),
    )
    monkeypatch.setattr(published, "RECIPES", recipes)


def test_each_recipe_gets_a_row_and_a_run_and_is_not_trained_twice(project, monkeypatch):
    published.main([])
    table = pd.read_csv(published.OUTPUT)
    assert table["recipe"].tolist() == ["one", "two"]
    assert table["published"].tolist() == [100.0, 90.0]
    assert table["published_samples"].tolist() == [128, 5000]
    assert (table["training_images"] == 3500).all() and set(table["prior"]) == {"standard"}
    assert (table["parameters"] == (784 * 16 + 16) + (16 * 4 + 4) + (2 * 16 + 16) + (16 * 784 + 784)).all()
    assert (table["importance_samples"] == 2).all() and (table["epochs"] == 3).all()
    assert table["ours"].between(100, 400).all() and (table["ours"] <= table["neg_elbo"] + 1).all()
    runs = mlflow.search_runs(experiment_names=["published"]).set_index("tags.recipe").loc[["one", "two"]]
    assert runs["tags.mlflow.runName"].tolist() == ["one", "two"]
    assert (runs["status"] == "FINISHED").all()
    assert runs["metrics.test/nll"].round(2).tolist() == table["ours"].tolist()
    assert runs["tags.model.sha256"].tolist() == table["weights_sha256"].tolist()

    before = published.OUTPUT.read_bytes()
    monkeypatch.setattr(published, "tracked_training", lambda *_, **__: pytest.fail("trained again"))
    published.main(["two"])  # the row of the other recipe stays
    assert published.OUTPUT.read_bytes() == before


def test_the_row_of_several_seeds_has_their_mean_and_standard_deviation(project, monkeypatch):
    monkeypatch.setattr(published, "RECIPES", (Recipe("one", "someone", 100.0, 128, SMALL, seeds=3),))
    published.main([])
    row = pd.read_csv(published.OUTPUT).iloc[0]
    each = mlflow.search_runs(experiment_names=["published"])["metrics.test/nll"].round(2)
    assert len(each) == row["seeds"] == 3 and each.nunique() == 3
    assert row["ours"] == pytest.approx(each.mean(), abs=0.006)
    assert row["spread"] == pytest.approx(each.std(), abs=0.006)


def test_a_result_belongs_to_all_values_defaults_included_and_to_the_code(monkeypatch, tmp_path):
    assert all((path / "__init__.py").is_file() for path in published.CODE)
    recipe = Recipe("one", "someone", 100.0, 128, SMALL)
    code = tmp_path / "model.py"
    code.write_text("x = 1")
    monkeypatch.setattr(published, "CODE", [tmp_path])
    before = published.result_folder(recipe, recipe.params)
    for name, value in {"search.n_trials": 3, "render.dpi": 50}.items():
        assert published.result_folder(recipe, recipe.params.replaced({name: value})) == before
    for name, value in {"train.beta": 2.0, "evaluate.chunk_size": 500, "seed": 1}.items():
        assert published.result_folder(recipe, recipe.params.replaced({name: value})) != before, name
    code.write_text("x = 2")
    assert published.result_folder(recipe, recipe.params) != before

    hashed = []
    monkeypatch.setattr(published, "fingerprint", lambda values, paths: hashed.append(values))
    published.result_folder(recipe, recipe.params)
    for section in ("data", "model", "train", "evaluate"):
        assert hashed[0][section].keys() == getattr(recipe.params, section).model_dump().keys()


def test_a_shortened_recipe_is_printed_but_not_written(project, capsys):
    published.main(["one", "--epochs", "1"])
    assert "run with train.epochs=1" in capsys.readouterr().out
    assert not published.OUTPUT.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["three"], "unknown recipe three, allowed are one, two"), (["--epochs", "0"], "epochs is 0")],
)
def test_invalid_names_and_numbers_are_refused(arguments, reason, project, capsys):
    with pytest.raises(SystemExit):
        published.main(arguments)
    assert reason in capsys.readouterr().err


def test_the_bundled_digits_are_refused(project, monkeypatch, bundled):
    monkeypatch.setattr(published, "fetch_dataset", lambda params: bundled[1])
    with pytest.raises(ConfigError, match="all of MNIST"):
        published.main(["one"])


def test_the_recipes_are_valid_and_have_names_of_their_own():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert all(recipe.params.evaluate.importance_samples >= 500 for recipe in RECIPES)


def test_the_table_of_the_speed_run_has_the_shortest_training_that_reaches_each_target():
    rows = [("plain", 4, 9.0, 95.0), ("plain", 8, 18.0, 87.9), ("quick", 8, 30.0, 86.0), ("quick", 16, 60.0, 84.4)]
    table = pd.DataFrame(rows, columns=["recipe", "epochs", "seconds", "nll"])
    times = speedrun.times(table).set_index("test NLL")
    assert times.loc["≤ 88.0"].tolist() == ["18 s (8 epochs)", "30 s (8 epochs)"]
    assert times.loc["≤ 84.5"].tolist() == ["not reached", "60 s (16 epochs)"]
    figure = speedrun.curves(table)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [2, 2]
