"""Figures of a model and a DataLoader in one call each: every function returns the Figure and saves it to `save_path`.

The functions fetch and check the images and move the model to `device`; `image_grids` and `latents` plot. Loaders of a
conditional model yield labels, too.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization, EvaluateParams
from vae.data.batches import check_num_samples, first_images
from vae.data.binarization import binarize_once
from vae.errors import ConfigError, DataError
from vae.evaluation.linear_probe import posterior_means
from vae.models.vae import VAE, Labels
from vae.plots import image_grids, latents
from vae.plots.figure import class_names, save
from vae.plots.image_grids import shaped

DPI = 110
MANIFOLD_SIDE = 20
QUANTILE_SAMPLES = 10_000  # of a learned prior

Device = torch.device | str
SavePath = Path | str | None


def visualize_reconstruction(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    num_samples: int = 8,
    save_path: SavePath = None,
    binarization: Binarization = "dynamic",
) -> Figure:
    """The first `num_samples` images of the loader, the binarized input of the model, and the reconstructions."""
    original, labels = first_images(dataloader, model.input_dim, num_samples, labelled=bool(model.classes))
    inputs = binarize_once(original, binarization)
    rows = (original, inputs, _ready(model, device).reconstruct(inputs.to(device), labels))
    return _saved(image_grids.reconstructions(*(shaped(row, model.image_shape) for row in rows)), save_path)


def visualize_latent_space(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    num_samples: int = 5000,
    save_path: SavePath = None,
    classes: Sequence[str] = (),
) -> Figure:
    """The posterior means of the first `num_samples` images of the loader, in 2-D and, where it has labels, by class.

    `classes` are the names of labels.
    """
    x, labels = first_images(dataloader, model.input_dim, num_samples, labelled=bool(model.classes) or None)
    mu = posterior_means(_ready(model, device), x, EvaluateParams(), labels).cpu().numpy()
    known = None if labels is None else labels.numpy()
    return _saved(latents.latent_space(mu, known, classes=classes), save_path)


def generate_samples(
    model: VAE,
    device: Device = "cpu",
    num_samples: int = 16,
    save_path: SavePath = None,
    generator: torch.Generator | None = None,
    *,
    labels: Labels = None,
) -> Figure:
    """`num_samples` images of `model.sample`, to which `generator` and `labels` are given; that returns a tensor."""
    check_num_samples(num_samples)
    samples = shaped(_ready(model, device).sample(num_samples, generator, labels=labels), model.image_shape)
    return _saved(image_grids.generated_samples(samples, math.ceil(num_samples**0.5)), save_path)


def visualize_interpolation(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    num_samples: int = 8,
    save_path: SavePath = None,
    spherical: bool = False,
    classes: Sequence[str] = (),
) -> Figure:
    """Rows of `num_samples` images between the first images of classes 0 and 1, of classes 2 and 3, and so on.

    Those of a conditional model are between the first two images of each class. `classes` are the names of labels.
    """
    mu, labels = _labelled_means(model, dataloader, device)
    first = first_of_each_class(labels).tolist()
    pairs = list(zip(first[::2], first[1::2], strict=False))
    if model.classes:
        pairs = [(a, int(b)) for a in first for b in (labels == labels[a]).nonzero()[1:2]]
    if not pairs:
        needed = "two images of a class" if model.classes else "images of two classes"
        raise DataError(f"an interpolation needs {needed}, the DataLoader has labels {labels[first].tolist()}")
    lines = [
        model.interpolate(mu[a].to(device), mu[b].to(device), num_samples, spherical, labels=labels[a])
        for a, b in pairs
    ]
    names = [(a, b) for a, b in (class_names(labels[list(pair)].tolist(), classes) for pair in pairs)]
    images = shaped(torch.cat(lines), model.image_shape)
    return _saved(image_grids.interpolation(images, num_samples, names, spherical), save_path)


def visualize_latent_manifold(
    model: VAE,
    device: Device = "cpu",
    num_samples: int = MANIFOLD_SIDE**2,
    save_path: SavePath = None,
    *,
    label: int | None = None,
) -> Figure:
    """Images decoded from a square grid of about `num_samples` quantiles of a 2-D latent space.

    Of a conditional model, they are of the class `label`. Raises ConfigError where the latent space is not 2-D.
    """
    latent_dim = model.params.latent_dim
    if latent_dim != 2:
        raise ConfigError(
            f"a manifold needs 2 latent dimensions, this model has {latent_dim}: train one with latent_dim=2, "
            "or use visualize_latent_space, which projects to 2-D"
        )
    side = max(2, math.isqrt(num_samples))
    with torch.no_grad():
        decoded = shaped(_ready(model, device).images(prior_grid(model, side).to(device), label), model.image_shape)
    return _saved(image_grids.latent_manifold(decoded, side), save_path)


def visualize_latent_arithmetic(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    terms: tuple[int, int, int] = (8, 3, 1),
    save_path: SavePath = None,
    classes: Sequence[str] = (),
) -> Figure:
    """The decoded mean latents of the classes a, b and c in `terms`, and of a − b + c; `classes` name the labels.

    A conditional model decodes a − b + c as class a.
    """
    means = latent_means(model, dataloader, device)
    missing = [label for label in terms if label not in means]
    if missing:
        raise DataError(f"the DataLoader has no images labelled {missing}, only {sorted(means)}")
    a, b, c = (means[label] for label in terms)
    with torch.no_grad():
        images = model.images(torch.stack([a, b, c, a - b + c]).to(device), [*terms, terms[0]])
    decoded = shaped(images, model.image_shape)
    return _saved(image_grids.latent_arithmetic(decoded, class_names(terms, classes)), save_path)


def latent_means(model: VAE, dataloader: DataLoader[Any], device: Device = "cpu") -> dict[int, Tensor]:
    """The mean of the posterior means of each class, [L], by label."""
    mu, labels = _labelled_means(model, dataloader, device)
    return {int(label): mu[labels == label].mean(0) for label in labels.unique()}


def first_of_each_class(labels: Tensor) -> Tensor:
    """The index of the first image of each class, in the order of labels: [classes]."""
    return torch.tensor([int((labels == label).nonzero()[0]) for label in labels.unique()])


def prior_grid(model: VAE, side: int) -> Tensor:
    """A grid of the quantiles of a 2-D prior by dimension, with z[1] decreasing from row to row: [side², 2].

    A learned prior may have any location and scale: its quantiles are those of `QUANTILE_SAMPLES` samples.
    """
    shares = torch.linspace(0.025, 0.975, side)
    if model.prior.factorized:
        first = second = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    else:
        generator = torch.Generator(model.output_bias.device).manual_seed(0)
        z = model.prior.sample(QUANTILE_SAMPLES, generator, model.output_bias.device).detach().cpu()
        first, second = z.quantile(shares, dim=0).T
    return torch.cartesian_prod(second.flip(0), first).flip(1)


def _ready(model: VAE, device: Device) -> VAE:
    return model.to(device).eval()


def _labelled_means(model: VAE, dataloader: DataLoader[Any], device: Device) -> tuple[Tensor, Tensor]:
    """The posterior means [N, L] of all images of the loader, and their labels [N]."""
    x, labels = first_images(dataloader, model.input_dim, None, labelled=True)
    assert labels is not None
    return posterior_means(_ready(model, device), x, EvaluateParams(), labels).cpu(), labels


def _saved(figure: Figure, path: SavePath) -> Figure:
    if path is not None:
        save(figure, Path(path), DPI)
    return figure
