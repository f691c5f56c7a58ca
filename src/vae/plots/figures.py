"""Every picture: arrays in, a matplotlib Figure out, and one way to write it. No model is called here.

Images are float [N, 784] in [0, 1]; latents are posterior means [N, L] and log-variances.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.files import write_atomically

Array = npt.NDArray[Any]

# Petroff 2021 (arXiv:2107.02270): ten colours that stay apart under the common colour-vision deficiencies.
PALETTE = [entry["color"] for entry in style.library["petroff10"]["axes.prop_cycle"]]
TRAIN, VALIDATION = PALETTE[0], PALETTE[1]


def save(figure: Figure, path: Path, dpi: int) -> Path:
    """Write a PNG whose bytes depend on nothing but the picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png", bbox_inches="tight", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path


def image_grid(images: Array, columns: int) -> Array:
    """Tile images [N, D] into one array, row by row, a thin grey line between neighbours."""
    side = round(images.shape[1] ** 0.5)
    rows = -(-len(images) // columns)
    cells = np.full((rows * columns, side + 1, side + 1), 0.35)
    cells[: len(images), :-1, :-1] = images.reshape(-1, side, side)
    tiled: Array = cells.reshape(rows, columns, side + 1, side + 1).swapaxes(1, 2).reshape(rows * (side + 1), -1)
    return tiled[:-1, :-1]


def _show(ax: Axes, images: Array, columns: int) -> None:
    ax.imshow(image_grid(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _image_figure(images: Array, columns: int, title: str, row_labels: Sequence[str] = (), **labels: str) -> Figure:
    rows = -(-len(images) // columns)
    margin = 1.1 if row_labels else 0.4
    figure = Figure(figsize=(0.75 * columns + margin, 0.75 * rows + 0.6), layout="constrained")
    ax = figure.add_subplot()
    _show(ax, images, columns)
    if row_labels:
        side = round(images.shape[1] ** 0.5) + 1
        ax.set_yticks([side * (row + 0.5) for row in range(rows)], row_labels)
        ax.tick_params(length=0)
    ax.set(**labels)
    ax.set_title(title, loc="left")
    return figure


def training_history(history: pd.DataFrame) -> Figure:
    """−ELBO, reconstruction and KL by epoch, training and validation; the best epoch marked."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    best = history.loc[[history["val/neg_elbo"].idxmin()]]
    panels = (("neg_elbo", "−ELBO"), ("reconstruction", "reconstruction"), ("kl", "KL"))
    for ax, (key, name) in zip(figure.subplots(1, 3), panels, strict=True):
        for part, colour, dash in (("train", TRAIN, "-"), ("val", VALIDATION, "--")):
            ax.plot(
                history["epoch"],
                history[f"{part}/{key}"],
                dash,
                color=colour,
                label=part,
                lw=1.8 if len(history) < 500 else 0.6,  # of thousands, noise alone would fill the panel
                marker="." if len(history) < 5 else None,
            )
        values = history[[f"train/{key}", f"val/{key}"]].to_numpy()
        ax.plot(best["epoch"], best[f"val/{key}"], "o", color=VALIDATION, mec="black", label="best epoch")
        low, high = values.min(), np.quantile(values, 0.97)  # the first epoch would flatten all others
        if high > low:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set(title=name, xlabel="epoch", ylabel="nats per image")
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # as many ticks as there is room for
        ax.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def reconstructions(original: Array, binarized: Array, reconstruction: Array) -> Figure:
    """Three rows: the image, what the model was shown of it, what it made of that (pixel probabilities)."""
    stacked = np.concatenate([original, binarized, reconstruction])
    rows = ["original", "input", "reconstruction"]
    return _image_figure(stacked, len(original), "Images and their reconstructions", rows)


def generated_samples(images: Array, columns: int) -> Figure:
    """Decoded draws from the prior, as pixel probabilities."""
    return _image_figure(images, columns, "Samples from the prior")


def interpolation(images: Array, columns: int, pairs: Sequence[tuple[int, int]], spherical: bool = False) -> Figure:
    """A row from one digit to another, decoded along the line, or the great circle, between their posterior means."""
    rows = [f"{a} → {b}" for a, b in pairs]
    title = f"{'Spherical interpolation' if spherical else 'Interpolation'} between posterior means"
    label = f"position on the {'great circle' if spherical else 'line'}, from 0 to 1"
    return _image_figure(images, columns, title, rows, xlabel=label)


def image_rows(images: Array, rows: Sequence[str], title: str) -> Figure:
    """As many labelled rows of images as `rows` has labels."""
    return _image_figure(images, len(images) // len(rows), title, rows)


def latent_traversals(images: Array, columns: int, dimensions: Sequence[int], reach: float) -> Figure:
    """A row a latent dimension: the digit's mean, with that dimension moved from −reach to reach."""
    rows = [f"z[{dimension}]" for dimension in dimensions]
    title = "Traversals of the latent dimensions with the largest KL"
    label = f"value of the dimension, from −{reach:g} to {reach:g}"
    return _image_figure(images, columns, title, rows, xlabel=label)


def latent_arithmetic(images: Array, terms: Sequence[int]) -> Figure:
    """Four images: those of the mean latents of three digits, and of the first minus the second plus the third."""
    a, b, c = terms
    figure = Figure(figsize=(5.2, 2.0), layout="constrained")
    for ax, image, label in zip(
        figure.subplots(1, 4), images, [f"{a}", f"− {b}", f"+ {c}", f"= {a} − {b} + {c}"], strict=True
    ):
        _show(ax, image[None], 1)
        ax.set_title(label)
    figure.suptitle("Decoded sums of the digits' mean latents", x=0.01, ha="left")
    return figure


def latent_manifold(images: Array, columns: int) -> Figure:
    """The decoder over a grid of the 2-D prior's quantiles, as in figure 4 of Kingma & Welling 2014."""
    title = "The 2-D latent manifold, over the prior's quantiles"
    labels = {"xlabel": "z[0], from low to high quantiles", "ylabel": "z[1], from low (bottom) to high"}
    return _image_figure(images, columns, title, **labels)


def latent_space(mu: Array, labels: Array) -> Figure:
    """Posterior means in the plane, by digit; their first two principal components when there are more than two."""
    points, title, names = _plane(mu)
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    ax = figure.add_subplot()
    for digit in np.unique(labels):
        of_digit = points[labels == digit]
        colour = PALETTE[int(digit) % len(PALETTE)]
        ax.scatter(of_digit[:, 0], of_digit[:, 1], s=6, alpha=0.5, linewidths=0, color=colour, label=str(digit))
        # The digit itself at its median: colour alone shouldn't carry the class.
        x, y = np.median(of_digit, axis=0)
        box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": colour, "lw": 1.8}
        ax.text(x, y, str(digit), ha="center", va="center", weight="bold", bbox=box)
    ax.set(title=title, xlabel=names[0], ylabel=names[1])
    legend = ax.legend(title="digit", markerscale=4, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return figure


def _plane(mu: Array) -> tuple[Array, str, tuple[str, str]]:
    title = f"Posterior means of {len(mu):,} images"
    if mu.shape[1] == 1:
        spread = np.random.default_rng(0).uniform(-1, 1, len(mu))
        return np.stack([mu[:, 0], spread], 1), title, ("z[0]", "no meaning: spread for legibility")
    if mu.shape[1] == 2:
        return mu, title, ("z[0]", "z[1]")
    from sklearn.decomposition import PCA  # a second of import: only where it is needed

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(mu)
    first, second = pca.explained_variance_ratio_
    names = (f"first principal component ({first:.0%} of variance)", f"second ({second:.0%})")
    return points, f"{title}: PCA of {mu.shape[1]} latent dimensions", names


def kl_per_dimension(kl: Array, threshold_variance: float, variance: Array, reference: str = "N(0, 1)") -> Figure:
    """KL of each latent dimension to a normal `reference`, largest first; those that the model doesn't use in grey."""
    order = np.argsort(kl)[::-1]
    active = variance[order] > threshold_variance
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    ax = figure.add_subplot()
    ranks = np.arange(len(kl))
    for chosen, colour, name in ((active, PALETTE[0], "active"), (~active, "0.7", "inactive")):
        if chosen.any():
            ax.bar(ranks[chosen], kl[order][chosen], color=colour, label=f"{name} ({chosen.sum()})")
    ax.set(
        title=f"KL to {reference} by latent dimension, {kl.sum():.1f} nats in all",
        xlabel=f"latent dimensions, by KL (active: variance of the mean > {threshold_variance:g})",
        ylabel="nats per image",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    ax.grid(axis="y", alpha=0.3)
    return figure
