"""The explorer's page as Python makes it."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from vae.config import ModelParams
from vae.errors import ConfigError, DataError
from vae.models.vae import VAE
from vae.serving.explorer.build import FOLDER, MODULES, principal_axes, reference_normal, save_explorer, script


def test_equal_models_give_equal_pages_and_other_weights_another_one(explored, tmp_path):
    model, loader, path = explored
    save_explorer(model, loader, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()
    other = VAE.from_params(model.params, 1)
    save_explorer(other, loader, tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() != path.read_bytes()


def test_the_script_has_every_module_and_nothing_to_import():
    text = script(*MODULES)
    assert {path.stem for path in FOLDER.glob("*.mjs")} == set(MODULES)
    assert "</script" not in text and "\nimport " not in text and "\nexport " not in text


def test_the_principal_axes_are_those_of_scikit_learn_and_two_latents_are_their_own():
    mu = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 2, 3, 0.5, 0.1])
    center, axes = principal_axes(mu)
    expected = PCA(2).fit(mu.numpy())
    np.testing.assert_allclose(center, expected.mean_, atol=1e-5)
    np.testing.assert_allclose(axes.abs(), np.abs(expected.components_), atol=1e-4)
    assert axes.gather(1, axes.abs().argmax(1, keepdim=True)).min() > 0
    assert principal_axes(mu[:, :2])[1].tolist() == [[1, 0], [0, 1]]
    assert principal_axes(mu[:, :1])[1].tolist() == [[1], [0]]


def test_the_kl_by_dimension_is_to_the_prior_or_to_the_normal_that_fits_the_posteriors_best():
    generator = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(50, 3, generator=generator) + 1, torch.randn(50, 3, generator=generator)
    factorized = VAE(hidden_dims=(4,), latent_dim=3, prior="standard")
    assert torch.stack(reference_normal(factorized, mu, logvar)).abs().max() == 0
    m, v = reference_normal(VAE(hidden_dims=(4,), latent_dim=3), mu, logvar)
    posteriors = Independent(Normal(mu, torch.exp(0.5 * logvar)), 0)

    def kl(shift, factor):
        return kl_divergence(posteriors, Independent(Normal(m + shift, torch.exp(0.5 * v) * factor), 0)).sum()

    assert all(kl(0, 1) < kl(shift, factor) for shift, factor in [(0.01, 1), (-0.01, 1), (0, 1.01), (0, 0.99)])


@pytest.mark.parametrize("latents", [1, 2])
def test_few_latents_and_grey_images_have_a_page(tmp_path, latents):
    model = VAE.from_params(ModelParams(hidden_dims=(4,), latent_dim=latents), 0)
    images = TensorDataset(torch.rand(30, 1, 28, 28), torch.arange(30) % 10)
    save_explorer(model, DataLoader(images, 8), tmp_path / "page.html", num_samples=20, binarization="none")
    assert (tmp_path / "page.html").stat().st_size > 50_000


def test_what_has_no_page_is_refused(tmp_path):
    images, path = torch.rand(8, 784), tmp_path / "page.html"
    model = VAE(hidden_dims=(4,), latent_dim=2)
    with pytest.raises(DataError, match="labels are needed"):
        save_explorer(model, DataLoader(images), path)
    with pytest.raises(DataError, match="no images"):
        save_explorer(model, DataLoader(TensorDataset(images[:0], torch.zeros(0).long())), path)
    small = VAE(input_dim=64, hidden_dims=(4,), latent_dim=2)
    with pytest.raises(ConfigError, match="28 × 28 pixels, not "):
        save_explorer(small, DataLoader(TensorDataset(torch.rand(8, 64), torch.zeros(8).long())), path)
    assert not path.exists()
