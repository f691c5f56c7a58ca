"""Each prior against torch.distributions, its own samples, and integrals over one or two latents."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vae.config import FACTORIZED_PRIORS, EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate, importance_samples
from vae.models.priors import PRIORS as PRIOR_CLASSES
from vae.models.priors import density_dtype
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


def model_with(name, latents=2, seed=0, pixels=PIXELS, **other):
    """A model whose weights are large enough for nothing to be near the standard normal distribution."""
    model = VAE.from_params(ModelParams(hidden_dims=(8,), latent_dim=latents, **PRIORS[name] | other), seed, pixels)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * normals(*parameter.shape, seed=100 + index))
    return model


def mixture_of(prior):
    """A mixture's density, as torch.distributions has it."""
    mu, logvar, log_weight = (part.detach().double() for part in prior.components())
    normals = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    return MixtureSameFamily(Categorical(logits=log_weight), normals)


def grid(latents, reach=9.0, points=241):
    """Points [P, latents] and the logarithm of the volume around each."""
    line = torch.linspace(-reach, reach, points)
    return torch.cartesian_prod(*[line] * latents).view(-1, latents), latents * math.log(2 * reach / (points - 1))


# Densities


@pytest.mark.parametrize("name", ["gaussian_mixture", "vampprior"])
def test_a_mixtures_density_is_that_of_torch_distributions(name):
    prior = model_with(name, latents=3).prior
    z = 2 * normals(7, 11, 3)
    expected = mixture_of(prior).log_prob(z.double()).float()
    torch.testing.assert_close(prior.log_density(z), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("scale", [0.3, 0.03, 0.003])
def test_a_mixtures_density_keeps_its_precision_where_components_are_narrow(scale, gradients):
    """Multiplied out, the squared distances are the difference of terms near 40 · mu² / scale²."""
    prior = VAE(PIXELS, [8], 40, prior_components=50).prior
    with torch.no_grad():
        prior.mu.copy_(3 * normals(50, 40))
        prior.logvar.fill_(2 * math.log(scale))
        z = prior.mu[:20] + scale * normals(20, 40, seed=1)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=torch.bfloat16):
        found = prior.log_density(z).detach()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mixture_of(prior).log_prob(z.double()).float(), atol=1e-3, rtol=1e-5)


def test_the_standard_normals_density_is_that_of_torch_distributions():
    z = normals(5, 3)
    expected = Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(model_with("standard", 3).prior.log_density(z), expected)


@pytest.mark.parametrize("latents", [1, 2])
@pytest.mark.parametrize("name", ["standard", "gaussian_mixture", "vampprior"])
def test_a_density_integrates_to_one(name, latents):
    z, cell = grid(latents)
    with torch.no_grad():
        total = torch.logsumexp(model_with(name, latents).prior.log_density(z).double() + cell, 0)
    assert total.item() == pytest.approx(0, abs=1e-3)


@EVERY
def test_samples_have_the_moments_of_the_density(name):
    model = model_with(name, latents=1)
    z, cell = grid(1, points=401)
    with torch.no_grad():
        density = (model.prior.log_density(z) + cell).exp().double()
        sample = model.prior.sample(40_000, torch.Generator().manual_seed(1), torch.device("cpu")).double()
    assert density.sum().item() == pytest.approx(1, abs=1e-2)
    assert sample.shape == (40_000, 1)
    for moment in (lambda z: z, lambda z: z.square(), lambda z: (z > 0.5).double(), torch.cos):
        expected = (density * moment(z[:, 0].double())).sum() / density.sum()
        found = moment(sample[:, 0])
        assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(len(found)) + 1e-3


@EVERY
def test_samples_are_repeated_by_their_generator_and_by_nothing_else(name):
    prior, cpu = model_with(name).prior, torch.device("cpu")
    first, second, other = (prior.sample(5, torch.Generator().manual_seed(seed), cpu) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# The KL


@pytest.fixture
def posteriors():
    """Means and log-variances of four posteriors, [4, 1, 2] each."""
    return 1.5 * normals(4, 1, 2, seed=5), normals(4, 1, 2, seed=6)


def log_prior(model, mu, logvar, n, seed=7):
    return model.prior.log_density(model.reparameterize(mu, logvar, normals(len(mu), n, mu.shape[-1], seed=seed)))


def test_the_standard_normals_kl_is_the_closed_form(posteriors):
    mu, logvar = posteriors
    model = model_with("standard")
    kl = model.prior.kl(mu, logvar, log_prior(model, mu, logvar, 3))
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gaussian_mixture", "vampprior"])
def test_a_mixtures_kl_averages_to_the_integral(name, posteriors):
    mu, logvar = posteriors
    model = model_with(name)
    z, cell = grid(2)
    log_q = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1).log_prob(z)  # [4, P]
    exact = ((log_q + cell).exp() * (log_q - mixture_of(model.prior).log_prob(z.double()))).sum(1)
    kl = model.prior.kl(mu, logvar, log_prior(model, mu, logvar, 20_000)).double()
    assert kl.shape == (4, 20_000, 1)
    error = kl[..., 0].std(1) / math.sqrt(20_000)
    assert ((kl[..., 0].mean(1) - exact).abs() < 4 * error).all()


