"""Draw the figures: model, history and evaluation -> figures/*.png."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae import figures, tracking
from vae.config import Params
from vae.data import Split, binarize_once, load, to_float
from vae.device import resolve
from vae.evaluation import ACTIVE_UNIT_VARIANCE
from vae.model import VAE
from vae.objective import gaussian_kl
from vae.stages import FIGURES, METRICS, RAW, load_model, read_run_id, run_stage
from vae.visualize import prior_grid

Latents = dict[str, npt.NDArray[Any]]

PAIRS = [(0, 6), (1, 7), (2, 3), (4, 9), (5, 8)]  # interpolated digits
TRAVERSED = 8  # latent dimensions shown
REACH = 3.0  # prior standard deviations a traversal goes to


def main(params: Params) -> None:
    """Draw every figure, write it, and add it to the training's run."""
    model = load_model(params, "cpu")  # a few hundred images: no accelerator needed
    with np.load(METRICS / "latents.npz") as file:
        latents = dict(file)
    tracking.connect()
    drawn = {}
    with torch.no_grad():
        for name, figure in draw(model, load(RAW, "test"), latents, params):
            drawn[name] = figures.save(figure, FIGURES / f"{name}.png", params.render.dpi)
    print(f"{len(drawn)} figures in {FIGURES}/: {', '.join(drawn)}")
    with tracking.tolerant(), tracking.resume(params, resolve(params.train), read_run_id()):
        for path in drawn.values():
            tracking.log_artifact(path, "figures")


def draw(model: VAE, test: Split, latents: Latents, params: Params) -> Iterator[tuple[str, Figure]]:
    """All figures with their names."""
    columns = params.render.columns
    mu = torch.from_numpy(latents["mu"])
    kl = gaussian_kl(mu, torch.from_numpy(latents["logvar"])).mean(0)
    first = first_of_each_digit(test.labels)
    chosen = first.repeat(-(-columns // len(first)))[:columns]
    inputs = binarize_once(test.images, params.data.binarization)
    yield "training_history", figures.training_history(pd.read_csv(METRICS / "history.csv"))
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
    yield "latent_space", figures.latent_space(latents["mu"], latents["labels"])
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
        figures.kl_per_dimension(kl.numpy(), ACTIVE_UNIT_VARIANCE, latents["mu"].var(axis=0, ddof=1)),
    )


def first_of_each_digit(labels: Tensor) -> Tensor:
    """The index of the first image of each label, by label."""
    return torch.tensor([int((labels == digit).nonzero()[0]) for digit in labels.unique()])


def traversals(start: Tensor, dimensions: list[int], steps: int) -> Tensor:
    """`start` [L] with each of `dimensions` in turn moved from −REACH to REACH: [dimensions · steps, L]."""
    z = start.repeat(len(dimensions), steps, 1)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = torch.linspace(-REACH, REACH, steps)
    return z.flatten(0, 1)


if __name__ == "__main__":
    run_stage(main, __doc__)
