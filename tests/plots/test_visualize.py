"""The one-call functions on a model and a DataLoader."""

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import vae
from vae import VAE
from vae.errors import ConfigError, DataError
from vae.plots.visualize import prior_grid


def small(latent_dim=2):
    return VAE(hidden_dims=[32], latent_dim=latent_dim)


PLOTS = {
    "reconstruction": lambda model, loader, path: vae.visualize_reconstruction(model, loader, "cpu", 8, path),
    "latent_space": lambda model, loader, path: vae.visualize_latent_space(model, loader, "cpu", 200, path),
    "interpolation": lambda model, loader, path: vae.visualize_interpolation(model, loader, "cpu", 8, path),
    "arithmetic": lambda model, loader, path: vae.visualize_latent_arithmetic(model, loader, save_path=path),
    "samples": lambda model, loader, path: vae.generate_samples(model, "cpu", 16, path),
    "manifold": lambda model, loader, path: vae.visualize_latent_manifold(model, "cpu", 100, path),
}


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_is_returned_and_saved_where_a_path_is_given(loader, tmp_path, name):
    path = tmp_path / "figures" / f"{name}.png"
    assert isinstance(PLOTS[name](small(), loader, path), Figure)
    assert np.asarray(Image.open(path).convert("L")).std() > 5
    path.unlink()
    PLOTS[name](small(), loader, None)
    assert not path.exists()


def test_reconstructions_are_those_of_the_posterior_means(loader):
    model = small()
    figure = vae.visualize_reconstruction(model, loader, num_samples=5, binarization="none")
    x = next(iter(loader))[0][:5].flatten(1)
    made = torch.sigmoid(model.decode(model.encode(x)[0])).detach()
    (image,) = figure.axes[0].get_images()
    for row, expected in enumerate((x, made)):  # without binarization, the input is the image
        for column in range(5):
            cell = image.get_array()[29 * row :, 29 * column :][:28, :28]
            np.testing.assert_allclose(cell, expected[column].view(28, 28), atol=1e-6)


def test_fewer_images_than_asked_for_are_all_shown(digits):
    few = DataLoader(TensorDataset(*digits[:3]), 2)
    assert isinstance(vae.visualize_reconstruction(small(), few, num_samples=8), Figure)


def test_latent_means_are_means_over_the_images_of_each_label(loader, digits):
    model = small()
    images, labels = digits.tensors
    mu, _ = model.encode(images)
    means = vae.latent_means(model, loader)
    assert set(means) == set(labels.tolist())
    for label, mean in means.items():
        torch.testing.assert_close(mean, mu[labels == label].mean(0), atol=1e-5, rtol=0)


def test_a_manifold_needs_two_latent_dimensions():
    with pytest.raises(ConfigError, match="a manifold needs 2 latent dimensions, this model has 3"):
        vae.visualize_latent_manifold(small(3))


def test_figures_by_class_need_labels_and_the_latent_space_does_not(digits):
    alone = DataLoader(digits.tensors[0], batch_size=8)
    assert not vae.visualize_latent_space(small(), alone).legends
    for plot in (vae.visualize_interpolation, vae.visualize_latent_arithmetic):
        with pytest.raises(DataError, match=r"must yield \(images, labels\)"):
            plot(small(), alone)


def test_classes_have_names_and_images_colours_and_any_sides():
    model = VAE(image_shape=(3, 6, 8), hidden_dims=[8], latent_dim=2, prior="standard")
    loader = DataLoader(TensorDataset(torch.rand(40, 3, 6, 8), torch.arange(40) % 3), batch_size=16)
    names = ["ant", "bee", "fly"]
    (legend,) = vae.visualize_latent_space(model, loader, classes=names).legends
    assert [text.get_text() for text in legend.get_texts()] == names
    axes = vae.visualize_interpolation(model, loader, classes=names).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant → bee"]
    assert axes.get_images()[0].get_array().shape == (6, 8 * 9 - 1, 3)
    sums = vae.visualize_latent_arithmetic(model, loader, terms=(0, 1, 2), classes=names)
    assert sums.axes[3].get_title() == "= ant\n− bee\n+ fly"
    for figure in (vae.visualize_reconstruction(model, loader), vae.generate_samples(model)):
        assert figure.axes[0].get_images()[0].get_array().shape[2] == 3
    assert vae.visualize_latent_manifold(model, num_samples=9).axes[0].get_images()[0].get_array().shape == (20, 26, 3)


def cells(figure, count):
    """The first `count` images of a figure with one row, [count, 784]."""
    array = figure.axes[0].get_images()[0].get_array()
    return torch.tensor(np.stack([array[:28, 29 * column :][:, :28].flatten() for column in range(count)])).float()


