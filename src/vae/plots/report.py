"""All figures of a trained and evaluated model: what the render stage and train-vae draw."""

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
from vae.plots import figures
from vae.plots.visualize import first_of_each_digit, prior_grid

PAIRS = [(0, 6), (1, 7), (2, 3), (4, 9), (5, 8)]  # interpolated digits
TRAVERSED = 8  # latent dimensions shown
REACH = 3.0  # a traversal goes from −REACH to REACH


@torch.no_grad()
def draw(
    model: VAE, test: Split, mu: Floats, logvar: Floats, history: pd.DataFrame, params: Params, folder: Path
) -> list[Path]:
    """Draw every figure into `folder`; returns the files.

    The model is on the CPU, `mu` and `logvar` [N, L] are its posteriors of the test images, `history` has a row an
    epoch.
    """
    drawn = _draw(model, test, torch.from_numpy(mu), torch.from_numpy(logvar), history, params)
    return [figures.save(figure, folder / f"{name}.png", params.render.dpi) for name, figure in drawn]


def _draw(
    model: VAE, test: Split, mu: Tensor, logvar: Tensor, history: pd.DataFrame, params: Params
) -> Iterator[tuple[str, Figure]]:
    columns = params.render.columns
    kl, reference = kl_by_dimension(model, mu, logvar)
    first = first_of_each_digit(test.labels)
    chosen = first.repeat(-(-columns // len(first)))[:columns]
    inputs = binarize_once(test.images, params.data.binarization)
    yield "training_history", figures.training_history(history)
    yield (
        "reconstructions",
        figures.reconstructions(
            *(
                to_float(test.images[chosen]).numpy(),
                to_float(inputs[chosen]).numpy(),
                model.reconstruct(to_float(inputs[chosen])).numpy(),
            )
        ),
    )
    samples = model.sample(columns * columns, torch.Generator().manual_seed(params.seed))
    yield "generated_samples", figures.generated_samples(samples.numpy(), columns)
    yield "latent_space", figures.latent_space(mu.numpy(), test.labels.numpy())
    ends = [(mu[first[a]], mu[first[b]]) for a, b in PAIRS]
    lines = torch.cat([model.interpolate(a, b, columns) for a, b in ends])
    yield "interpolation", figures.interpolation(lines.numpy(), columns, PAIRS)
    dimensions = kl.argsort(descending=True)[:TRAVERSED].tolist()
    traversed = model.images(traversals(mu[first[0]], dimensions, columns))
    yield "latent_traversals", figures.latent_traversals(traversed.numpy(), columns, dimensions, REACH)
    if mu.shape[1] == 2:
        manifold = model.images(prior_grid(2 * columns))
        yield "latent_manifold", figures.latent_manifold(manifold.numpy(), 2 * columns)
    yield (
        "kl_per_dimension",
        figures.kl_per_dimension(kl.numpy(), ACTIVE_UNIT_VARIANCE, mu.numpy().var(axis=0, ddof=1), reference),
    )


def kl_by_dimension(model: VAE, mu: Tensor, logvar: Tensor) -> tuple[Tensor, str]:
    """KL of each dimension of posteriors [N, L], [L], and to what.

    That is the prior, N(0, 1). A mixture has no dimensions of its own: then it is the normal distribution nearest to
    the aggregate posterior, which has its mean and variance.
    """
    if model.params.prior == "standard":
        return gaussian_kl(mu, logvar).mean(0), "N(0, 1)"
    variance = mu.var(0, correction=0) + logvar.exp().mean(0)
    return gaussian_kl_between(mu, logvar, mu.mean(0), variance.log()).mean(0), "the nearest normal distribution"


def traversals(start: Tensor, dimensions: list[int], steps: int) -> Tensor:
    """`start` [L] with each of `dimensions` in turn moved from −REACH to REACH: [dimensions · steps, L]."""
    z = start.repeat(len(dimensions), steps, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-REACH, REACH, steps)
    return z.flatten(0, 1)
