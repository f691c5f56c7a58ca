"""Annealed importance sampling against sums over a grid of latents, and against importance sampling."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from vae.config import EvaluateParams, ModelParams
from vae.evaluation.ais import AIS, sample_images
from vae.evaluation.likelihood import evaluate
from vae.models.vae import VAE

PIXELS = 9
PRIORS = {
    "standard": {},
    "gaussian_mixture": {"prior_components": 4},
    "vampprior": {"prior_components": 4},
    "realnvp": {"prior_couplings": 4, "prior_width": 6},
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed))


def model_with(prior, latents=2, pixels=PIXELS, **params):
    """A model whose posteriors are far from its prior."""
    params = {"hidden_dims": (6,), "latent_dim": latents, "prior": prior, **PRIORS[prior], **params}
    model = VAE.from_params(ModelParams(**params), 0, pixels).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * normals(*parameter.shape, seed=100 + index))
        model.decoder.head.weight.mul_(4)
    return model


@torch.no_grad()
def exact_nll(model, x):
    """−log ∫ p(z) p(x|z) dz with two latents, as a sum over a grid, [N]."""
    side = torch.linspace(-12, 12, 241)
    z = torch.cartesian_prod(side, side)
    log_prior = model.prior.log_density(z).double() + 2 * math.log(0.1)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-3), "the prior must fit the grid"
    logits = model.decode(z).double()
    log_likelihood = x.double() @ logits.T - softplus(logits).sum(1)
    return -torch.logsumexp(log_prior + log_likelihood, 1)


@pytest.mark.parametrize("prior", PRIORS)
def test_both_directions_give_the_exact_likelihood(prior):
    model = model_with(prior)
    x, u = sample_images(model, 30, seeded(3))
    exact, ais = exact_nll(model, x), AIS(model, seeded(4), chains=40, temperatures=60, leapfrog_steps=4)
    assert exact.std() > 0.5
    for found in (ais.nll(x), ais.nll_from_posterior(x, u)):
        torch.testing.assert_close(found, exact, atol=0.3, rtol=0)
        assert (found - exact).mean().abs() < 0.03


def test_with_few_temperatures_the_exact_likelihood_lies_between_the_two():
    model = model_with("gaussian_mixture")
    x, u = sample_images(model, 400, seeded(3))
    exact, ais = exact_nll(model, x), AIS(model, seeded(4), chains=1, temperatures=3)
    for error in (ais.nll(x) - exact, exact - ais.nll_from_posterior(x, u)):
        assert error.mean() > 4 * error.std() / math.sqrt(400)


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_further_stochastic_layers_are_integrated_over_as_by_importance_sampling(layers):
    model = model_with("standard", 1, hidden_dims=(6, 5), lower_latent_dims=layers)
    x, u = sample_images(model, 10, seeded(3))
    assert u.shape == (10, 1 + sum(layers))
    samples = EvaluateParams(importance_samples=20_000, chunk_size=20_000)
    images = evaluate(model, (255 * x).to(torch.uint8), torch.zeros(10, dtype=torch.int64), samples).images
    assert images["effective_samples"].min() > 400, "the weights must not vary too much for an estimate"
    weighted = torch.tensor(images["nll"].to_list(), dtype=torch.float64)
    ais = AIS(model, seeded(4), chains=40, temperatures=60, leapfrog_steps=4)
    for found in (ais.nll(x), ais.nll_from_posterior(x, u)):
        torch.testing.assert_close(found, weighted, atol=0.3, rtol=0)
        assert (found - weighted).mean().abs() < 0.06


def test_generated_images_are_those_of_the_model_and_the_seed_determines_everything():
    model = model_with("realnvp", 2)
    x, u = sample_images(model, 4000, seeded(1))
    with torch.no_grad():
        probabilities = model.decode(u).sigmoid()
    error = (x - probabilities).mean(0) / (probabilities * (1 - probabilities)).mean(0).sqrt() * math.sqrt(4000)
    assert error.abs().max() < 4.5
    assert set(x.unique().tolist()) == {0.0, 1.0}
    first, again, other = (AIS(model, seeded(seed), temperatures=5).nll(x[:5]) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
