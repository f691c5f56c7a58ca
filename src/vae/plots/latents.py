"""Figures of the latent space: posterior means [N, L], and the KL by latent dimension."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.plots.figure import PALETTE, Array


def latent_space(mu: Array, labels: Array) -> Figure:
    """Posterior means by class: in 2-D as they are, in more dimensions their first two principal components."""
    points, title, axes = _plane(mu)
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    ax = figure.add_subplot()
    for label in np.unique(labels):
        members = points[labels == label]
        colour = PALETTE[int(label) % len(PALETTE)]
        ax.scatter(members[:, 0], members[:, 1], s=6, alpha=0.5, linewidths=0, color=colour, label=str(label))
        # The class's label at its median: colour alone should not carry the class.
        x, y = np.median(members, axis=0)
        box = {"boxstyle": "circle,pad=0.25", "fc": "white", "ec": colour, "lw": 1.8}
        ax.text(x, y, str(label), ha="center", va="center", weight="bold", bbox=box)
    ax.set(title=title, xlabel=axes[0], ylabel=axes[1])
    legend = ax.legend(title="class", markerscale=4, frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    return figure


def _plane(mu: Array) -> tuple[Array, str, tuple[str, str]]:
    """Points [N, 2], the figure's title and the labels of its axes."""
    title = f"Posterior means of {len(mu):,} images"
    if mu.shape[1] == 1:
        jitter = np.random.default_rng(0).uniform(-1, 1, len(mu))
        return np.stack([mu[:, 0], jitter], 1), title, ("z[0]", "random, for legibility")
    if mu.shape[1] == 2:
        return mu, title, ("z[0]", "z[1]")
    from sklearn.decomposition import PCA  # imported here: it takes a second

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(mu)
    first, second = pca.explained_variance_ratio_
    axes = (f"first principal component ({first:.0%} of variance)", f"second ({second:.0%})")
    return points, f"{title}: PCA of {mu.shape[1]} latent dimensions", axes


def kl_per_dimension(kl: Array, threshold: float, variance: Array, reference: str = "N(0, 1)") -> Figure:
    """KL [L] to `reference` by latent dimension, largest first; a dimension is active where `variance` > `threshold`.

    `variance` [L] is that of the posterior mean over images.
    """
    order = np.argsort(kl)[::-1]
    active = variance[order] > threshold
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    ax = figure.add_subplot()
    ranks = np.arange(len(kl))
    for chosen, colour, name in ((active, PALETTE[0], "active"), (~active, "0.7", "inactive")):
        if chosen.any():
            ax.bar(ranks[chosen], kl[order][chosen], color=colour, label=f"{name} ({chosen.sum()})")
    ax.set(
        title=f"KL to {reference} by latent dimension, {kl.sum():.1f} nats in total",
        xlabel=f"latent dimensions, by KL (active: variance of the mean > {threshold:g})",
        ylabel="nats per image",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(y=0.2)  # room for the legend
    ax.legend(frameon=False, ncols=2)
    ax.grid(axis="y", alpha=0.3)
    return figure
