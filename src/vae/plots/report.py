"""All figures of a trained and evaluated model, as the render stage and train-vae save them."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from vae.config import Params
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.evaluation.kl_decomposition import reference_normal
from vae.evaluation.likelihood import ACTIVE_UNIT_VARIANCE, Evaluation
from vae.models.distributions import gaussian_kl_between
from vae.models.vae import VAE
from vae.plots import history, image_grids, latents
from vae.plots.figure import Array, class_names, save
from vae.plots.visualize import first_of_each_class, prior_grid

PAIRS = [(0, 6), (1, 7), (2, 3), (4, 9), (5, 8)]  # interpolated classes, where there are ten
TRAVERSED = 4  # latent dimensions shown
STARTS = [0, 4, 7]  # classes whose images the traversals start from, where there are ten
COMPARED = 20  # classes at most whose best and worst reconstructions are shown
REACH = 3.0  # standard deviations of the posterior means to both sides, over which a traversal goes


def save_figures(
    model: VAE,
    train: Split,
    test: Split,
    result: Evaluation,
    epochs: pd.DataFrame,
    params: Params,
    folder: Path,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Plot and save every figure in `folder`; returns the paths.

    The model is on the CPU, `result` is its evaluation on the test images (the columns `elbo` and `kl` suffice), and
    `epochs` is the training history, one row per epoch. `classes` are the names of labels. Without labels, the figures
    show test images in their order.
    """
    print(f"plotting the figures{', with a t-SNE of the latents' if latents.has_tsne(result.mu) else ''}")
    if test.labels is None:
        print("left out: classes, as the images have no labels")
    figures = plot_all(model, train, test, result, epochs, params, classes)
    return [save(figure, folder / f"{name}.png", params.render.dpi) for name, figure in figures]


@torch.no_grad()
def plot_all(
    model: VAE,
    train: Split,
    test: Split,
    result: Evaluation,
    epochs: pd.DataFrame,
    params: Params,
    classes: Sequence[str] = (),
) -> Iterator[tuple[str, Figure]]:
    """The name and figure of each plot, with arguments as in `save_figures`."""

    def shaped(images: Tensor) -> Array:
        return image_grids.shaped(images, model.image_shape)

    def labels_of(chosen: Tensor) -> Tensor | None:
        return None if test.labels is None else test.labels[chosen]

    mu, logvar = torch.from_numpy(result.mu), torch.from_numpy(result.logvar)
    yield "training_history", history.training_history(epochs)
    columns = params.render.columns
    first = representatives(test)
    chosen = by_turns(test.labels)[:columns] if test.labels is not None else torch.arange(len(test))[:columns]
    binarized = binarize_once(test.images, params.data.binarization)
    original, inputs = to_float(test.images[chosen]), to_float(binarized[chosen])
    rows = (original, inputs, model.reconstruct(inputs, labels_of(chosen)))
    yield "reconstructions", image_grids.reconstructions(*map(shaped, rows))
    neg_elbo = -torch.tensor(result.images["elbo"].to_numpy())
    extremes = best_and_worst(neg_elbo, test.labels, columns)
    inputs = to_float(binarized[extremes])
    rebuilt = model.reconstruct(inputs.flatten(0, 1), labels_of(extremes.flatten())).view_as(inputs)
    arrays = (shaped(inputs), shaped(rebuilt), neg_elbo[extremes].numpy())
    yield "best_and_worst_reconstructions", image_grids.best_and_worst(*arrays, by_class=test.labels is not None)
    samples = model.sample(columns * columns, torch.Generator().manual_seed(params.seed))
    yield "generated_samples", image_grids.generated_samples(shaped(samples), columns)
    neighbours = to_float(train.images[nearest(samples[:columns], train.images, 2).T.flatten()])
    images, title = torch.cat([samples[:columns], neighbours]), "Samples and their nearest training images"
    yield "nearest_training_images", image_grids.image_rows(shaped(images), ["sample", "nearest", "second"], title)
    labels = None if test.labels is None else test.labels.numpy()
    yield "latent_space", latents.latent_space(result.mu, labels, latents.tsne(result.mu), classes)
    pairs = PAIRS if len(first) >= 10 else list(combinations(range(len(first)), 2))[: len(PAIRS)]
    # Of a conditional model, each line is in the class of its first image.
    lines = torch.cat(
        [model.interpolate(mu[first[a]], mu[first[b]], columns, labels=labels_of(first[a])) for a, b in pairs]
    )
    names = [f"image {n}" for n in first] if test.labels is None else class_names(test.labels[first].numpy(), classes)
    named = [(names[a], names[b]) for a, b in pairs]
    yield "interpolation", image_grids.interpolation(shaped(lines), columns, named)
    kl, reference = kl_by_dimension(model, mu, logvar)
    dimensions = kl.argsort(descending=True)[:TRAVERSED].tolist()
    starts = first[STARTS if len(first) >= 10 else slice(len(STARTS))]
    given = labels_of(starts.repeat_interleave(columns).repeat(len(dimensions)))
    traversed = model.images(traversals(mu, mu[starts], dimensions, columns), given)
    yield "latent_traversals", image_grids.latent_traversals(shaped(traversed), columns, dimensions, REACH)
    if mu.shape[1] == 2:
        manifold = model.images(prior_grid(model, 2 * columns), 0)  # of a conditional model, its first class
        yield "latent_manifold", image_grids.latent_manifold(shaped(manifold), 2 * columns)
    variance, total = result.mu.var(axis=0, ddof=1), result.images["kl"].mean()
    yield "kl_per_dimension", latents.kl_per_dimension(kl.numpy(), ACTIVE_UNIT_VARIANCE, variance, reference, total)


