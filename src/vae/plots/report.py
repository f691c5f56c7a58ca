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
from vae.evaluation.likelihood import ACTIVE_UNIT_VARIANCE, Floats
from vae.models.distributions import gaussian_kl, gaussian_kl_between
from vae.models.vae import VAE
from vae.plots import history, image_grids, latents
from vae.plots.figure import save
from vae.plots.visualize import first_of_each_class, prior_grid

PAIRS = [(0, 6), (1, 7), (2, 3), (4, 9), (5, 8)]  # interpolated classes
TRAVERSED = 8  # latent dimensions shown
REACH = 3.0  # a traversal goes from −REACH to REACH


def save_figures(
    model: VAE, test: Split, mu: Floats, logvar: Floats, epochs: pd.DataFrame, params: Params, folder: Path
) -> list[Path]:
    """Plot and save every figure in `folder`; returns the paths.

    The model is on the CPU, `mu` and `logvar` [N, L] are its posteriors of the test images, and `epochs` is the
    training history, one row per epoch.
    """
    figures = plot_all(model, test, torch.from_numpy(mu), torch.from_numpy(logvar), epochs, params)
    return [save(figure, folder / f"{name}.png", params.render.dpi) for name, figure in figures]


@torch.no_grad()
def plot_all(
    model: VAE, test: Split, mu: Tensor, logvar: Tensor, epochs: pd.DataFrame, params: Params
) -> Iterator[tuple[str, Figure]]:
    """The name and figure of each plot, with arguments as in `save_figures`."""
    yield "training_history", history.training_history(epochs)
    columns = params.render.columns
    first = first_of_each_class(test.labels)
    chosen = first.repeat(-(-columns // len(first)))[:columns]
    inputs = to_float(binarize_once(test.images, params.data.binarization)[chosen])
    original, reconstruction = to_float(test.images[chosen]), model.reconstruct(inputs)
    yield "reconstructions", image_grids.reconstructions(original.numpy(), inputs.numpy(), reconstruction.numpy())
    samples = model.sample(columns * columns, torch.Generator().manual_seed(params.seed))
    yield "generated_samples", image_grids.generated_samples(samples.numpy(), columns)
    yield "latent_space", latents.latent_space(mu.numpy(), test.labels.numpy())
    lines = torch.cat([model.interpolate(mu[first[a]], mu[first[b]], columns) for a, b in PAIRS])
    yield "interpolation", image_grids.interpolation(lines.numpy(), columns, PAIRS)
    kl, reference = kl_by_dimension(model, mu, logvar)
    dimensions = kl.argsort(descending=True)[:TRAVERSED].tolist()
    traversed = model.images(traversals(mu[first[0]], dimensions, columns))
    yield "latent_traversals", image_grids.latent_traversals(traversed.numpy(), columns, dimensions, REACH)
    if mu.shape[1] == 2:
        manifold = model.images(prior_grid(2 * columns))
        yield "latent_manifold", image_grids.latent_manifold(manifold.numpy(), 2 * columns)
    variance = mu.numpy().var(axis=0, ddof=1)
    yield "kl_per_dimension", latents.kl_per_dimension(kl.numpy(), ACTIVE_UNIT_VARIANCE, variance, reference)


def kl_by_dimension(model: VAE, mu: Tensor, logvar: Tensor) -> tuple[Tensor, str]:
    """KL of posteriors [N, L] by dimension, averaged over images, [L], and the name of the reference distribution.

    The reference is the prior where it is N(0, 1). Other priors are no product over dimensions: the reference is then
    the normal distribution with the mean and variance of the aggregate posterior.
    """
    if model.prior.factorized:
        return gaussian_kl(mu, logvar).mean(0), "N(0, 1)"
    variance = mu.var(0, correction=0) + logvar.exp().mean(0)
    return gaussian_kl_between(mu, logvar, mu.mean(0), variance.log()).mean(
        0
    ), "a normal fit of the aggregate posterior"


def traversals(start: Tensor, dimensions: list[int], steps: int) -> Tensor:
    """`start` [L] with each of `dimensions` in turn varied from −REACH to REACH: [dimensions · steps, L]."""
    z = start.repeat(len(dimensions), steps, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-REACH, REACH, steps)
    return z.flatten(0, 1)