@torch.no_grad()
def test_a_conditional_model_is_shown_by_class(loader, digits):
    torch.manual_seed(0)
    model = VAE(hidden_dims=[32], latent_dim=2, prior="standard", conditional=True, classes=10)
    model.label_images.normal_()
    images, labels = digits.tensors
    rebuilt = vae.visualize_reconstruction(model, loader, num_samples=4, binarization="none")
    torch.testing.assert_close(cells(rebuilt, 4), images[:4].flatten(1))
    array = rebuilt.axes[0].get_images()[0].get_array()[29:57, :28]
    np.testing.assert_allclose(array.flatten(), model.reconstruct(images[:1], labels[:1])[0], atol=1e-6)
    mu = model.encode(images, labels).mu
    zeros = (labels == 0).nonzero()[:2, 0]
    line = vae.visualize_interpolation(model, loader, num_samples=3)
    assert [name.get_text() for name in line.axes[0].get_yticklabels()] == [f"{n} → {n}" for n in range(10)]
    torch.testing.assert_close(cells(line, 3), model.interpolate(*mu[zeros], 3, labels=0))
    samples = vae.generate_samples(model, "cpu", 9, generator=torch.Generator().manual_seed(1), labels=7)
    expected = model.sample(9, torch.Generator().manual_seed(1), labels=7)
    torch.testing.assert_close(cells(samples, 3), expected[:3])
    means = vae.latent_means(model, loader)
    torch.testing.assert_close(means[5], mu[labels == 5].mean(0))
    sums = vae.visualize_latent_arithmetic(model, loader, terms=(4, 2, 3))
    shown = torch.tensor(sums.axes[3].get_images()[0].get_array()).float().flatten()
    torch.testing.assert_close(shown, model.images(means[4] - means[2] + means[3], 4))
    grid = vae.visualize_latent_manifold(model, num_samples=4, label=6)
    low, high = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.025, 0.975]))
    torch.testing.assert_close(cells(grid, 1)[0], model.images(torch.stack([low, high]), 6))
    assert vae.visualize_latent_space(model, loader).legends


def test_the_manifold_lies_where_the_prior_does():
    model = VAE(784, [8], 2, prior="gaussian_mixture", prior_components=1)
    with torch.no_grad():
        model.prior.mu.copy_(torch.tensor([[12.0, -3.0]]))
        model.prior.logvar.copy_(torch.tensor([[0.0, 2.0]]))
    _, top_right, bottom_left, _ = prior_grid(model, 2)
    reach = 1.96 * torch.tensor([1.0, math.e])
    torch.testing.assert_close(top_right, torch.tensor([12.0, -3.0]) + reach, atol=0.3, rtol=0)
    torch.testing.assert_close(bottom_left, torch.tensor([12.0, -3.0]) - reach, atol=0.3, rtol=0)


def test_what_a_conditional_model_needs_is_said(digits):
    model = VAE(hidden_dims=[32], latent_dim=2, conditional=True, classes=10)
    for plot in (vae.visualize_reconstruction, vae.visualize_latent_space):
        with pytest.raises(DataError, match=r"must yield \(images, labels\)"):
            plot(model, DataLoader(digits.tensors[0], batch_size=8))
    with pytest.raises(DataError, match="it takes a label from 0 to 9"):
        vae.visualize_latent_manifold(model)
    one_each = DataLoader(TensorDataset(digits.tensors[0][:2], torch.arange(2)), 2)
    with pytest.raises(DataError, match="needs two images of a class"):
        vae.visualize_interpolation(model, one_each)


def test_a_missing_class_is_named(digits):
    images, labels = digits.tensors
    few = DataLoader(TensorDataset(images[labels < 2], labels[labels < 2]), batch_size=8)
    with pytest.raises(DataError, match=r"no images labelled \[8, 3\], only \[0, 1\]"):
        vae.visualize_latent_arithmetic(small(), few)
    with pytest.raises(DataError, match="needs images of two classes"):
        vae.visualize_interpolation(small(), DataLoader(TensorDataset(images[labels == 1], labels[labels == 1]), 8))


def test_no_images_are_refused(loader):
    with pytest.raises(DataError, match="yields no images"):
        vae.visualize_reconstruction(small(), DataLoader(TensorDataset(torch.rand(0, 784))))
    with pytest.raises(ConfigError, match="num_samples is 0"):
        vae.visualize_reconstruction(small(), loader, num_samples=0)
    with pytest.raises(ConfigError, match="num_samples is 0"):
        vae.generate_samples(small(), num_samples=0)
