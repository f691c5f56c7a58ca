"""All figures of a trained and evaluated model, as the render stage and train-vae save them."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae.config import Params
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.evaluation.likelihood import ACTIVE_UNIT_VARIANCE, Evaluation
from vae.models.distributions import gaussian_kl, gaussian_kl_between
from vae.models.vae import VAE
from vae.plots import history, image_grids, latents
from vae.plots.figure import save
from vae.plots.visualize import first_of_each_class, prior_grid

PAIRS = [(0, 6), (1, 7), (2, 3), (4, 9), (5, 8)]  # interpolated classes
TRAVERSED = 4  # latent dimensions shown
STARTS = [0, 4, 7]  # classes whose images the traversals start from
REACH = 3.0  # standard deviations of the posterior means to both sides, over which a traversal goes


def save_figures(
    model: VAE, train: Split, test: Split, result: Evaluation, epochs: pd.DataFrame, params: Params, folder: Path
) -> list[Path]:
    """Plot and save every figure in `folder`; returns the paths.

    The model is on the CPU, `result` is its evaluation on the test images (the columns `elbo` and `kl` suffice), and
    `epochs` is the training history, one row per epoch.
    """
    print(f"plotting the figures{', with a t-SNE of the latents' if result.mu.shape[1] > 2 else ''}")
    figures = plot_all(model, train, test, result, epochs, params)
    return [save(figure, folder / f"{name}.png", params.render.dpi) for name, figure in figures]


@torch.no_grad()
def plot_all(
    model: VAE, train: Split, test: Split, result: Evaluation, epochs: pd.DataFrame, params: Params
) -> Iterator[tuple[str, Figure]]:
    """The name and figure of each plot, with arguments as in `save_figures`."""
    mu, logvar = torch.from_numpy(result.mu), torch.from_numpy(result.logvar)
    yield "training_history", history.training_history(epochs)
    columns = params.render.columns
    first = first_of_each_class(test.labels)
    chosen = first.repeat(-(-columns // len(first)))[:columns]
    binarized = binarize_once(test.images, params.data.binarization)
    original, inputs = to_float(test.images[chosen]), to_float(binarized[chosen])
    reconstruction = model.reconstruct(inputs)
    yield "reconstructions", image_grids.reconstructions(original.numpy(), inputs.numpy(), reconstruction.numpy())
    neg_elbo = -torch.tensor(result.images["elbo"].to_numpy())
    orders = (neg_elbo.argsort(), neg_elbo.argsort(descending=True))
    extremes = torch.stack([order[first_of_each_class(test.labels[order])] for order in orders])
    inputs = to_float(binarized[extremes])
    rebuilt = model.reconstruct(inputs.flatten(0, 1)).view_as(inputs)
    arrays = (part.numpy() for part in (inputs, rebuilt, neg_elbo[extremes]))
    yield "best_and_worst_reconstructions", image_grids.best_and_worst(*arrays)
    samples = model.sample(columns * columns, torch.Generator().manual_seed(params.seed))
    yield "generated_samples", image_grids.generated_samples(samples.numpy(), columns)
    neighbours = to_float(train.images[nearest(samples[:columns], train.images, 2).T.flatten()])
    images, title = torch.cat([samples[:columns], neighbours]), "Samples and their nearest training images"
    yield "nearest_training_images", image_grids.image_rows(images.numpy(), ["sample", "nearest", "second"], title)
    yield "latent_space", latents.latent_space(result.mu, test.labels.numpy(), latents.tsne(result.mu))
    lines = torch.cat([model.interpolate(mu[first[a]], mu[first[b]], columns) for a, b in PAIRS])
    yield "interpolation", image_grids.interpolation(lines.numpy(), columns, PAIRS)
    kl, reference = kl_by_dimension(model, mu, logvar)
    dimensions = kl.argsort(descending=True)[:TRAVERSED].tolist()
    traversed = model.images(traversals(mu, mu[first[STARTS]], dimensions, columns))
    yield "latent_traversals", image_grids.latent_traversals(traversed.numpy(), columns, dimensions, REACH)
    if mu.shape[1] == 2:
        manifold = model.images(prior_grid(2 * columns))
        yield "latent_manifold", image_grids.latent_manifold(manifold.numpy(), 2 * columns)
    variance, total = result.mu.var(axis=0, ddof=1), result.images["kl"].mean()
    yield "kl_per_dimension", latents.kl_per_dimension(kl.numpy(), ACTIVE_UNIT_VARIANCE, variance, reference, total)


def nearest(samples: Tensor, images: Tensor, count: int) -> Tensor:
    """The indices of the `count` uint8 `images` [N, D] nearest to each of `samples` [M, D]: [M, count]."""
    distances = [torch.cdist(samples, to_float(part)) for part in images.split(10_000)]
    return torch.cat(distances, 1).topk(count, largest=False).indices


def kl_by_dimension(model: VAE, mu: Tensor, logvar: Tensor) -> tuple[Tensor, str]:
    """KL of posteriors [N, L] by dimension, averaged over images, [L], and the name of the reference distribution.

    The reference is the prior where it is N(0, 1). Other priors are no product over dimensions: the reference is then
    the normal distribution with the mean and variance of the aggregate posterior.
    """
    if model.prior.factorized:
        return gaussian_kl(mu, logvar).mean(0), "N(0, 1)"
    variance = mu.var(0, correction=0) + logvar.exp().mean(0)
    kl = gaussian_kl_between(mu, logvar, mu.mean(0), variance.log()).mean(0)
    return kl, "a normal fit of the aggregate posterior"


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
