"""Each term of the objective against torch.distributions, closed forms, Monte Carlo or numerical integration."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence

from vae.models.distributions import gaussian_kl, importance_weighted_bound
from vae.models.likelihoods import bernoulli_nll
from vae.training.objectives import beta_at, doubly_reparameterized_bound, mmd, weighted_kl


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bernoulli_nll_and_its_gradient_stay_finite_and_exact_at_extreme_logits():
    logits = torch.tensor([[-500.0, 500.0, -500.0, 500.0, 0.0]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]])
    nll = bernoulli_nll(logits, x)
    assert nll.item() == pytest.approx(1000 + math.log(2))
    nll.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0, -1.0, 1.0, -0.5]]))


@pytest.mark.parametrize("pixels", [784, 49, 6])
def test_bernoulli_nll_is_exact_to_a_ten_thousandth_of_a_nat_where_large_terms_cancel(pixels):
    logits = 15 * draws(50, pixels)  # as large as those of a trained decoder
    right = (draws(50, pixels, seed=1) < logits).float()
    expected = F.binary_cross_entropy_with_logits(logits.double(), right.double(), reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli_nll(logits, right).double(), expected, atol=1e-4, rtol=0)


def test_bernoulli_nll_has_the_gradient_that_finite_differences_give():
    logits = (3 * draws(2, 3, 6).double()).requires_grad_()
    grey = torch.rand(2, 1, 6, generator=torch.Generator().manual_seed(2)).double()
    assert torch.autograd.gradcheck(lambda value: bernoulli_nll(value, grey), logits)


def test_gaussian_kl_is_that_of_torch_distributions():
    mu, logvar = draws(4, 3), 0.5 * draws(4, 3, seed=1)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


def test_free_bits_stop_the_gradient_of_a_dimension_below_the_floor():
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    loss = weighted_kl(kl, 1.0, free_bits=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 + 3.0)
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


@pytest.mark.parametrize("free_bits", [0.0, 0.8])
def test_the_weighted_kl_has_the_papers_free_bits_per_dimension(free_bits):
    """Kingma et al. 2016, eq. 15: Σ_j max(λ, mean over the batch of KL_j), of averages and not of single images."""
    kl = draws(6, 5).square()
    by_hand = sum(max(free_bits, sum(image[j].item() for image in kl) / 6) for j in range(5))
    assert weighted_kl(kl, 1.5, free_bits).item() == pytest.approx(1.5 * by_hand, rel=1e-5)


def test_mmd_is_that_of_the_kernel_pair_by_pair():
    z, prior = draws(4, 2), draws(5, 2, seed=1)

    def mean_kernel(a, b):
        return sum(math.exp(-(x - y).square().sum().item() / 4) for x in a for y in b) / (len(a) * len(b))

    expected = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
    assert mmd(z, prior).item() == pytest.approx(expected, abs=1e-6)


def test_mmd_has_a_finite_gradient_even_of_one_image_and_of_images_far_off():
    for z in (draws(1, 2), draws(8, 2) * 1e3, torch.zeros(3, 2)):
        z.requires_grad_()
        mmd(z, draws(8, 2, seed=1)).backward()
        assert z.grad.isfinite().all()


def test_the_warm_up_rises_linearly_to_beta_and_begins_anew_in_each_cycle():
    assert [beta_at(epoch, 2.0, 4) for epoch in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert beta_at(1, 3.0, 0) == beta_at(1, 3.0, 0, cycle_epochs=2) == 3.0
    cycles = [beta_at(epoch, 2.0, 2, cycle_epochs=4) for epoch in range(1, 11)]
    assert cycles == [1.0, 2.0, 2.0, 2.0] * 2 + [1.0, 2.0]


def test_cycles_are_those_of_the_paper():
    """Fu et al. 2019, eq. 6: with τ = mod(t − 1, ⌈T/M⌉) / (T/M), β is τ/R up to τ = R, and then 1."""
    steps, cycle, warmup = 1000, 5, 4  # steps of an epoch, epochs of a cycle and of its warm-up
    for epoch in range(1, 13):
        tau = ((steps * epoch - 1) % (steps * cycle)) / (steps * cycle)
        assert beta_at(epoch, 1.0, warmup, cycle) == pytest.approx(min(1.0, tau * cycle / warmup), abs=1e-3)


class TuckersToy:
    """Tucker et al. 2019, section 6.1: z ~ N(θ, I), x ~ N(z, I) and q(z|x) = N(Ax + b, 2/3·I).

    For many gradients at once, each of N repetitions has its own parameters, with equal values.
    """

    def __init__(self, repetitions, dimensions=3):
        self.x = draws(dimensions, seed=40).double()
        theta = 0.5 * draws(dimensions, seed=41)
        matrix = 0.5 * torch.eye(dimensions) + 0.1 * draws(dimensions, dimensions, seed=42)
        bias = theta / 2 + 0.1 * draws(dimensions, seed=43)
        leaves = (value.double().expand(repetitions, *value.shape).clone() for value in (theta, matrix, bias))
        self.theta, self.matrix, self.bias = (leaf.requires_grad_() for leaf in leaves)

    def log_weights(self, z, mu, beta):
        """log p(x|z) + beta · log p(z)/q(z|x), [N, K]."""
        log_prior = Independent(Normal(self.theta[:, None], 1.0), 1).log_prob(z)
        log_likelihood = Independent(Normal(z, 1.0), 1).log_prob(self.x)
        log_posterior = Independent(Normal(mu, (2 / 3) ** 0.5), 1).log_prob(z)
        return log_likelihood + beta * (log_prior - log_posterior)

    def gradients(self, samples, doubly, beta):
        """The bound [N], and its gradients with respect to the encoder and to the prior, [N, P] each."""
        mu = (self.matrix @ self.x + self.bias).unsqueeze(1)
        z = mu + (2 / 3) ** 0.5 * draws(len(mu), samples, mu.shape[-1], seed=50).double()
        if doubly:
            bound = doubly_reparameterized_bound(self.log_weights(z, mu.detach(), beta), z, beta)
        else:
            bound = importance_weighted_bound(self.log_weights(z, mu, beta))
        matrix, bias, theta = torch.autograd.grad(bound.sum(), [self.matrix, self.bias, self.theta])
        return bound.detach(), torch.cat([matrix.flatten(1), bias], 1), theta


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (8, 1.0), (1, 0.3), (8, 0.3), (8, 0.0)])
def test_the_doubly_reparameterized_gradient_is_on_average_the_plain_one(samples, beta):
    toy = TuckersToy(repetitions=20_000)
    bound, plain, prior = toy.gradients(samples, False, beta)
    same_bound, doubly, same_prior = toy.gradients(samples, True, beta)
    torch.testing.assert_close(same_bound, bound)
    torch.testing.assert_close(same_prior, prior)
    difference = doubly - plain
    assert (difference.mean(0).abs() <= 4.5 * difference.std(0) / math.sqrt(20_000) + 1e-12).all()


def test_the_doubly_reparameterized_bound_needs_no_gradient_of_its_samples():
    log_weights = draws(3, 5).requires_grad_()
    bound = doubly_reparameterized_bound(log_weights, draws(3, 5, 2))
    torch.testing.assert_close(bound, importance_weighted_bound(log_weights))
    bound.sum().backward()
    torch.testing.assert_close(log_weights.grad, log_weights.detach().softmax(-1))
