"""Each likelihood against torch.distributions, the sum of its probabilities, and its own samples."""

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Independent,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
)

from vae.config import ModelParams
from vae.models.likelihoods import LEVEL, LIKELIHOODS

LEVELS = torch.arange(256) / 255
EVERY = pytest.mark.parametrize(
    ("name", "components"),
    [("bernoulli", 1), ("gaussian", 1), ("discretized_logistic", 1), ("discretized_logistic", 3)],
)
COMPONENTS = pytest.mark.parametrize("components", [1, 3])


def likelihood(name="discretized_logistic", components=1):
    return LIKELIHOODS[name](ModelParams(likelihood_components=components))


def normals(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(output, components):
    """The mixture of logistic distributions, before it is discretized, of torch.distributions, in float64."""
    logits, mean, scale = (
        output.double().unflatten(-1, (3 * components - 1, -1)).split([components - 1, components, components], -2)
    )
    logits = torch.cat([logits, torch.zeros_like(mean[..., :1, :])], -2)
    scale = LEVEL / 8 + torch.log1p(scale.exp())
    uniform = Uniform(torch.zeros_like(mean), torch.ones_like(mean))
    logistic = TransformedDistribution(uniform, [SigmoidTransform().inv, AffineTransform(mean, scale)])
    return logits.softmax(-2), logistic


# Densities and probabilities


def test_bernoulli_and_gaussian_are_those_of_torch_distributions():
    output, x = normals(4, 3, 20, scale=2), torch.rand(4, 1, 20)
    gaussian = likelihood("gaussian")
    expected = -Independent(Normal(output, gaussian.sigma), 1).log_prob(x)
    torch.testing.assert_close(gaussian.nll(output, x), expected)
    expected = -Independent(Bernoulli(logits=output), 1).log_prob(x.round())
    torch.testing.assert_close(likelihood("bernoulli").nll(output, x.round()), expected)


@COMPONENTS
def test_the_discretized_logistic_has_the_probabilities_of_bins_of_the_mixture(components):
    discretized = likelihood(components=components)
    output = normals(discretized.parameters_per_pixel * 50)
    weight, logistic = mixture(output, components)

    def cdf(x):
        return (weight * logistic.cdf(torch.full_like(weight, x))).sum(0)

    for level in (0, 1, 100, 254, 255):
        lower = 0.0 if level == 0 else cdf((level - 0.5) / 255)
        upper = 1.0 if level == 255 else cdf((level + 0.5) / 255)
        nll = discretized.nll(output.view(-1, 50).T, torch.full((50, 1), level / 255))
        torch.testing.assert_close((-nll).exp().double(), upper - lower, rtol=1e-4, atol=1e-7)


@COMPONENTS
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_the_probabilities_of_all_levels_add_up_to_one(components, scale):
    discretized = likelihood(components=components)
    output = normals(1000, discretized.parameters_per_pixel, scale=scale)
    nll = discretized.nll(output[:, None], LEVELS[:, None])
    assert nll.min() >= -1e-6 and nll.isfinite().all()
    torch.testing.assert_close(torch.logsumexp(-nll.double(), 1), torch.zeros(1000).double(), atol=1e-5, rtol=0)


@EVERY
def test_values_are_added_up_over_an_image_and_parameters_lie_one_after_the_other(name, components):
    part = likelihood(name, components)
    output, x = normals(2, part.parameters_per_pixel, 7), LEVELS[[0, 3, 9, 27, 81, 243, 255]].round()
    alone = torch.stack([part.nll(output[..., index], x[[index]]) for index in range(7)], -1)
    torch.testing.assert_close(part.nll(output.flatten(1), x), alone.sum(-1))
    assert part.mean(output.flatten(1)).shape == part.sample(output.flatten(1)).shape == (2, 7)


# Gradients


@EVERY
def test_gradients_are_those_of_finite_differences(name, components):
    part = likelihood(name, components).double()
    x = LEVELS[[0, 1, 128, 255]].double().round() if name == "bernoulli" else LEVELS[[0, 1, 128, 255]].double()
    output = normals(3, 4 * part.parameters_per_pixel).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: part.nll(value, x), output)


