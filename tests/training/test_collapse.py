"""Posterior collapse: short, small versions of the defaults and of the convolutional recipes learn, with two seeds."""

import pytest
import torch

from recipes import CONV, LADDER
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import Split, load
from vae.device import Hardware
from vae.models.vae import VAE
from vae.training.loop import fit

pytestmark = pytest.mark.slow
SMALL = {"model.latent_dim": 10, "model.prior_width": 16, "train.batch_size": 16, "train.epochs": 5}
# The part of a recipe in which latents can collapse.
ELBO_ONLY = {"train.objective": "elbo", "train.elbo_epochs": 0, "train.doubly_reparameterized": False}
SMALL_CONV = SMALL | ELBO_ONLY | {"model.hidden_dims": (4, 8, 8), "model.dense_dims": (32, 32)}
RECIPES = {
    "defaults": SMALL | {"model.hidden_dims": (64, 64)},
    "conv": CONV | SMALL_CONV,
    "ladder": LADDER | SMALL_CONV,
}


def best_and_mean_image(raw, recipe, seed):
    """The best validation −ELBO after 5 epochs of 1,500 digits, and that of the mean image."""
    images, params = load(raw, "train").images[:2000], Params().replaced(recipe)
    training, validation = (Split(part, torch.zeros(len(part))) for part in (images[:1500], images[1500:]))
    model = VAE.from_params(params.model, seed)
    model.initialize_from_data(training.images)
    mean = (binarize_once(validation.images, "dynamic") / 255).mean(0)
    constant = torch.special.entr(mean).sum() + torch.special.entr(1 - mean).sum()
    cpu = Hardware(torch.device("cpu"), "fp32", compile=False)
    return fit(model, training, validation, params.train, cpu, seed=seed).best["val/neg_elbo"], constant.item()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_short_training_learns(recipe, seed, bundled):
    neg_elbo, mean_image = best_and_mean_image(bundled[0], RECIPES[recipe], seed)
    assert neg_elbo < 0.9 * mean_image


def test_a_network_that_collapses_warns(bundled, monkeypatch):
    monkeypatch.setattr("vae.models.networks.INITIAL_LOGVAR", 0.0)
    collapsing = {"model.activation": "relu", "model.initialization": "default", "train.kl_warmup_epochs": 0}
    with pytest.warns(UserWarning, match="no better than that of the data's mean image"):
        neg_elbo, mean_image = best_and_mean_image(bundled[0], RECIPES["conv"] | collapsing, 0)
    assert neg_elbo > 0.99 * mean_image
