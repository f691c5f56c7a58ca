"""The explorer's page as Python makes it."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from vae.config import EvaluateParams, ModelParams
from vae.errors import ConfigError, DataError
from vae.evaluation.kl_decomposition import reference_normal
from vae.evaluation.likelihood import evaluate
from vae.models.vae import VAE
from vae.serving.explorer.build import FOLDER, MODULES, evaluated, principal_axes, save_explorer, script


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
    model = VAE.from_params(ModelParams(hidden_dims=(4,), latent_dim=latents, likelihood="gaussian"), 0)
    images = TensorDataset(torch.rand(30, 1, 28, 28), torch.arange(30) % 10)
    save_explorer(model, DataLoader(images, 8), tmp_path / "page.html", num_samples=20, binarization="none")
    assert (tmp_path / "page.html").stat().st_size > 50_000


def test_a_loader_without_images_is_refused(tmp_path):
    model = VAE(hidden_dims=(4,), latent_dim=2)
    with pytest.raises(DataError, match="no images"):
        save_explorer(model, DataLoader(TensorDataset(torch.rand(0, 784))), tmp_path / "page.html")
    with pytest.raises(ConfigError, match="num_samples is 0, allowed is 1 or more"):
        save_explorer(model, DataLoader(torch.rand(5, 784)), tmp_path / "page.html", num_samples=0)
    assert not (tmp_path / "page.html").exists()


def test_a_binarization_that_the_likelihood_is_not_for_and_missing_labels_are_refused(tmp_path):
    grey = DataLoader(torch.rand(5, 784))
    kinds = [("bernoulli", "none", "requires black-and-white"), ("gaussian", "dynamic", "requires grey or colour")]
    for likelihood, binarization, words in kinds:
        model = VAE(hidden_dims=(4,), latent_dim=2, likelihood=likelihood)
        with pytest.raises(ConfigError, match=words):
            save_explorer(model, grey, tmp_path / "page.html", binarization=binarization)
    with pytest.raises(DataError, match="labels are needed here"):
        save_explorer(VAE(hidden_dims=(4,), latent_dim=2, conditional=True, classes=3), grey, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_has_the_first_of_the_test_images_where_all_are_too_many(monkeypatch):
    model = VAE(image_shape=(3, 4, 5), hidden_dims=(4,), latent_dim=3, prior="standard")
    images = (torch.rand(30, 60, generator=torch.Generator().manual_seed(0)) * 255).byte()
    result = evaluate(model, images, 300 * (torch.arange(30) % 2), EvaluateParams(importance_samples=1))
    monkeypatch.setattr("vae.serving.explorer.build.MAX_BYTES", 60 * 20 + 7)
    arrays = evaluated(model, images, result)
    assert torch.equal(arrays["images"], images[:20])
    assert [len(arrays[name]) for name in ("means", "labels", "neg_elbo")] == [20, 20, 20]
    assert arrays["labels"][:2].tolist() == [0, 300]
    binary = evaluated(model, images // 128 * 255, result)
    assert len(binary["images"]) == 30
    assert torch.equal(torch.tensor(np.unpackbits(binary["images"], axis=1)[:, :60]), images // 128)


def test_images_without_labels_have_a_page(tmp_path):
    model = VAE(image_shape=(3, 4, 5), hidden_dims=(4,), latent_dim=3, prior="standard", likelihood="gaussian")
    save_explorer(model, DataLoader(torch.rand(30, 3, 4, 5), 8), tmp_path / "page.html", binarization="none")
    assert (tmp_path / "page.html").stat().st_size > 50_000