@torch.no_grad()
@EVERY
def test_kl_and_log_ratio_have_the_same_expectation(name):
    model, n = model_with(name), 20_000
    terms = model(normals(4, PIXELS).sigmoid(), normals(4, n, 2))
    difference = terms.log_ratio.double() - terms.kl.sum(1, keepdim=True)
    assert difference.shape == (4, n)
    # A mixture's terms both hold log p(z_k): what is left is log q(z_k|x), with a variance of 1/2 per dimension.
    error = torch.maximum(difference.std(1), torch.tensor(1.0)) / math.sqrt(n)
    assert (difference.mean(1).abs() < 4 * error).all()


@EVERY
def test_the_importance_weighted_nll_is_the_integral_over_all_latents(name):
    model = model_with(name, latents=1).eval()
    with torch.no_grad():  # posteriors wider than the exact ones: importance weights of little variance
        model.encoder.head.bias[1:] += 1.5
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(6, PIXELS, generator=generator) < 0.4).to(torch.uint8) * 255
    z, cell = grid(1, points=401)
    with torch.no_grad():
        x = to_float(targets)
        log_likelihood = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x[:, None])  # [6, P]
        exact = -torch.logsumexp(log_likelihood + model.prior.log_density(z) + cell, 1).double().numpy()
        params = EvaluateParams(importance_samples=40_000, chunk_size=400_000)
        generator = torch.Generator().manual_seed(1)
        _, _, log_weights = importance_samples(model, x, model.encode(x), params, generator)
        weights = (log_weights + torch.from_numpy(exact)[:, None]).exp()
    error = (weights.std(1) / math.sqrt(40_000)).numpy()
    assert error.max() < 0.02, "the weights must not vary too much for an estimate"
    result = evaluate(model, targets, torch.arange(6), params)
    few = evaluate(model, targets, torch.arange(6), EvaluateParams(importance_samples=1)).images
    assert (np.abs(result.images["nll"] - exact) < 4.5 * error + 1e-3).all()
    elbo = result.images["elbo"]
    assert (-elbo > exact - 0.01).all()
    assert (-elbo - exact).max() > 0.1, "the ELBO must be loose enough for the test to see a gap"
    np.testing.assert_allclose(few["reconstruction"] + few["kl"], -few["elbo"], rtol=1e-6)


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


def numbered(n):
    """Images of which each tells its number."""
    return torch.arange(n, dtype=torch.uint8)[:, None].expand(n, PIXELS)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 4, 5]), (9, [0, 1, 3, 5, 7]), (50, [0, 10, 20, 30, 40]), (1, [0] * 5)],
)
def test_pseudo_images_start_as_images_evenly_spread(images, expected):
    model = model_with("vampprior")
    model.initialize_from_data(numbered(images))
    pseudo = model.prior.pseudo_images
    assert (255 * pseudo[:, 0]).round().tolist() == expected
    assert (pseudo == pseudo[:, :1]).all()
    assert pseudo.requires_grad


def test_fewer_images_than_components_are_all_taken():
    model = model_with("vampprior")
    model.initialize_from_data(to_float(numbered(3)))
    assert (255 * model.prior.pseudo_images[:, 0]).round().unique().tolist() == [0, 1, 2]


# Copies and files


@EVERY
def test_a_copy_has_an_encoder_of_its_own(name):
    model = model_with(name)
    z = normals(6, 2)
    copied = copy.deepcopy(model)
    before = copied.prior.log_density(z)
    torch.testing.assert_close(before, model.prior.log_density(z), atol=0, rtol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    torch.testing.assert_close(copied.prior.log_density(z), before, atol=0, rtol=0)
    with torch.no_grad():
        for parameter in copied.encoder.parameters():
            parameter.add_(1)
    changed = not torch.equal(copied.prior.log_density(z), before)
    assert changed == ("vampprior" in name)


@EVERY
@pytest.mark.parametrize("initialization", ["default", "orthogonal"])
def test_save_and_load_bring_back_the_prior(name, initialization, tmp_path):
    model = model_with(name, initialization=initialization)
    model.save(tmp_path / "vae.safetensors")
    state = torch.get_rng_state()
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.params == model.params
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    z = normals(6, 2)
    assert torch.equal(loaded.prior.log_density(z), model.prior.log_density(z))
    first, second = (each.sample(3, torch.Generator().manual_seed(1)) for each in (model, loaded))
    assert torch.equal(first, second)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "vae.safetensors").read_bytes()


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float32), ("mps", torch.float32)])
def test_only_the_cpu_computes_a_mixture_in_double_precision(device, dtype):
    assert density_dtype(torch.device(device)) == dtype


def test_the_configuration_knows_which_priors_are_factorized():
    assert {name for name, prior in PRIOR_CLASSES.items() if prior.factorized} == FACTORIZED_PRIORS
