"""Each term of the objective against torch.distributions, Monte Carlo, or a model whose likelihood is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from vae.objective import (
    bernoulli_nll,
    beta_at,
    gaussian_kl,
    importance_weighted_bound,
    mmd,
    normal_log_density,
    weighted_kl,
)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bernoulli_nll_is_that_of_torch_distributions():
    logits = 8 * draws(5, 784)
    x = (draws(5, 784, seed=1) > 0).float()
    expected = -Independent(Bernoulli(logits=logits), 1).log_prob(x)
    torch.testing.assert_close(bernoulli_nll(logits, x), expected)


def test_bernoulli_nll_and_its_gradient_stay_finite_and_exact_at_extreme_logits():
    logits = torch.tensor([[-500.0, 500.0, -500.0, 500.0, 0.0]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]])
    nll = bernoulli_nll(logits, x)
    assert nll.item() == pytest.approx(1000 + math.log(2))
    nll.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0, -1.0, 1.0, -0.5]]))


@pytest.mark.parametrize("pixels", [784, 49, 6])
def test_bernoulli_nll_is_exact_to_a_ten_thousandth_of_a_nat_where_large_terms_cancel(pixels):
    logits = 15 * draws(50, pixels)  # as of a trained decoder: nearly all pixels are sure, and right
    right = (draws(50, pixels, seed=1) < logits).float()
    expected = F.binary_cross_entropy_with_logits(logits.double(), right.double(), reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli_nll(logits, right).double(), expected, atol=1e-4, rtol=0)


def test_bernoulli_nll_has_the_gradient_that_finite_differences_give():
    logits = (3 * draws(2, 3, 6).double()).requires_grad_()
    grey = torch.rand(2, 1, 6, generator=torch.Generator().manual_seed(2)).double()
    assert torch.autograd.gradcheck(lambda value: bernoulli_nll(value, grey), logits)


def test_gaussian_kl_is_that_of_torch_distributions_and_of_monte_carlo():
    mu, logvar = draws(4, 3), 0.5 * draws(4, 3, seed=1)
    posterior, prior = Normal(mu, torch.exp(0.5 * logvar)), Normal(torch.zeros(()), torch.ones(()))
    kl = gaussian_kl(mu, logvar)
    torch.testing.assert_close(kl, kl_divergence(posterior, prior))
    z = mu + torch.exp(0.5 * logvar) * draws(200_000, 4, 3, seed=2)
    log_ratio = posterior.log_prob(z) - prior.log_prob(z)
    standard_error = log_ratio.std(0) / math.sqrt(len(z))
    assert ((log_ratio.mean(0) - kl).abs() < 5 * standard_error).all()


def test_gaussian_kl_is_zero_only_at_the_prior():
    assert gaussian_kl(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert (gaussian_kl(draws(100, 2), draws(100, 2, seed=1)) > 0).all()


def test_normal_log_density_is_that_of_torch_distributions():
    z, mu, logvar = draws(6, 4), draws(6, 4, seed=1), draws(6, 4, seed=2)
    expected = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1).log_prob(z)
    torch.testing.assert_close(normal_log_density(z, mu, logvar), expected)


def test_weighted_kl_sums_over_latents_and_averages_over_images():
    kl = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert weighted_kl(kl, 1.0).item() == 5.0
    assert weighted_kl(kl, 4.0).item() == 20.0


def test_free_bits_keep_a_floor_per_dimension_and_stop_the_gradient_below_it():
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    loss = weighted_kl(kl, 1.0, free_bits=0.5)
    assert loss.item() == pytest.approx(0.5 + 3.0)
    loss.backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def gaussian_mmd(mean, variance, bandwidth, n, m):
    """What `mmd` of n draws of N(mean, variance·I) and m of N(0, I) is on average, in closed form.

    E exp(−‖a − b‖² / c) with a − b ~ N(d, s·I) is (1 + 2s/c)^(−L/2) · exp(−‖d‖² / (c + 2s)).
    """

    def kernel(d, s):
        return (1 + 2 * s / bandwidth) ** (-len(d) / 2) * math.exp(-(d @ d).item() / (bandwidth + 2 * s))

    zero = torch.zeros_like(mean)
    within, prior, across = kernel(zero, 2 * variance), kernel(zero, 2.0), kernel(mean, 1 + variance)
    bias = (1 - within) / n + (1 - prior) / m  # a draw and itself: 1 instead of the mean
    return within + prior - 2 * across + bias


@pytest.mark.parametrize(("shift", "variance"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.25), (0.0, 4.0)])
def test_mmd_of_gaussians_is_on_average_what_the_closed_form_says(shift, variance):
    n, m, latents = 60, 90, 3
    mean = torch.full((latents,), shift)
    values = torch.stack(
        [
            mmd(mean + variance**0.5 * draws(n, latents, seed=2 * i), draws(m, latents, seed=2 * i + 1))
            for i in range(500)
        ]
    )
    expected = gaussian_mmd(mean, variance, latents**2, n, m)
    assert values.mean().item() == pytest.approx(expected, abs=4 * values.std().item() / math.sqrt(500))
    assert (values > -1e-6).all()


def test_mmd_is_that_of_the_kernel_pair_by_pair():
    z, prior = draws(4, 2), draws(5, 2, seed=1)

    def mean_kernel(a, b):
        return sum(math.exp(-(x - y).square().sum().item() / 4) for x in a for y in b) / (len(a) * len(b))

    expected = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
    assert mmd(z, prior).item() == pytest.approx(expected, abs=1e-6)
    assert mmd(z, z.flip(0)).item() == pytest.approx(0, abs=1e-6)


def test_mmd_has_a_finite_gradient_even_of_one_image_and_of_images_far_off():
    for z in (draws(1, 2), draws(8, 2) * 1e3, torch.zeros(3, 2)):
        z.requires_grad_()
        mmd(z, draws(8, 2, seed=1)).backward()
        assert z.grad.isfinite().all()


def test_warm_up_rises_linearly_to_beta_and_stays():
    assert [beta_at(epoch, 2.0, 4) for epoch in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert beta_at(1, 3.0, 0) == 3.0


class LinearGaussian:
    """z ~ N(0, I), x|z ~ N(Wz, s²I): p(x) = N(0, WWᵀ + s²I) is known, and so is the exact posterior."""

    def __init__(self, pixels=5, latents=2, s=0.7):
        self.W, self.s = draws(pixels, latents), s
        precision = torch.eye(latents) + self.W.T @ self.W / s**2
        self.posterior_covariance = torch.linalg.inv(precision)
        self.x = draws(50, latents, seed=3) @ self.W.T + s * draws(50, pixels, seed=4)
        covariance = self.W @ self.W.T + s**2 * torch.eye(pixels)
        self.log_p = MultivariateNormal(torch.zeros(pixels), covariance).log_prob(self.x)

    def log_weights(self, samples, seed):
        """Of samples of a mean-field posterior that is only roughly right."""
        mu = self.x @ self.W @ self.posterior_covariance / self.s**2 + 0.1
        logvar = (1.3 * self.posterior_covariance.diagonal()).log().expand_as(mu)
        z = mu[:, None] + torch.exp(0.5 * logvar)[:, None] * draws(len(mu), samples, mu.shape[1], seed=seed)
        log_likelihood = Independent(Normal(z @ self.W.T, self.s), 1).log_prob(self.x[:, None])
        log_prior = normal_log_density(z, torch.zeros(()), torch.zeros(()))
        return log_likelihood + log_prior - normal_log_density(z, mu[:, None], logvar[:, None])


def test_the_bound_rises_from_the_elbo_to_the_exact_log_likelihood():
    model = LinearGaussian()
    log_weights = model.log_weights(2**16, seed=5)
    bounds = [importance_weighted_bound(log_weights.view(50, -1, k)).mean().item() for k in (1, 2, 8, 64, 1024)]
    elbo, exact = log_weights.mean().item(), model.log_p.mean().item()
    assert bounds[0] == pytest.approx(elbo, abs=1e-4)
    assert bounds == sorted(bounds)
    assert elbo < exact - 0.05, "the posterior must be wrong enough for the test to see a gap"
    assert bounds[-1] < exact + 1e-3
    assert bounds[-1] == pytest.approx(exact, abs=5e-3)
    each = importance_weighted_bound(log_weights)
    torch.testing.assert_close(each, model.log_p, atol=0.02, rtol=0)


def test_with_the_exact_posterior_one_sample_is_enough():
    model = LinearGaussian()
    mu = model.x @ model.W @ model.posterior_covariance / model.s**2
    posterior = MultivariateNormal(mu, model.posterior_covariance)
    z = posterior.loc + draws(50, 2, seed=6) @ torch.linalg.cholesky(model.posterior_covariance).T
    log_likelihood = Independent(Normal(z @ model.W.T, model.s), 1).log_prob(model.x)
    log_prior = normal_log_density(z, torch.zeros(()), torch.zeros(()))
    bound = importance_weighted_bound((log_likelihood + log_prior - posterior.log_prob(z))[:, None])
    torch.testing.assert_close(bound, model.log_p)
