"""The finals of a search: what is trained, what it is compared by, and who wins."""

import math

import pandas as pd
import pytest
from ruamel.yaml import YAML

from search_support import small
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.errors import VAEError
from vae.models.vae import VAE
from vae.search import finals, report, workers
from vae.search.space import current_values
from vae.training.loop import fit

EPOCHS = 3


@pytest.fixture
def held(here):
    """Search, finals and their table, of the values of params.yaml and two others."""
    params = small(n_trials=3, epochs=1, finalists=2, train__epochs=EPOCHS, train__lr_schedule="constant")
    search = here.search(params)
    storage = here.worker(params).storage
    study, final = finals.open_finals(search, params, here.dataset, storage, parent="")
    here.worker(final).run()
    return params, search, study, finals.table(search, study, params)


def test_the_best_trials_and_the_values_of_params_yaml_are_trained_in_full_with_three_seeds(held, here):
    params, search, study, table = held
    trials = [trial.params for trial in study.trials]
    assert len(trials) == 9
    for values in (trial.params for trial in search.trials):  # all three, of which one has the values of params.yaml
        assert [trial["seed"] for trial in trials if trial.items() >= values.items()] == [0, 1, 2]
    assert {len(trial.user_attrs["curve"]) for trial in study.trials} == {EPOCHS}
    again, final = finals.open_finals(search, params, here.dataset, here.worker(params).storage, parent="")
    assert (len(again.trials), final.search.n_trials) == (9, 9), "a second call queues nothing"
    assert list(table["mean"]) == sorted(table["mean"])
    assert list(table["current"]).count(True) == 1


def test_the_scores_are_those_of_full_trainings_with_these_values_and_seeds(held, here):
    params, _, _, table = held
    row = table[~table["current"]].iloc[0]
    train, validation = split_validation(load(here.raw, "train"), params.data.validation_size)
    scores = []
    for seed in (0, 1, 2):
        chosen = params.replaced(
            {
                "seed": seed,
                "model.latent_dim": int(row["latent_dim"]),
                "train.beta": float(row["beta"]),
                "train.learning_rate": float(row["learning_rate"]),
            }
        )
        model = VAE.from_params(chosen.model, seed)
        model.initialize_from_data(train.images)
        fitted = fit(model, train, validation, chosen.train, resolve(chosen.train), seed=seed)
        scores.append(fitted.best["val/neg_elbo"])
    assert row["mean"] == pytest.approx(sum(scores) / 3, rel=1e-6)
    assert row["spread"] == pytest.approx(pd.Series(scores).std(), rel=1e-3)


def candidates(**leads):
    """A table of finals in which params.yaml, trial 0, has 100 ± 0.2."""
    rows = [{"trial": 0, "mean": 100.0, "spread": 0.2, "current": True}]
    for number, (lead, spread) in enumerate(leads.values(), 1):
        rows.append({"trial": number, "mean": 100.0 - lead, "spread": spread, "current": False})
    return pd.DataFrame(rows).sort_values("mean", ignore_index=True)


@pytest.mark.parametrize(
    ("leads", "trial"),
    [
        ({"a": (0.5, 0.1)}, 1),
        ({"a": (0.5, 0.1), "b": (0.6, 0.1)}, 2),
        ({"a": (0.19, 0.1)}, None),  # less than the spread of params.yaml
        ({"a": (0.5, 0.6)}, None),  # less than its own spread
        ({"a": (-1.0, 0.1)}, None),
        ({}, None),
    ],
)
def test_a_finalist_wins_by_more_than_the_spread_of_seeds(leads, trial):
    assert finals.winner(candidates(**leads)) == trial


def test_without_trainings_of_params_yaml_the_best_finalist_wins_and_without_any_none_does():
    table = candidates(a=(-1.0, 0.1), b=(-2.0, 0.1))
    assert finals.winner(table[~table["current"]].reset_index(drop=True)) == 1
    assert finals.winner(table[:0]) is None


def test_equal_trials_are_one_finalist_and_a_candidate_with_a_failed_seed_is_left_out(here):
    params = small(n_trials=4, epochs=1, finalists=2, space={"latent_dim": [2, 3]}, train__epochs=1)
    search = here.search(params)
    assert len(search.trials) == 4
    assert [values["latent_dim"] for values in finals.candidates(search, params).values()] == [2, 3]
    study, final = finals.open_finals(search, params, here.dataset, here.worker(params).storage, parent="")
    here.worker(final).run()
    kept = [trial for trial in study.trials if trial.params != {"latent_dim": 3, "seed": 1}]
    study.get_trials = lambda **options: kept
    table = finals.table(search, study, params)
    assert table["latent_dim"].tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"space": {"seed": [0, 1]}}, "seed can't be searched"),
        ({"train__objective": "iwae", "train__elbo_epochs": 3, "epochs": 2}, "elbo_epochs is 3"),
    ],
)
def test_what_no_trial_could_be_trained_with_is_refused_before_the_first(changes, reason, here):
    params = small(**changes)
    with pytest.raises(VAEError, match=reason):
        workers.search(params, here.dataset, here.raw, report.FOLDER)
    assert not (here.root / "search/study.journal").exists()


@pytest.mark.parametrize("spread", [0.0, 1e9])
def test_the_best_values_are_the_winners_or_those_of_params_yaml(held, spread):
    params, search, _, table = held
    table["mean"] = [1.0 if current else 2.0 for current in table["current"]]
    if not spread:
        table["mean"] = 3 - table["mean"]
    table = table.assign(spread=spread).sort_values("mean", ignore_index=True)
    report.write(search, params, finalists=table)
    text = (report.FOLDER / report.BEST).read_text()
    sections = YAML(typ="safe").load(text)
    found = {**sections["model"], **sections["train"]}
    chosen = table.iloc[0] if not spread else current_values(params)
    assert found == pytest.approx({name: chosen[name] for name in params.search.space})
    assert ("no values beat those of params.yaml" in text) == bool(spread)
    number = 0 if spread else table["trial"][0]
    assert text.startswith(f"# Trial {number} of 3 ")
    logged = report.summary(search, params, table)
    assert logged["best/trial"] == number and logged["best/latent_dim"] == found["latent_dim"]
    assert len(pd.read_csv(report.FOLDER / "finals.csv")) == len(table)
    assert "finals:" in report.closing_table(search, params, finalists=table)


def test_without_a_winner_the_values_of_params_yaml_stay_the_best_where_no_trial_has_them(held):
    params, search, *_ = held
    adopted = params.replaced({"train.beta": 1.234})
    table = pd.DataFrame([[-1, *current_values(adopted).values(), 1.0, 0.1, True]], columns=finals.columns(adopted))
    report.write(search, adopted, finalists=table)
    text = (report.FOLDER / report.BEST).read_text()
    assert text.startswith("# The values of params.yaml, which no complete trial has (study vae-")
    assert YAML(typ="safe").load(text)["train"]["beta"] == 1.234
    logged = report.summary(search, adopted, table)
    assert (logged["best/beta"], logged["best/trial"]) == (1.234, "params.yaml")
    assert math.isnan(logged["best/neg_elbo"])
