"""Each prior against torch.distributions, its own samples, and integrals over one or two latents."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from vae.config import FACTORIZED_PRIORS, EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate
from vae.models.priors import PRIORS as PRIOR_CLASSES
from vae.models.priors import StandardNormal, density_dtype
from vae.models.vae import VAE

PIXELS = 9
PRIORS = {
    "standard": {"prior": "standard"},
    "gaussian_mixture": {"prior": "gaussian_mixture", "prior_components": 4},
    "vampprior": {"prior": "vampprior", "prior_components": 5},
}
EVERY = pytest.mark.parametrize("name", PRIORS)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_with(name, latents=2):
    """A model whose distributions are all far from the standard normal one."""
    model = VAE.from_params(ModelParams(hidden_dims=(8,), latent_dim=latents, **PRIORS[name]), 0, PIXELS)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * normals(*parameter.shape, seed=100 + index))
    return model


def by_torch(prior):
    """The prior as a distribution of torch.distributions, in float64."""
    if isinstance(prior, StandardNormal):
        return Independent(Normal(torch.zeros(prior.latent_dim).double(), 1.0), 1)
    mu, logvar, log_weight = (part.detach().double() for part in prior.components())
    return MixtureSameFamily(Categorical(logits=log_weight), Independent(Normal(mu, torch.exp(0.5 * logvar)), 1))


def grid(latents, reach=9.0, points=241):
    """Points [P, latents] and the logarithm of the volume around each."""
    line = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(*[line] * latents).view(-1, latents), latents * math.log(2 * reach / (points - 1))


# Densities and samples


@EVERY
def test_the_density_is_that_of_torch_distributions(name):
    prior = model_with(name, latents=3).prior
    z = 2 * normals(7, 11, 3)
    expected = by_torch(prior).log_prob(z.double()).float()
    torch.testing.assert_close(prior.log_density(z), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("scale", [0.3, 0.003])
def test_a_mixtures_density_keeps_its_precision_where_components_are_narrow(scale, gradients):
    """Multiplied out, the squared distances are the difference of terms near 40 · mu² / scale²."""
    prior = VAE(PIXELS, [8], 40, prior="gaussian_mixture", prior_components=50).prior
    with torch.no_grad():
        prior.mu.copy_(3 * normals(50, 40))
        prior.logvar.fill_(2 * math.log(scale))
        z = prior.mu[:20] + scale * normals(20, 40, seed=1)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
        found = prior.log_density(z).detach()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_torch(prior).log_prob(z.double()).float(), atol=1e-3, rtol=1e-5)


@torch.no_grad()
@EVERY
def test_samples_have_the_moments_of_the_density(name):
    prior = model_with(name, latents=1).prior
    z, cell = grid(1, points=401)
    density = (prior.log_density(z) + cell).exp().double()
    assert density.sum().item() == pytest.approx(1, abs=1e-2)
    sample = prior.sample(40_000, torch.Generator().manual_seed(1), torch.device("cpu")).double()
    for moment in (lambda z: z, torch.square, lambda z: (z > 0.5).double(), torch.cos):
        expected = (density * moment(z[:, 0].double())).sum() / density.sum()
        found = moment(sample[:, 0])
        assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found)) + 1e-3


# The KL and the bound


@torch.no_grad()
@pytest.mark.parametrize("name", ["gaussian_mixture", "vampprior"])
def test_a_mixtures_kl_averages_to_the_integral(name):
    mu, logvar = 1.5 * normals(4, 1, 2, seed=5), normals(4, 1, 2, seed=6)
    model = model_with(name)
    z, cell = grid(2)
    log_q = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1).log_prob(z)  # [4, P]
    exact = ((log_q + cell).exp() * (log_q - by_torch(model.prior).log_prob(z.double()))).sum(1)
    samples = model.reparameterize(mu, logvar, normals(4, 20_000, 2, seed=7))
    (kl,) = model.prior.kl(mu, logvar, model.prior.log_density(samples)).double().unbind(-1)
    assert ((kl.mean(1) - exact).abs() < 4 * kl.std(1) / math.sqrt(20_000)).all()


@EVERY
@torch.no_grad()
def test_the_importance_weighted_nll_is_the_integral_over_all_latents(name):
    model = model_with(name, latents=1).eval()
    model.encoder.head.bias[1:] += 1.5  # wider posteriors, for importance weights of less variance
    targets = (torch.rand(6, PIXELS, generator=torch.Generator().manual_seed(0)) < 0.4).to(torch.uint8) * 255
    z, cell = grid(1, points=401)
    x = to_float(targets)
    log_likelihood = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x[:, None])  # [6, P]
    exact = -torch.logsumexp(log_likelihood + model.prior.log_density(z) + cell, 1).double().numpy()

    params = EvaluateParams(importance_samples=40_000, chunk_size=400_000)
    found = evaluate(model, targets, torch.arange(6), params).images

    error = np.sqrt(1 / found["effective_samples"] - 1 / 40_000).to_numpy()  # by the delta method
    assert error.max() < 0.02, "the weights must not vary too much for an estimate"
    assert (np.abs(found["nll"] - exact) < 4.5 * error + 1e-3).all()
    assert (-found["elbo"] > exact - 0.01).all()
    assert (-found["elbo"] - exact).max() > 0.1, "the ELBO must be loose enough for the test to see a gap"


# The VampPrior's pseudo-images


def test_a_vamppriors_components_are_the_posteriors_of_its_pseudo_images():
    model = model_with("vampprior")
    mu, logvar, log_weight = model.prior.components()
    expected = model.encode(model.prior.pseudo_images.clamp(0, 1))
    torch.testing.assert_close((mu, logvar), tuple(expected))
    torch.testing.assert_close(log_weight.exp(), torch.full((5,), 0.2))


def test_the_density_pulls_at_pseudo_images_and_encoder():
    model = VAE.from_params(ModelParams(hidden_dims=(8,), latent_dim=2, **PRIORS["vampprior"]), 0, PIXELS)
    model.prior.log_density(normals(6, 2)).sum().backward()
    pulled = [model.prior.pseudo_images, *model.encoder.parameters()]
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in pulled)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 4, 5]), (50, [0, 10, 20, 30, 40]), (3, [0, 0, 1, 1, 2])],
)
def test_pseudo_images_start_as_images_evenly_spaced(images, expected):
    model = model_with("vampprior")
    model.initialize_from_data(torch.arange(images, dtype=torch.uint8)[:, None].expand(images, PIXELS))
    pseudo = model.prior.pseudo_images
    assert (255 * pseudo[:, 0]).round().tolist() == expected
    assert (pseudo == pseudo[:, :1]).all()
    assert pseudo.requires_grad


# Copies and precision


@torch.no_grad()
@EVERY
def test_a_copy_is_independent_and_its_prior_uses_its_own_encoder(name):
    model = model_with(name)
    z = normals(6, 2)
    copied = copy.deepcopy(model)
    before = model.prior.log_density(z)
    for parameter in model.parameters():
        parameter.fill_(0.1)
    assert torch.equal(copied.prior.log_density(z), before)
    for parameter in copied.encoder.parameters():
        parameter.add_(1)
    changed = not torch.equal(copied.prior.log_density(z), before)
    assert changed == (name == "vampprior")


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float32), ("mps", torch.float32)])
def test_only_the_cpu_computes_a_mixture_in_double_precision(device, dtype):
    assert density_dtype(torch.device(device)) == dtype


def test_the_configuration_knows_which_priors_are_factorized():
    assert {name for name, prior in PRIOR_CLASSES.items() if prior.factorized} == FACTORIZED_PRIORS
