"""The plots of a study."""

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from vae.search.plots import plot_study

SPACE = {"latent_dim": IntDistribution(8, 64), "learning_rate": FloatDistribution(1e-3, 1e-2, log=True)}


def test_parallel_coordinates_have_ticks_and_mark_the_best_trial():
    study = optuna.create_study()
    for score, *values in [(99.0, 8, 1e-3), (92.0, 30, 8e-3), (94.0, 64, 4e-3), (500.0, 50, 2e-3)]:
        attributes = {"curve": [score + 9, score], "kl": 20.0, "reconstruction": score - 20}
        params = dict(zip(SPACE, values, strict=True))
        study.add_trial(create_trial(value=score, params=params, distributions=SPACE, user_attrs=attributes))
    figure = plot_study(study, "−ELBO")["parallel_coordinate"]
    ax, (best,) = figure.axes[0], figure.axes[0].lines
    low, high = ax.get_ylim()
    score, latent_dim, _ = best.get_ydata()
    assert (best.get_color(), score) == ("tab:red", pytest.approx(92))
    assert (latent_dim - low) / (high - low) == pytest.approx((30 - 8) / (64 - 8))
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        assert sum(bottom <= tick <= top for tick in axes.get_yticks()) >= 2