def representatives(split: Split) -> Tensor:
    """The index of the first image of each class; of all images where there are not two classes."""
    first = first_of_each_class(split.labels) if split.labels is not None else torch.empty(0)
    return first if len(first) > 1 else torch.arange(len(split))


def by_turns(labels: Tensor) -> Tensor:
    """The indices of all images [N]: the first of each class, in the order of labels, then the second of each, …"""
    classes, label = labels.unique(return_inverse=True)
    turn = F.one_hot(label).cumsum(0).gather(1, label[:, None])[:, 0]
    order: Tensor = (turn * len(classes) + label).argsort()
    return order


def best_and_worst(neg_elbo: Tensor, labels: Tensor | None, count: int) -> Tensor:
    """The indices of the images with the lowest and the highest −ELBO [N]: of each class, or `count` of all: [2, n]."""
    orders = (neg_elbo.argsort(), neg_elbo.argsort(descending=True))
    if labels is None:
        return torch.stack([order[:count] for order in orders])
    return torch.stack([order[first_of_each_class(labels[order])][:COMPARED] for order in orders])


def nearest(samples: Tensor, images: Tensor, count: int) -> Tensor:
    """The indices of the `count` uint8 `images` [N, D] nearest to each of `samples` [M, D]: [M, count]."""
    distances = [torch.cdist(samples, to_float(part)) for part in images.split(10_000)]
    return torch.cat(distances, 1).topk(count, largest=False).indices


def kl_by_dimension(model: VAE, mu: Tensor, logvar: Tensor) -> tuple[Tensor, str]:
    """KL of posteriors [N, L] to `reference_normal` by dimension, mean over images, [L], and the reference's name."""
    name = "N(0, 1)" if model.prior.factorized else "a normal fit of the aggregate posterior"
    return gaussian_kl_between(mu, logvar, *reference_normal(model, mu, logvar)).mean(0), name


def traversals(mu: Tensor, starts: Tensor, dimensions: list[int], steps: int) -> Tensor:
    """`starts` [S, L], with each of `dimensions` in turn varied over the range of `mu` [N, L].

    The range is REACH standard deviations to both sides of the mean: a learned prior may have any location and scale.
    Returns [dimensions · S · steps, L].
    """
    z = starts[:, None].repeat(len(dimensions), 1, steps, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, :, dimension] = mu[:, dimension].mean() + mu[:, dimension].std() * torch.linspace(
            -REACH, REACH, steps
        )
    return z.flatten(0, 2)