@COMPONENTS
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e6])
def test_gradients_are_finite_however_far_the_output_is(components, scale):
    discretized = likelihood(components=components)
    output = normals(500, 1, discretized.parameters_per_pixel, scale=scale).requires_grad_()
    discretized.nll(output, LEVELS[::15, None]).sum().backward()
    assert output.grad.isfinite().all()


def test_the_sigma_of_constant_pixels_stays_above_its_bound():
    gaussian, x = likelihood("gaussian"), torch.zeros(1, 10)
    optimizer = torch.optim.Adam(gaussian.parameters(), 1.0)
    for _ in range(300):
        optimizer.zero_grad()
        gaussian.nll(x, x).sum().backward()
        optimizer.step()
    assert gaussian.sigma.item() == pytest.approx(1 / 255, rel=0.01)
    smallest = 10 * (math.log(1 / 255) + 0.5 * math.log(2 * math.pi))
    assert gaussian.nll(x, x).item() == pytest.approx(smallest, rel=0.01)


# Means and samples


@EVERY
def test_samples_have_the_mean_of_the_distribution(name, components):
    part = likelihood(name, components)
    output = normals(part.parameters_per_pixel * 20, scale=0.2) + 0.4
    if name == "gaussian":  # so that almost nothing is cut off at 0 and 1
        part.log_scale.data.fill_(math.log(0.03))
    images = part.sample(output.expand(20_000, -1), torch.Generator().manual_seed(1))
    error = images.std(0) / len(images) ** 0.5
    assert images.min() >= 0 and images.max() <= 1
    assert ((images.mean(0) - part.mean(output)).abs() < 4.5 * error + LEVEL / 2).all()


@COMPONENTS
def test_the_mean_is_that_of_the_levels_within_half_a_level(components):
    discretized = likelihood(components=components)
    output = normals(1000, discretized.parameters_per_pixel, scale=5)
    probability = (-discretized.nll(output[:, None], LEVELS[:, None])).exp()
    assert (discretized.mean(output)[:, 0] - probability @ LEVELS).abs().max() < LEVEL / 2


@COMPONENTS
def test_samples_are_levels_with_their_probabilities(components):
    discretized = likelihood(components=components)
    logits, mean, scale = normals(components - 1), torch.linspace(0, 0.3, components), -4 + normals(components)
    output = torch.cat([logits, mean, scale])
    images = discretized.sample(output.expand(100_000, -1), torch.Generator().manual_seed(2))
    assert torch.equal((images * 255).round() / 255, images)
    counts = torch.bincount((images * 255).round().long().flatten(), minlength=256)
    expected = len(images) * (-discretized.nll(output, LEVELS[:, None])).exp()
    often = expected > 5
    chi_squared = ((counts - expected).square() / expected)[often].sum().item()
    freedom = int(often.sum()) - 1
    assert freedom > 20 and abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5
    assert counts[~often].sum() < 20 + 2 * expected[~often].sum()


# Initialization


@EVERY
def test_the_initial_output_has_about_the_moments_of_the_data(name, components):
    part = likelihood(name, components)
    mean, std = torch.linspace(0.3, 0.7, 9), torch.linspace(0.02, 0.12, 9)
    output = part.from_moments(mean, std)
    assert output.shape == (9 * part.parameters_per_pixel,)
    torch.testing.assert_close(part.mean(output), mean, atol=0.01, rtol=0)
    if name == "discretized_logistic":
        images = part.sample(output.expand(20_000, -1), torch.Generator().manual_seed(3))
        torch.testing.assert_close(images.std(0), std, rtol=0.1, atol=0)


@EVERY
def test_constant_pixels_have_a_finite_initial_output(name, components):
    part = likelihood(name, components)
    constant = torch.tensor([0.0, 0.5, 1.0])
    assert part.nll(part.from_moments(constant, torch.zeros(3)), constant.round()).isfinite()
