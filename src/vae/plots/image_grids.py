"""Grids of images: float [N, C, H, W] in [0, 1], grey or in colour."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae.models.networks import ImageShape
from vae.plots.figure import Array

CELL = 0.55  # inches for an image of 28×28: the text beside it is readable where ten columns are half a page wide
LARGEST = 2  # times that: larger images are shown smaller than they are


def shaped(images: Tensor, image_shape: ImageShape) -> Array:
    """Images [..., D] as [..., C, H, W] for the figures.

    What is neither grey nor in three colours is shown as the mean of its channels.
    """
    array: Array = images.cpu().numpy().reshape(*images.shape[:-1], *image_shape)
    return array if image_shape[0] in (1, 3) else array.mean(-3, keepdims=True)


def image_grid(images: Array, columns: int) -> Array:
    """Images row by row as one array, [height, width] or in colour, with a thin grey line between neighbours."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + 1, width + 1, channels), 0.35)
    cells[:count, :-1, :-1] = images.transpose(0, 2, 3, 1)
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    tiled: Array = cells.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return tiled[..., 0] if channels == 1 else tiled


def image_figure(images: Array, columns: int, title: str, row_labels: Sequence[str] = (), **labels: str) -> Figure:
    """A grid of images with a title, and optionally a label for each row; `labels` are those of the axes."""
    rows = -(-len(images) // columns)
    height, width = _cell(images)
    figure = Figure(figsize=(width * columns + _room(row_labels), height * rows + 0.6), layout="constrained")
    ax = figure.add_subplot()
    _show(ax, images, columns, row_labels)
    ax.set(**labels)
    ax.set_title(title, loc="left")
    return figure


def _cell(images: Array) -> tuple[float, float]:
    """Height and width of an image in the figure, in inches."""
    *_, height, width = images.shape
    side = math.sqrt(height * width)
    size = CELL * min(max(side / 28, 1), LARGEST)
    return size * (height / side), size * (width / side)


def _room(row_labels: Sequence[str]) -> float:
    """Inches for the labels of rows."""
    return max(1.1, 0.075 * max(map(len, row_labels))) if row_labels else 0.4


def _show(ax: Axes, images: Array, columns: int, row_labels: Sequence[str] = ()) -> None:
    is_large = math.prod(images.shape[2:]) > (28 * LARGEST) ** 2
    interpolation = "auto" if is_large else "nearest"
    ax.imshow(image_grid(images, columns), cmap="gray", vmin=0, vmax=1, interpolation=interpolation)
    ax.set(xticks=[], yticks=[])
    ax.set_yticks(_centres(images.shape[2], len(row_labels)), row_labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _centres(side: int, cells: int) -> Array:
    """The middle of each cell along an axis of a grid of images with this side."""
    return (side + 1) * np.arange(0.5, cells)


def image_rows(images: Array, rows: Sequence[str], title: str) -> Figure:
    """One row of images for each label in `rows`."""
    return image_figure(images, len(images) // len(rows), title, rows)


def reconstructions(original: Array, binarized: Array, reconstruction: Array) -> Figure:
    """Rows of the images, of the model's binarized input where that is another, and of the mean reconstructions."""
    rows = {"original": original, "input": binarized, "reconstruction": reconstruction}
    if np.array_equal(original, binarized):
        del rows["input"]
    return image_rows(np.concatenate(list(rows.values())), list(rows), "Images and their reconstructions")


def generated_samples(images: Array, columns: int) -> Figure:
    """Mean images decoded from samples of the prior."""
    return image_figure(images, columns, "Samples from the prior")


def interpolation(images: Array, columns: int, pairs: Sequence[tuple[str, str]], spherical: bool = False) -> Figure:
    """One row for each pair of names, decoded along a line or a great circle between two posterior means."""
    rows = [f"{a} → {b}" for a, b in pairs]
    title = f"{'Spherical interpolation' if spherical else 'Interpolation'} between posterior means"
    label = f"position on the {'great circle' if spherical else 'line'}, from 0 to 1"
    return image_figure(images, columns, title, rows, xlabel=label)


def latent_traversals(images: Array, columns: int, dimensions: Sequence[int], reach: float) -> Figure:
    """As many rows for each latent dimension, varied by ±reach standard deviations with all others fixed."""
    starts = len(images) // columns // len(dimensions)
    rows = [f"z[{dimension}]" if row == starts // 2 else "" for dimension in dimensions for row in range(starts)]
    title = "Traversals of the dimensions with the largest KL"
    label = f"value of the dimension, from −{reach:g} to {reach:g} standard deviations of the means"
    figure = image_figure(images, columns, title, rows, xlabel=label)
    centres = _centres(images.shape[2], len(rows))
    for centre in centres[starts::starts]:
        figure.axes[0].axhline(centre - centres[0] - 1, color="white", lw=4)
    return figure


def best_and_worst(inputs: Array, reconstruction: Array, neg_elbo: Array, by_class: bool = True) -> Figure:
    """The best reconstructions and the worst, of each class or of all: images [2, n, C, H, W], and −ELBO [2, n]."""
    columns = neg_elbo.shape[1]
    height, width = _cell(inputs)
    figure = Figure(figsize=(max(width * columns + 1.1, 4.5), 4 * height + 1.2), layout="constrained")
    of_each = " reconstruction of each class" if by_class else " reconstructions"
    names = (f"Best{of_each}, by −ELBO in nats", "Worst")
    for ax, name, *images, nats in zip(figure.subplots(2), names, inputs, reconstruction, neg_elbo, strict=True):
        _show(ax, np.concatenate(images), columns, ["input", "reconstruction"])
        ax.set_xticks(_centres(inputs.shape[-1], columns), [f"{value:.0f}" for value in nats])
        ax.set_title(name, loc="left")
    return figure


def lowest_and_highest(images: Array, nll: Array) -> Figure:
    """Two rows of images, of the lowest and the highest NLL: [2, n, C, H, W], and their NLL in nats, [2, n]."""
    columns = nll.shape[1]
    height, width = _cell(images)
    figure = Figure(figsize=(width * columns + 0.4, 2 * height + 1.2), layout="constrained")
    for ax, name, row, nats in zip(figure.subplots(2), ("Lowest", "Highest"), images, nll, strict=True):
        _show(ax, row, columns)
        ax.set_xticks(_centres(images.shape[-1], columns), [f"{value:.0f}" for value in nats])
        ax.set_title(f"{name} NLL, in nats", loc="left")
    return figure


def latent_arithmetic(images: Array, terms: Sequence[str]) -> Figure:
    """Four images: the decoded mean latents of the classes a, b and c, and of a − b + c."""
    a, b, c = terms
    figure = Figure(figsize=(5.2, 2.0), layout="constrained")
    space = " " if max(map(len, terms)) <= 2 else "\n"
    titles = [f"{a}", f"− {b}", f"+ {c}", f"= {a}{space}− {b}{space}+ {c}"]
    for ax, image, title in zip(figure.subplots(1, 4), images, titles, strict=True):
        _show(ax, image[None], 1)
        ax.set_title(title)
    figure.suptitle("Arithmetic with the mean latents of classes", x=0.01, ha="left")
    return figure


def latent_manifold(images: Array, columns: int) -> Figure:
    """Images decoded from a grid of quantiles of a 2-D prior (Kingma & Welling 2014, figure 4)."""
    title = "The 2-D latent manifold, over quantiles of the prior"
    labels = {"xlabel": "z[0], from low to high quantiles", "ylabel": "z[1], from low (bottom) to high"}
    return image_figure(images, columns, title, **labels)
