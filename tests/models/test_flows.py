"""The RealNVP prior: its density against autograd's Jacobian, its inverse, and its samples."""

import pytest
import torch
from torch.distributions import Normal

from vae import VAE
from vae.config import ModelParams

DEVICE = torch.device("cpu")


def realnvp(latent_dim=5, trained=True, **params):
    """A model with this prior, whose couplings are far from the identity where it is `trained`."""
    options = {"hidden_dims": (16,), "latent_dim": latent_dim, "prior": "realnvp", "prior_width": 8}
    model = VAE.from_params(ModelParams(**options | params), seed=0)
    if trained:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.prior.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(("latent_dim", "couplings"), [(5, 8), (2, 3), (1, 2)])
def test_the_density_is_that_of_the_base_times_the_jacobian_determinant(latent_dim, couplings):
    prior = realnvp(latent_dim, prior_couplings=couplings).prior

    def base(z):
        for coupling in prior.couplings:
            z, _ = coupling(z)
        return z

    for z in torch.randn(4, latent_dim, generator=torch.Generator().manual_seed(2)):
        determinant = torch.autograd.functional.jacobian(base, z).double().slogdet().logabsdet
        expected = Normal(0.0, 1.0).log_prob(base(z)).sum() + determinant
        torch.testing.assert_close(prior.log_density(z).double(), expected.double(), rtol=1e-4, atol=1e-4)


def test_the_inverse_is_exact_and_samples_come_through_it():
    prior = realnvp().double().prior
    z = torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for coupling in prior.couplings:
        torch.testing.assert_close(coupling.inverse(coupling(z)[0]), z)
    prior = realnvp().prior
    noise = torch.randn(20, 5, generator=torch.Generator().manual_seed(4))
    e = prior.sample(20, torch.Generator().manual_seed(4), DEVICE)
    for coupling in prior.couplings:
        e, _ = coupling(e)
    torch.testing.assert_close(e, noise, rtol=1e-3, atol=1e-3)


def test_the_density_integrates_to_one():
    prior = realnvp(latent_dim=1, prior_couplings=3).prior
    z = torch.linspace(-200, 200, 400_001)[:, None]
    with torch.no_grad():
        mass = torch.trapezoid(prior.log_density(z).double().exp(), z[:, 0].double())
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_it_begins_as_the_standard_normal_whatever_initializes_the_networks():
    prior, z = realnvp(trained=False, initialization="orthogonal").prior, torch.randn(9, 5)
    torch.testing.assert_close(prior.log_density(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_it_computes_in_fp32_under_autocast():
    prior = realnvp().prior
    z = torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        inside, sampled = prior.log_density(z.bfloat16().float()), prior.sample(3, torch.Generator(), DEVICE)
    torch.testing.assert_close(inside, prior.log_density(z.bfloat16().float()), rtol=0, atol=0)
    torch.testing.assert_close(sampled, prior.sample(3, torch.Generator(), DEVICE), rtol=0, atol=0)


def test_it_is_saved_with_its_masks(tmp_path):
    model = realnvp()
    model.save(tmp_path / "model.safetensors")
    torch.manual_seed(123)  # the masks of a new model are others
    loaded = VAE.load(tmp_path / "model.safetensors")
    z = torch.randn(7, 5)
    torch.testing.assert_close(loaded.prior.log_density(z), model.prior.log_density(z), rtol=0, atol=0)
