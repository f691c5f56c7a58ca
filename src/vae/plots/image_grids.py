"""Grids of images: float [N, 784] in [0, 1]."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.plots.figure import Array

CELL = 0.55  # inches for an image: the text beside it is readable where ten columns are half a page wide


def image_grid(images: Array, columns: int) -> Array:
    """Images [N, D] as one array, row by row, with a thin grey line between neighbours."""
    side = round(images.shape[1] ** 0.5)
    rows = -(-len(images) // columns)
    cells = np.full((rows * columns, side + 1, side + 1), 0.35)
    cells[: len(images), :-1, :-1] = images.reshape(-1, side, side)
    tiled: Array = cells.reshape(rows, columns, side + 1, side + 1).swapaxes(1, 2).reshape(rows * (side + 1), -1)
    return tiled[:-1, :-1]


def image_figure(images: Array, columns: int, title: str, row_labels: Sequence[str] = (), **labels: str) -> Figure:
    """A grid of images with a title, and optionally a label for each row; `labels` are those of the axes."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(CELL * columns + (1.1 if row_labels else 0.4), CELL * rows + 0.6), layout="constrained")
    ax = figure.add_subplot()
    _show(ax, images, columns, row_labels)
    ax.set(**labels)
    ax.set_title(title, loc="left")
    return figure


def _show(ax: Axes, images: Array, columns: int, row_labels: Sequence[str] = ()) -> None:
    ax.imshow(image_grid(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_yticks(_centres(images, len(row_labels)), row_labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _centres(images: Array, cells: int) -> Array:
    """The middle of each cell along an axis of a grid."""
    side: int = round(images.shape[1] ** 0.5)
    return (side + 1) * np.arange(0.5, cells)


def image_rows(images: Array, rows: Sequence[str], title: str) -> Figure:
    """One row of images for each label in `rows`."""
    return image_figure(images, len(images) // len(rows), title, rows)


def reconstructions(original: Array, binarized: Array, reconstruction: Array) -> Figure:
    """Three rows: the images, the binarized input of the model, and the reconstructions as pixel probabilities."""
    images = np.concatenate([original, binarized, reconstruction])
    return image_rows(images, ["original", "input", "reconstruction"], "Images and their reconstructions")


def generated_samples(images: Array, columns: int) -> Figure:
    """Decoded samples from the prior, as pixel probabilities."""
    return image_figure(images, columns, "Samples from the prior")


def interpolation(images: Array, columns: int, pairs: Sequence[tuple[int, int]], spherical: bool = False) -> Figure:
    """One row for each pair of classes, decoded along a line or a great circle between two posterior means."""
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
    centres = _centres(images, len(rows))
    for centre in centres[starts::starts]:
        figure.axes[0].axhline(centre - centres[0] - 1, color="white", lw=4)
    return figure


def best_and_worst(inputs: Array, reconstruction: Array, neg_elbo: Array) -> Figure:
    """The best reconstruction of each class, and the worst: images [2, classes, D] and their −ELBO [2, classes]."""
    columns = neg_elbo.shape[1]
    figure = Figure(figsize=(CELL * columns + 1.1, 4 * CELL + 1.2), layout="constrained")
    names = ("Best reconstruction of each class, by −ELBO in nats", "Worst")
    for ax, name, *images, nats in zip(figure.subplots(2), names, inputs, reconstruction, neg_elbo, strict=True):
        _show(ax, np.concatenate(images), columns, ["input", "reconstruction"])
        ax.set_xticks(_centres(inputs[0], columns), [f"{value:.0f}" for value in nats])
        ax.set_title(name, loc="left")
    return figure


def lowest_and_highest(images: Array, nll: Array) -> Figure:
    """Two rows of images, of the lowest and the highest NLL: [2, n, D], and their NLL in nats, [2, n]."""
    columns = nll.shape[1]
    figure = Figure(figsize=(CELL * columns + 0.4, 2 * CELL + 1.2), layout="constrained")
    for ax, name, row, nats in zip(figure.subplots(2), ("Lowest", "Highest"), images, nll, strict=True):
        _show(ax, row, columns)
        ax.set_xticks(_centres(row, columns), [f"{value:.0f}" for value in nats])
        ax.set_title(f"{name} NLL, in nats", loc="left")
    return figure


def latent_arithmetic(images: Array, terms: Sequence[int]) -> Figure:
    """Four images: the decoded mean latents of the classes a, b and c, and of a − b + c."""
    a, b, c = terms
    figure = Figure(figsize=(5.2, 2.0), layout="constrained")
    titles = [f"{a}", f"− {b}", f"+ {c}", f"= {a} − {b} + {c}"]
    for ax, image, title in zip(figure.subplots(1, 4), images, titles, strict=True):
        _show(ax, image[None], 1)
        ax.set_title(title)
    figure.suptitle("Arithmetic with the mean latents of classes", x=0.01, ha="left")
    return figure


def latent_manifold(images: Array, columns: int) -> Figure:
    """Images decoded from a grid of quantiles of the 2-D N(0, I) (Kingma & Welling 2014, figure 4)."""
    title = "The 2-D latent manifold, over quantiles of N(0, I)"
    labels = {"xlabel": "z[0], from low to high quantiles", "ylabel": "z[1], from low (bottom) to high"}
    return image_figure(images, columns, title, **labels)
