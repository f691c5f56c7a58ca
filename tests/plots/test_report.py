"""The figures of a trained model: what is chosen for them, and that they agree with the metrics."""

import numpy as np
import pandas as pd
import pytest
import torch

from vae import VAE, evaluate
from vae.config import EvaluateParams, ModelParams, Params
from vae.data.binarization import binarize_once
from vae.data.datasets import Split, load
from vae.plots import report
from vae.plots.image_grids import best_and_worst, latent_traversals
from vae.plots.latents import kl_per_dimension, latent_space, tsne

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def split(bundled):
    images = load(bundled[0], "train")
    return Split(images.images[:600], images.labels[:600])


@pytest.mark.parametrize("prior", ["standard", "gaussian_mixture"])
def test_the_figures_of_a_model_agree_with_its_evaluation(split, prior):
    params = Params(model=ModelParams(hidden_dims=(16,), latent_dim=3, prior=prior, prior_components=5))
    model = VAE.from_params(params.model, 0)
    test = Split(split.images[:300], split.labels[:300])
    targets = binarize_once(test.images, params.data.binarization)
    result = evaluate(model, targets, test.labels, EvaluateParams(importance_samples=50))
    row = {f"{part}/{key}": [1.0] for part in ("train", "val") for key in ("neg_elbo", "reconstruction", "kl")}
    history = pd.DataFrame({"epoch": [1], **row, "improved": [1]})
    figures = dict(report.plot_all(model, split, test, result, history, params))
    title, *second = figures["kl_per_dimension"].axes[0].get_title().splitlines()
    if prior == "standard":
        assert title == f"KL to N(0, 1) by latent dimension: {result.metrics()['kl']:.1f} nats"
        assert not second
    else:
        assert second == [f"KL of the whole model to its own prior: {result.metrics()['kl']:.1f} nats"]
    best, worst = figures["best_and_worst_reconstructions"].axes
    by_class = (-result.images["elbo"]).groupby(result.images["label"])
    for ax, values in ((best, by_class.min()), (worst, by_class.max())):
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"{value:.0f}" for value in values]
    assert len(figures["latent_space"].axes) == 2


def test_a_tsne_is_repeatable_and_keeps_clusters_apart():
    labels = np.arange(120) % 3
    mu = RANDOM.normal(size=(120, 6)) + 8 * np.eye(3, 6)[labels]
    points = tsne(mu)
    np.testing.assert_array_equal(points, tsne(mu))
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(120, np.inf))
    assert (labels[distances.argmin(1)] == labels).all()


def test_an_embedding_of_some_images_is_shown_beside_the_principal_components_of_all():
    figure = latent_space(RANDOM.normal(size=(90, 4)), np.arange(90) % 3, RANDOM.normal(size=(30, 2)))
    shown = [sum(len(dots.get_offsets()) for dots in ax.collections) for ax in figure.axes]
    assert shown == [90, 30]
    assert [ax.get_title() for ax in figure.axes] == ["PCA of 4 latent dimensions", "t-SNE of 30 of them"]


def test_the_bar_of_an_inactive_dimension_can_be_seen():
    figure = kl_per_dimension(np.array([2.5, 0.003]), 0.01, np.array([1.0, 0.001]))
    figure.draw_without_rendering()
    assert figure.axes[0].patches[1].get_window_extent().height > 3  # pixels
    assert figure.axes[0].patches[0].get_window_extent().height < figure.axes[0].get_window_extent().height


def test_the_nearest_training_image_of_a_copy_is_the_original(split):
    copies = [17, 431]
    samples = split.images[copies].float() / 255
    found = report.nearest(samples, split.images, 2)
    assert found[:, 0].tolist() == copies
    others = (samples[:, None] - split.images.float() / 255).norm(dim=2).scatter(1, found[:, :1], torch.inf)
    assert found[:, 1].tolist() == others.argmin(1).tolist()


def test_traversals_vary_one_dimension_from_each_start():
    starts = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    z = report.traversals(starts, [2, 0], steps=5).view(2, 2, 5, 3)
    for row, dimension in enumerate([2, 0]):
        others = [j for j in range(3) if j != dimension]
        assert z[row, :, :, dimension].tolist() == [[-3, -1.5, 0, 1.5, 3]] * 2
        assert (z[row, :, :, others] == starts[:, None, others]).all()
    figure = latent_traversals(RANDOM.random((20, 784)), 5, [2, 0], 3.0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["", "z[2]", "", "z[0]"]


def test_best_and_worst_show_inputs_above_their_reconstructions():
    inputs, reconstruction = RANDOM.random((2, 2, 4, 784))
    figure = best_and_worst(inputs, reconstruction, np.array([[60.2, 1, 2, 3], [199.7, 5, 6, 7]]))
    for ax, above, below, nats in zip(figure.axes, inputs, reconstruction, ("60", "200"), strict=True):
        grid = ax.get_images()[0].get_array()
        np.testing.assert_array_equal(grid[:28, :28], above[0].reshape(28, 28))
        np.testing.assert_array_equal(grid[29:, 29 * 3 :], below[3].reshape(28, 28))
        assert ax.get_xticklabels()[0].get_text() == nats
