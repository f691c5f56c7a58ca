"""What a search writes, from a study whose trials were not trained."""

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from PIL import Image
from ruamel.yaml import YAML

from search_support import small
from vae.errors import SearchError
from vae.search import report
from vae.search.plots import plot_study
from vae.search.space import current_values, distributions

SPACE = {
    "latent_dim": {"low": 2, "high": 8},
    "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "hidden_dims": [[16], [8, 8]],
    "max_grad_norm": [None, 1.0],
}
PLOTS = {
    *("optimization_history", "param_importances", "slice", "parallel_coordinate", "intermediate_values"),
    "pareto_front",
}
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


def trial_of(params, state, number=0, **values):
    """A trial with the curve 120, 100 − number; its KL is 20 − 3 · number."""
    complete, kl = state is COMPLETE, 20.0 - 3 * number
    curve = {COMPLETE: [120.0, 100.0 - number], PRUNED: [130.0], FAIL: []}[state]
    metrics = {"neg_elbo": min(curve), "reconstruction": min(curve) - kl, "kl": kl, "best_epoch": 2} if curve else {}
    values = ([metrics["reconstruction"], kl] if values.pop("two", False) else [min(curve)]) if complete else None
    return create_trial(
        state=state,
        values=values,
        params=current_values(params) | {"latent_dim": 2 + number},
        distributions=distributions(params),
        intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={"curve": curve, "seconds": 3.0, **metrics} | ({} if curve else {"reason": "DivergedError: so"}),
    )


def study_of(params, complete=4, two=False):
    study = optuna.create_study(directions=["minimize"] * (2 if two else 1))
    study.add_trials([trial_of(params, COMPLETE, number, two=two) for number in range(complete)])
    study.add_trials([trial_of(params, state, 5) for state in (PRUNED, FAIL)])
    return study


def test_the_results_are_written_with_the_same_bytes_every_time(here):
    params = small(space=SPACE)
    study = study_of(params)
    written = report.write(study, params)
    first = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in report.write(study, params)} == first
    assert {path.stem for path in written if path.suffix == ".png"} == PLOTS
    for path in written:
        if path.suffix == ".png":
            assert np.asarray(Image.open(path).convert("L")).std() > 5
    rows = pd.read_csv("search/trials.csv")
    assert list(rows["state"]) == ["COMPLETE"] * 4 + ["PRUNED", "FAIL"]
    assert list(rows["neg_elbo"][:5]) == [100.0, 99.0, 98.0, 97.0, 130.0]
    assert list(rows["current"]) == [True, *[False] * 5] and rows["reason"][5] == "DivergedError: so"
    assert np.allclose(rows["neg_elbo"][:4], rows["reconstruction"][:4] + rows["kl"][:4])
    best = YAML(typ="safe").load(report.FOLDER / report.BEST)
    assert best["model"] == {"latent_dim": 5, "hidden_dims": [16]}
    assert best["train"] == {"learning_rate": params.train.learning_rate, "max_grad_norm": None}


@pytest.mark.parametrize(("complete", "two"), [(1, False), (4, True)])
def test_one_trial_and_two_objectives_can_be_plotted(complete, two):
    figures = plot_study(study_of(small(space=SPACE), complete, two), "−ELBO")
    assert set(figures) == PLOTS
    points = [ax.get_offsets() for ax in figures["pareto_front"].axes[0].collections]
    assert np.concatenate(points).tolist() == [[20.0 - 3 * n, 80.0 + 2 * n] for n in range(complete)]


def test_plots_show_scores_in_nats_log_axes_choices_and_pruned_trials():
    figures = plot_study(study_of(small(space=SPACE)), "−ELBO")
    history = figures["optimization_history"].axes[0]
    assert history.get_ylabel() == "validation −ELBO, nats per image"
    assert history.collections[0].get_offsets().tolist() == [[n, 100.0 - n] for n in range(4)]
    panels = {ax.get_xlabel(): ax for ax in figures["slice"].axes}
    assert panels["learning_rate"].get_xscale() == "log" and panels["latent_dim"].get_xscale() == "linear"
    assert [text.get_text() for text in panels["max_grad_norm"].get_xticklabels()] == ["None"]
    lines = figures["intermediate_values"].axes[0].get_lines()
    assert [line.get_color() for line in lines] == ["tab:blue"] * 3 + ["tab:red", "0.6"]
    assert [len(line.get_xdata()) for line in lines] == [2, 2, 2, 2, 1]


def test_an_outlier_does_not_squeeze_the_other_trials():
    params = small(space=SPACE)
    study = study_of(params, 6)
    bad = trial_of(params, COMPLETE)
    bad.user_attrs |= {"curve": [1e6, 1e6], "neg_elbo": 1e6, "reconstruction": 1e6}
    study.add_trial(bad)
    for name, figure in plot_study(study, "−ELBO").items():
        if name != "param_importances":
            assert figure.axes[0].get_ylim()[1] < 200, name


def test_the_closing_table_compares_the_best_with_params_yaml():
    params = small(space=SPACE)
    text = report.closing_table(study_of(params), params)
    table = [line.split() for line in text.splitlines()]
    assert table[0][:2] == ["trial", "neg_elbo"]
    assert [row[1] for row in table[1:5]] == ["97", "98", "99", "100"]
    assert "trial 3 beats params.yaml (trial 0, 100.00) by 3.00 nats" in text
    assert "6 trials, 1 pruned, 1 failed" in text
    usual = small()
    assert max(map(len, report.closing_table(study_of(usual), usual).splitlines())) <= 80
    best = small(space=SPACE, model__latent_dim=5)
    assert "no trial beats the values of params.yaml" in report.closing_table(study_of(params), best)


def test_without_a_complete_trial_nothing_is_written(here):
    with pytest.raises(SearchError, match="none of the 2 trials is complete"):
        report.write(study_of(small(space=SPACE), 0), small(space=SPACE))
    assert not report.FOLDER.exists()
