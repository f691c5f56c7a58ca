"""Figures of the latent space: posterior means [N, L], and the KL by latent dimension."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.plots.figure import PALETTE, Array, class_colours, class_names

EMBEDDED = 2000  # images in the t-SNE
NAMED = 20  # classes at most whose names are among the points
IN_LEGEND = 60  # classes at most that a legend lists


def latent_space(
    mu: Array, labels: Array | None = None, embedding: Array | None = None, classes: Sequence[str] = ()
) -> Figure:
    """Posterior means by class: in 2-D as they are, in more dimensions their first two principal components.

    An `embedding` [n, 2] of the first n of them, as from `tsne`, is shown beside these. `classes` are the names of
    labels. Without `labels`, all points have one colour.
    """
    panels = [_plane(mu)]
    if embedding is not None:
        panels.append((embedding, f"t-SNE of {len(embedding):,} of them", ("", "")))
    width = 3.4 * len(panels) + 0.6
    labels = np.zeros(len(mu), dtype=int) if (unlabelled := labels is None) else labels
    present = np.unique(labels)
    names = class_names(present, classes)
    per_row = min(max(1, int(width / (0.3 + 0.08 * max(map(len, names))))), 10)
    has_legend = not unlabelled and len(names) <= IN_LEGEND
    height = 4.5 + (0.2 * (-(-len(names) // per_row) - 1) if has_legend else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    suffix = "" if unlabelled or has_legend else f" of {len(names)} classes"
    figure.suptitle(f"Posterior means of {len(mu):,} images{suffix}")
    colours = class_colours(max(len(classes), int(labels.max()) + 1))
    for ax, (points, title, axes) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, name in zip(present, names, strict=True):
            members = points[labels[: len(points)] == label]
            ax.scatter(*members.T, s=3 if len(points) > 5000 else 7, alpha=0.7, lw=0, color=colours[label], label=name)
            if ax is figure.axes[-1] and len(members) and not unlabelled and len(names) <= NAMED:
                # The class's name at its median: colour alone should not carry the class.
                shape, size = ("circle", None) if len(name) <= 2 else ("round", "x-small")
                box = {"boxstyle": f"{shape},pad=0.2", "fc": "white", "ec": colours[label], "lw": 1.8}
                x, y = np.median(members, axis=0)
                ax.text(x, y, name, ha="center", va="center", weight="bold", fontsize=size, bbox=box)
        ax.set(title=title, xlabel=axes[0], ylabel=axes[1])
        if not axes[0]:  # distances in a t-SNE have no unit
            ax.set(xticks=[], yticks=[])
    if has_legend:
        columns = {"ncols": per_row, "handletextpad": 0, "columnspacing": 1}
        figure.legend(ax.collections, names, loc="outside lower center", markerscale=4, frameon=False, **columns)
    return figure


def has_tsne(mu: Array) -> bool:
    """Whether `tsne` embeds these posterior means [N, L].

    Not two dimensions, and not equal points or very few: scikit-learn ends the process, or raises an error.
    """
    return mu.shape[1] > 2 and len(mu) > 100 and bool(mu[:EMBEDDED].std(0).max() > 1e-6)


def tsne(mu: Array) -> Array | None:
    """The t-SNE embedding [n, 2] of the first 2,000 posterior means [N, L]: equal means give equal points in 10 s."""
    if not has_tsne(mu):
        return None
    from sklearn.manifold import TSNE  # imported here: it takes a second
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # threads would add up in another order each time
        points: Array = TSNE(init="pca", random_state=0).fit_transform(mu[:EMBEDDED])
    return points


def _plane(mu: Array) -> tuple[Array, str, tuple[str, str]]:
    """Points [N, 2], the panel's title and the labels of its axes."""
    if mu.shape[1] == 1:
        jitter = np.random.default_rng(0).uniform(-1, 1, len(mu))
        return np.stack([mu[:, 0], jitter], 1), "", ("z[0]", "random, for legibility")
    if mu.shape[1] == 2:
        return mu, "", ("z[0]", "z[1]")
    from sklearn.decomposition import PCA  # imported here: it takes a second

    pca = PCA(2, random_state=0)
    points = pca.fit_transform(mu)
    first, second = pca.explained_variance_ratio_
    axes = (f"first component ({first:.0%} of variance)", f"second component ({second:.0%})")
    return points, f"PCA of {mu.shape[1]} latent dimensions", axes


def kl_per_dimension(
    kl: Array, threshold: float, variance: Array, reference: str = "N(0, 1)", total: float | None = None
) -> Figure:
    """KL [L] to `reference` by latent dimension, largest first; a dimension is active where `variance` > `threshold`.

    `variance` [L] is that of the posterior mean over images. `total` is the KL of the model, to its own prior and with
    all of its stochastic layers; the title has it where the bars don't add up to it.
    """
    order = np.argsort(kl)[::-1]
    active = variance[order] > threshold
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    ax = figure.add_subplot()
    ranks = np.arange(len(kl))
    for chosen, colour, name in ((active, PALETTE[0], "active"), (~active, "0.55", "inactive")):
        if chosen.any():
            ax.bar(ranks[chosen], kl[order][chosen], color=colour, label=f"{name} ({chosen.sum()})")
    title = f"KL to {reference} by latent dimension: {kl.sum():.1f} nats"
    if total is not None and abs(kl.sum() - total) > 0.05:
        title += f"\nKL of the whole model to its own prior: {total:.1f} nats"
    ax.set(
        title=title,
        xlabel=f"latent dimensions, by KL (active: variance of the mean > {threshold:g})",
        ylabel="nats per image (root scale)",
    )
    ax.set_yscale("function", functions=(np.sqrt, np.square))  # inactive dimensions' bars would be too low to see
    ax.set_yticks(ticks := [0, 0.01, 0.1, 0.5, 1, 2, 4, 8, 16], [f"{nats:g}" for nats in ticks])
    ax.set_ylim(0, 1.6 * kl.max() or 1)  # room for the legend
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, ncols=2)
    ax.grid(axis="y", alpha=0.3)
    return figure
