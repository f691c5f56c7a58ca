"""The plots of a study."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from vae.search.plots import plot_study

SPACE = {
    "activation": CategoricalDistribution(("silu", "relu")),
    "latent_dim": IntDistribution(8, 64),
    "learning_rate": FloatDistribution(1e-3, 1e-2, log=True),
}
SCORES = {("silu", 8, 1e-3): 99.0, ("relu", 30, 8e-3): 92.0, ("silu", 64, 4e-3): 94.0, ("relu", 50, 2e-3): 500.0}


def test_parallel_coordinates_have_ticks_and_mark_the_best_trial():
    study = optuna.create_study()
    for values, score in SCORES.items():
        attributes = {"curve": [score + 9, score], "kl": 20.0, "reconstruction": score - 20}
        params = dict(zip(SPACE, values, strict=True))
        study.add_trial(create_trial(value=score, params=params, distributions=SPACE, user_attrs=attributes))
    figure = plot_study(study, "−ELBO")["parallel_coordinate"]
    figure.draw_without_rendering()
    ax = figure.axes[0]
    (best,) = ax.lines
    assert best.get_color() == "tab:red"
    by_name = dict(zip([text.get_text() for text in ax.get_xticklabels()], best.get_ydata(), strict=True))
    low, high = ax.get_ylim()
    assert by_name["score"] == pytest.approx(92)
    assert (by_name["latent_dim"] - low) / (high - low) == pytest.approx((30 - 8) / (64 - 8))
    for axes in figure.axes:
        bottom, top = sorted(axes.get_ylim())
        labels = [text.get_text() for text in axes.get_yticklabels() if bottom <= text.get_position()[1] <= top]
        assert len([label for label in labels if label]) >= 2
