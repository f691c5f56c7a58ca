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
from vae.plots.latents import kl_per_dimension, tsne


@pytest.mark.parametrize("prior", ["standard", "gaussian_mixture"])
def test_the_figures_of_a_model_agree_with_its_evaluation(bundled, prior):
    params = Params(model=ModelParams(hidden_dims=(16,), latent_dim=3, prior=prior, prior_components=5))
    model, train = VAE.from_params(params.model, 0), load(bundled[0], "train")
    test = Split(train.images[:300], train.labels[:300])
    targets = binarize_once(test.images, params.data.binarization)
    result = evaluate(model, targets, test.labels, EvaluateParams(importance_samples=50))
    names = [f"{part}/{key}" for part in ("train", "val") for key in ("neg_elbo", "reconstruction", "kl")]
    history = pd.DataFrame({"epoch": [1], **dict.fromkeys(names, 1.0), "improved": [1]})
    figures = dict(report.plot_all(model, train, test, result, history, params))
    nats = f"{result.metrics()['kl']:.1f} nats"
    said = "KL to N(0, 1) by latent dimension" if prior == "standard" else "KL of the whole model to its own prior"
    assert figures["kl_per_dimension"].axes[0].get_title().splitlines()[-1] == f"{said}: {nats}"
    by_class = (-result.images["elbo"]).groupby(result.images["label"])
    axes = figures["best_and_worst_reconstructions"].axes
    for ax, values in zip(axes, (by_class.min(), by_class.max()), strict=True):
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"{value:.0f}" for value in values]
    best = targets[by_class.idxmin()[0]].view(28, 28) / 255
    np.testing.assert_array_equal(axes[0].get_images()[0].get_array()[:28, :28], best)
    assert figures["latent_space"].axes[1].get_title() == "t-SNE of 300 of them"


@pytest.mark.parametrize("classes", [["left", "right", "both"], ["all"], None])
def test_colour_images_have_figures_whatever_their_classes_are(tmp_path, capsys, classes):
    params = Params().replaced({"data.binarization": "none", "model.prior": "standard", "render.columns": 4})
    model = VAE(image_shape=(3, 6, 9), hidden_dims=[8], latent_dim=2, prior="standard")
    images = (torch.rand(40, 162, generator=torch.Generator().manual_seed(0)) * 255).byte()
    split = Split(images, None if classes is None else torch.arange(40) % len(classes))
    result = evaluate(model, images, torch.zeros(40).long(), EvaluateParams(importance_samples=1))
    row = {f"{part}/{key}": [1.0] for part in ("train", "val") for key in ("neg_elbo", "reconstruction", "kl")}
    history = pd.DataFrame({"epoch": [1], **row, "improved": [1]})
    arguments = (model, split, split, result, history, params)
    figures = dict(report.plot_all(*arguments, classes or []))
    rows = [label.get_text() for label in figures["interpolation"].axes[0].get_yticklabels()]
    if classes is not None and len(classes) > 1:
        assert rows == ["left → right", "left → both", "right → both"]
    else:
        assert len(rows) == 5
    title = figures["best_and_worst_reconstructions"].axes[0].get_title("left")
    assert ("of each class" in title) == (classes is not None)
    (shown,) = figures["reconstructions"].axes[0].get_images()
    assert shown.get_array().shape == (2 * 7 - 1, 4 * 10 - 1, 3)
    first = shown.get_array()[:6, :9].transpose(2, 0, 1)  # the first row has the images themselves
    np.testing.assert_allclose(first, images[0].view(3, 6, 9) / 255, atol=1e-6)
    paths = report.save_figures(*arguments, tmp_path, classes or [])
    assert {path.stem for path in paths} == set(figures)
    assert ("left out: classes" in capsys.readouterr().out) == (classes is None)


def test_the_best_and_the_worst_are_those_of_all_images_where_there_are_no_labels():
    neg_elbo = torch.tensor([5.0, 1.0, 9.0, 3.0])
    assert report.best_and_worst(neg_elbo, None, 2).tolist() == [[1, 3], [2, 0]]
    assert report.best_and_worst(neg_elbo, torch.tensor([0, 0, 1, 1]), 2).tolist() == [[1, 3], [0, 2]]


def test_a_row_has_the_first_image_of_each_class_then_the_second_and_so_on():
    assert report.by_turns(torch.tensor([7, 7, 2, 7, 2, 5])).tolist() == [2, 5, 0, 4, 1, 3]


def test_a_tsne_is_repeatable():
    mu = np.random.default_rng(0).normal(size=(120, 6))
    np.testing.assert_array_equal(tsne(mu), tsne(mu))


def test_a_collapsed_model_has_figures_without_a_tsne(bundled):
    model = VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=3, prior="standard"), 0)
    for parameter in model.encoder.parameters():
        parameter.data.zero_()
    split = load(bundled[0], "train")
    split = Split(split.images[:300], split.labels[:300])
    result = evaluate(model, binarize_once(split.images, "dynamic"), split.labels, EvaluateParams(importance_samples=1))
    row = {f"{part}/{key}": [1.0] for part in ("train", "val") for key in ("neg_elbo", "reconstruction", "kl")}
    history = pd.DataFrame({"epoch": [1], **row, "improved": [1]})
    figures = dict(report.plot_all(model, split, split, result, history, Params()))
    assert len(figures["latent_space"].axes) == 1


def test_the_bar_of_an_inactive_dimension_can_be_seen():
    figure = kl_per_dimension(np.array([2.5, 0.003]), 0.01, np.array([1.0, 0.001]))
    figure.draw_without_rendering()
    assert figure.axes[0].patches[1].get_window_extent().height > 3  # pixels


def test_the_nearest_training_image_of_a_copy_is_the_original(bundled):
    images = load(bundled[0], "train").images[:600]
    assert report.nearest(images[[17, 431]].float() / 255, images, 2)[:, 0].tolist() == [17, 431]


def test_traversals_vary_one_dimension_from_each_start():
    starts = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    mu = torch.tensor([[1.0, 0, 3], [-1, 0, 7]])  # with standard deviations √2, 0 and 2√2
    z = report.traversals(mu, starts, [2, 0], steps=3).view(2, 2, 3, 3)
    for row, (dimension, others) in enumerate([(2, [0, 1]), (0, [1, 2])]):
        middle, reach = mu[:, dimension].mean(), (3 * 2**0.5, 0, 6 * 2**0.5)[dimension]
        expected = torch.stack([middle - reach, middle, middle + reach]).expand(2, 3)
        torch.testing.assert_close(z[row, :, :, dimension], expected)
        assert (z[row, :, :, others] == starts[:, None, others]).all()
