"""The parts of the KL against closed forms, mixtures of torch.distributions, and Monte Carlo."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from vae.config import ModelParams
from vae.evaluation.kl_decomposition import aggregate_log_density, is_at_ceiling, split_kl
from vae.models.priors import GaussianMixture
from vae.models.vae import VAE


def model_of(latents, **prior):
    return VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=latents, **({"prior": "standard"} | prior)), 0)


def posteriors(n, latents, seed=10):  # not the seed of `split_kl`'s samples
    generator = torch.Generator().manual_seed(seed)
    mu = 1.5 * torch.randn(n, latents, generator=generator) + 0.3
    return mu, torch.randn(n, latents, generator=generator) - 1


def test_the_densities_are_those_of_torchs_mixtures_whatever_the_chunks():
    mu, logvar = posteriors(60, 3)
    z = mu[:37] + torch.exp(0.5 * logvar[:37]) * torch.randn(37, 3, generator=torch.Generator().manual_seed(1))
    weights, normals = Categorical(torch.ones(60)), Normal(mu.double(), (0.5 * logvar).exp().double())
    joint = MixtureSameFamily(weights, Independent(normals, 1)).log_prob(z.double())
    marginals = MixtureSameFamily(
        Categorical(torch.ones(3, 60)), Normal(normals.mean.T.contiguous(), normals.stddev.T.contiguous())
    ).log_prob(z.double())
    for pairs_at_once in (1, 60 * 7, 10**6):
        found = aggregate_log_density(z, mu, logvar, pairs_at_once)
        torch.testing.assert_close(found, (joint.float(), marginals.float()), rtol=0, atol=2e-5)


def test_gaussian_means_with_equal_variances_have_the_closed_forms_of_a_gaussian():
    """With means from N(m, C) and posterior covariance D, q(z) is about N(m, C + D)."""
    n, latents = 8000, 2
    mean, spread = torch.tensor([0.5, -1.0]), torch.tensor([[2.0, 1.5], [1.5, 2.0]])
    variance = torch.tensor([0.3, 0.5])
    torch.manual_seed(10)  # not the seed of `split_kl`'s samples
    mu = MultivariateNormal(mean, spread).sample((n,))
    found = split_kl(model_of(latents), mu, variance.log().expand(n, latents))

    total = spread + variance.diag()
    log_det = torch.logdet(total)
    one_dimension = kl_divergence(Normal(mean, total.diag().sqrt()), Normal(0.0, 1.0))
    expected = {
        "mutual_information": 0.5 * (log_det - variance.log().sum()),
        "total_correlation": 0.5 * (total.diag().log().sum() - log_det),
        "dimensionwise_kl": one_dimension.sum(),
    }
    expected["aggregate_kl"] = expected["total_correlation"] + expected["dimensionwise_kl"]
    # Each is a mean over n samples of a difference of two quadratic forms zᵀAz / 2, whose standard deviation is
    # √(tr((AS)²) / 2) for z ~ N(0, S): 1 for q(z)'s own in two dimensions, and at most the prior's, about 3.
    prior = math.sqrt(0.5 * (total @ total).trace() + mean @ total @ mean)
    for name, value in expected.items():
        error = (1 + (prior if name in ("aggregate_kl", "dimensionwise_kl") else 1)) / math.sqrt(n)
        assert found[name] == pytest.approx(value.item(), abs=4 * error), name
        assert value > 8 * error, "the test must tell it from 0"


@pytest.mark.parametrize("spread", [1.0, 5.0, 30.0, 200.0])
def test_the_parts_are_at_their_ceiling_where_they_depend_on_the_number_of_images(spread):
    """Means from N(0, s² I) and posteriors of unit variance in two dimensions have an information of ln(1 + s²)."""
    n, information = 400, math.log(1 + spread**2)
    mu = spread * torch.randn(n, 2, generator=torch.Generator().manual_seed(10))
    found = split_kl(model_of(2), mu, torch.zeros_like(mu))
    assert is_at_ceiling(information, n) == (found == {}) == (spread > 10)
    if found:
        error = math.sqrt(2 / n)  # the variance of the log-ratio, two differences of χ²₁ / 2, is at most 2
        assert found["mutual_information"] == pytest.approx(information, abs=0.1 + 3 * error)


PRIORS = {
    "standard": {},
    "mixture": {"prior": "gaussian_mixture", "prior_components": 5},
    "flow": {"prior": "realnvp", "prior_width": 8},
    "two layers": {"lower_latent_dims": (2,)},
}


@pytest.mark.parametrize("prior", PRIORS)
def test_the_parts_add_up_to_the_kl(prior):
    n, latents = 3000, 3
    model = model_of(latents, **PRIORS[prior])
    mu, logvar = posteriors(n, latents)
    found = split_kl(model, mu, logvar)
    noise = torch.randn(200, n, latents, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        z = model.reparameterize(mu, logvar, noise)
        log_ratio = Independent(Normal(mu, (0.5 * logvar).exp()), 1).log_prob(z)
        log_ratio -= model.prior.log_density(z)
    kl, error = log_ratio.mean().item(), log_ratio.std(0).square().mean().sqrt().item() / math.sqrt(n)
    assert found["mutual_information"] + found["aggregate_kl"] == pytest.approx(kl, abs=4 * error)
    assert kl > 20 * error
    assert ("dimensionwise_kl" in found) == (model.params.prior == "standard")
    if model.params.prior == "standard":
        exact = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1).mean().item()
        assert kl == pytest.approx(exact, abs=error)
        assert found["total_correlation"] + found["dimensionwise_kl"] == pytest.approx(found["aggregate_kl"], abs=1e-9)


def test_a_prior_that_is_the_aggregate_posterior_has_no_divergence_from_it():
    mu, logvar = posteriors(40, 3)
    logvar += 2  # so wide that the mutual information is below its maximum
    model = model_of(3, prior="gaussian_mixture", prior_components=40)
    assert isinstance(model.prior, GaussianMixture)
    model.prior.mu.data, model.prior.logvar.data = mu, logvar
    assert split_kl(model, mu, logvar)["aggregate_kl"] == pytest.approx(0, abs=1e-4)
    assert abs(split_kl(model, mu + 1, logvar)["aggregate_kl"]) > 0.1


def test_the_seed_determines_the_estimate():
    mu, logvar = posteriors(100, 2)
    first, again, other = (split_kl(model_of(2), mu, logvar, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
