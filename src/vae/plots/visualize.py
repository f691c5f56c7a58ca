"""Pictures of a model and a DataLoader in one call each. They return the Figure, and save it when given a path.

The drawing is `vae.plots.figures`'; here images are fetched, checked, and given to the model, which is moved to `device`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization
from vae.data.batches import image_batch, label_batch
from vae.data.binarization import binarize_once, to_float
from vae.errors import ConfigError, DataError
from vae.models.vae import VAE
from vae.plots import figures

DPI = 110
MANIFOLD_SIDE = 20

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
    """The loader's first `num_samples` images, what the model is shown of them, and what it makes of that."""
    images, _ = _first(model, dataloader, num_samples)
    inputs = binarize_once(images, binarization)
    reconstruction = _ready(model, device).reconstruct(inputs.to(device))
    return _saved(figures.reconstructions(images.numpy(), inputs.numpy(), reconstruction.cpu().numpy()), save_path)


def visualize_latent_space(
    model: VAE, dataloader: DataLoader[Any], device: Device = "cpu", num_samples: int = 5000, save_path: SavePath = None
) -> Figure:
    """The posterior means of the loader's first `num_samples` images in the plane, by label."""
    mu, labels = _posterior_means(model, dataloader, device, num_samples)
    return _saved(figures.latent_space(mu.numpy(), labels.numpy()), save_path)


def generate_samples(
    model: VAE,
    device: Device = "cpu",
    num_samples: int = 16,
    save_path: SavePath = None,
    generator: torch.Generator | None = None,
) -> Figure:
    """`num_samples` images decoded from draws of the prior. `model.sample` gives them as a tensor."""
    _require_positive(num_samples)
    images = _ready(model, device).sample(num_samples, generator)
    return _saved(figures.generated_samples(images.cpu().numpy(), math.ceil(num_samples**0.5)), save_path)


def visualize_interpolation(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    num_samples: int = 8,
    save_path: SavePath = None,
    spherical: bool = False,
) -> Figure:
    """Rows of `num_samples` images from the loader's first 0 to its first 1, from 2 to 3, and so on."""
    mu, labels = _posterior_means(model, dataloader, device, None)
    first = dict(zip(labels.unique().tolist(), first_of_each_digit(labels).tolist(), strict=True))
    pairs = list(zip(list(first)[::2], list(first)[1::2], strict=False))
    if not pairs:
        raise DataError(f"an interpolation needs images of two labels, the DataLoader has {list(first)}")
    lines = [
        model.interpolate(mu[first[a]].to(device), mu[first[b]].to(device), num_samples, spherical) for a, b in pairs
    ]
    return _saved(figures.interpolation(torch.cat(lines).cpu().numpy(), num_samples, pairs, spherical), save_path)


def visualize_latent_manifold(
    model: VAE, device: Device = "cpu", num_samples: int = MANIFOLD_SIDE**2, save_path: SavePath = None
) -> Figure:
    """The decoder over a square grid of about `num_samples` points of a 2-D latent space, by the prior's quantiles.

    Raises ConfigError where the model's latent space isn't 2-D.
    """
    latent_dim = model.params.latent_dim
    if latent_dim != 2:
        raise ConfigError(
            f"a manifold can be drawn of 2 latent dimensions, this model has {latent_dim}: train one with "
            "latent_dim=2, or use visualize_latent_space, which projects"
        )
    side = max(2, math.isqrt(num_samples))
    with torch.no_grad():
        images = _ready(model, device).images(prior_grid(side).to(device))
    return _saved(figures.latent_manifold(images.cpu().numpy(), side), save_path)


def visualize_latent_arithmetic(
    model: VAE,
    dataloader: DataLoader[Any],
    device: Device = "cpu",
    terms: tuple[int, int, int] = (8, 3, 1),
    save_path: SavePath = None,
) -> Figure:
    """a − b + c with the labels' mean latents: the images of `terms` (a, b, c), and of the result."""
    means = latent_means(model, dataloader, device)
    missing = [label for label in terms if label not in means]
    if missing:
        raise DataError(f"the DataLoader has no images labelled {missing}, only {sorted(means)}")
    a, b, c = (means[label] for label in terms)
    with torch.no_grad():
        images = model.images(torch.stack([a, b, c, a - b + c]).to(device))
    return _saved(figures.latent_arithmetic(images.cpu().numpy(), terms), save_path)


def latent_means(model: VAE, dataloader: DataLoader[Any], device: Device = "cpu") -> dict[int, Tensor]:
    """The mean of the posterior means of each label's images, [L] each: what latent arithmetic adds and subtracts."""
    mu, labels = _posterior_means(model, dataloader, device, None)
    return {int(label): mu[labels == label].mean(0) for label in labels.unique()}


def first_of_each_digit(labels: Tensor) -> Tensor:
    """The index of the first image of each label, by label."""
    return torch.tensor([int((labels == digit).nonzero()[0]) for digit in labels.unique()])


def prior_grid(side: int) -> Tensor:
    """The 2-D standard normal's quantiles as a grid, z[1] falling from row to row: [side², 2]."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.025, 0.975, side))
    return torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)


def _ready(model: VAE, device: Device) -> VAE:
    return model.to(device).eval()


def _require_positive(num_samples: int) -> None:
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}, allowed is 1 or more")


def _first(
    model: VAE, dataloader: DataLoader[Any], num_samples: int | None, labelled: bool = False
) -> tuple[Tensor, Tensor]:
    """The loader's first images as floats [N, D], all of them without a number, and their labels where wanted.

    Raises DataError where there are none, or not such as `image_batch` takes.
    """
    _require_positive(1 if num_samples is None else num_samples)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in dataloader:
        images.append(to_float(image_batch(batch, model.input_dim)).cpu())
        if labelled:
            labels.append(label_batch(batch).cpu())
        if num_samples is not None and sum(map(len, images)) >= num_samples:
            break
    if not sum(map(len, images)):
        raise DataError("the DataLoader yields no images")
    return torch.cat(images)[:num_samples], torch.cat(labels)[:num_samples] if labels else torch.empty(0)


@torch.no_grad()
def _posterior_means(
    model: VAE, dataloader: DataLoader[Any], device: Device, num_samples: int | None
) -> tuple[Tensor, Tensor]:
    images, labels = _first(model, dataloader, num_samples, labelled=True)
    _ready(model, device)
    mu = [model.encode(batch.to(device))[0].cpu() for batch in images.split(1024)]
    return torch.cat(mu), labels


def _saved(figure: Figure, path: SavePath) -> Figure:
    if path is not None:
        figures.save(figure, Path(path), DPI)
    return figure
