"""The pictures of docs/theory.md: tables of `terms` and `tradeoff` in, matplotlib Figures out. Nothing is computed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.plots.figure import PALETTE

if TYPE_CHECKING:
    from vae.theory.tradeoff import Aggregate


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.grid(alpha=0.3)
    return figure, ax


def elbo(table: pd.DataFrame, evidence: float) -> Figure:
    """The ELBO of one image by the width of q, a curve a mean, under log p(x)."""
    figure, ax = _axes(7.4, 3.8)
    ax.axhline(evidence, color="0.25", ls="--", lw=1.4)
    ax.text(4.1, evidence + 0.04, "log p(x)", ha="right", va="bottom", color="0.25")
    for (offset, rows), colour, dash in zip(table.groupby("offset"), PALETTE, ("-", "-.", ":"), strict=False):
        ax.plot(rows["width"], rows["elbo"], dash, color=colour, lw=2, label=f"q's mean off by {offset:g} σ")
    ax.plot(1, evidence, "o", color=PALETTE[0])
    ax.set(
        xscale="log",
        ylim=(evidence - 2, evidence + 0.25),
        title="The gap between ELBO and log p(x) is KL(q ‖ p(z|x))",
        xlabel="standard deviation of q / σ, that of the exact posterior",
        ylabel="nats",
    )
    ax.set_xticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.legend(frameon=False, loc="lower center")
    return figure


def gradient_variance(table: pd.DataFrame) -> Figure:
    """Variance of a single-sample gradient by the number of latents: exact as lines, sampled as marks."""
    figure, ax = _axes(7.4, 3.8)
    for (name, rows), colour, mark in zip(table.groupby("estimator", sort=False), PALETTE, "osD", strict=False):
        ax.plot(rows["latents"], rows["exact"], color=colour, lw=1.6)
        ax.plot(rows["latents"], rows["measured"], mark, color=colour, label=str(name))
    sizes = table["latents"].unique()
    ax.set(
        xscale="log",
        yscale="log",
        title="The score function's gradient grows noisier with every latent",
        xlabel="latent dimensions",
        ylabel="variance of one sample's gradient",
    )
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.legend(frameon=False, title="marks: sampled; lines: exact")
    return figure


def importance(table: pd.DataFrame, at_one: float, limit: float) -> Figure:
    """The bound's gap by the number of importance samples, its exact start, and the limit χ²/2K."""
    figure, ax = _axes(7.4, 3.8)
    samples = table["K"]
    ax.plot(samples, limit / samples, "--", color="0.35", lw=1.4, label="χ²(p(z|x) ‖ q) / 2K")
    ax.plot(samples, table["gap"], "o-", color=PALETTE[0], lw=1.6, label="log p(x) − bound, sampled")
    ax.plot(1, at_one, "o", ms=13, mfc="none", color=PALETTE[1], label="KL(q ‖ p(z|x))")
    ax.set(
        xscale="log",
        yscale="log",
        title="The importance-weighted bound closes as 1/K",
        xlabel="importance samples K",
        ylabel="nats",
    )
    ax.set_xticks(samples, [str(k) for k in samples])
    ax.minorticks_off()
    ax.legend(frameon=False)
    return figure


def rate_distortion(table: pd.DataFrame, curve: pd.DataFrame) -> Figure:
    """Squared error against rate, and −log p(x) against β: trained linear VAEs on the closed form."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(curve["rate"], curve["squared error"], color="0.35", lw=1.6, label="Σ min(λ, βσ²), closed form")
    right.plot(curve["β"], curve["−log p(x)"], color="0.35", lw=1.6, label="closed form")
    for ax, x, y in ((left, "rate", "squared error"), (right, "β", "−log p(x)")):
        ax.plot(table[x], table[y], "o", color=PALETTE[0], label="trained")
        ax.grid(alpha=0.3)
    for rate, error, beta in table[["rate", "squared error", "β"]].itertuples(index=False):
        left.annotate(f"β = {beta:g}", (rate, error), (6, 5), textcoords="offset points")
    left.set(title="Rate buys distortion", xlabel="rate: KL, nats per image", ylabel="squared error per image")
    left.set(xlim=(-0.25, 6.4), ylim=(0, 8.4))
    right.set(title="β = 1 fits the data best", xlabel="β", ylabel="−log p(x), nats per image", xscale="log")
    near = table[table["β"].between(0.5, 2)]  # further up it would flatten the minimum
    low, high = near["−log p(x)"].min(), near["−log p(x)"].max()
    right.set(xlim=(0.47, 2.1), ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low)))
    _beta_ticks(right, near["β"].tolist())
    left.legend(frameon=False)
    right.legend(frameon=False)
    return figure


def collapse(trained: pd.DataFrame, curve: pd.DataFrame, eigenvalues: Sequence[float], noise: float) -> Figure:
    """KL of each latent by β: trained as marks on the closed form; where each one collapses."""
    figure, ax = _axes(7.4, 3.8)
    for (latent, rows), colour, mark in zip(trained.groupby("latent"), PALETTE, "osD^", strict=False):
        value = eigenvalues[int(str(latent))]
        line = curve[curve["latent"] == latent]
        ax.plot(line["β"], line["kl"], color=colour, lw=1.6)
        ax.plot(rows["β"], rows["kl"], mark, color=colour, label=f"λ = {value:g}: gone from β = {value / noise:g}")
        ax.axvline(value / noise, color=colour, ls=":", lw=1.2)
    ax.set(
        xscale="log",
        title="A latent collapses at β = λ / σ²",
        xlabel=f"β (σ² = {noise:g})",
        ylabel="KL of the latent, nats",
    )
    _beta_ticks(ax, sorted(trained["β"].unique()))
    ax.legend(framealpha=1, edgecolor="none")
    return figure


def _beta_ticks(ax: Axes, betas: Sequence[float]) -> None:
    ax.set_xticks(betas, [f"{beta:g}" for beta in betas])
    ax.minorticks_off()


def aggregate(found: Mapping[float, "Aggregate"]) -> Figure:
    """Four posteriors, their average and the prior, a panel a posterior width; the holes shaded."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for ax, (sigma, one) in zip(panels, found.items(), strict=True):
        z, marginal, prior = one.z.numpy(), one.marginal.numpy(), one.prior.numpy()
        for index, density in enumerate(one.posteriors.numpy() / len(one.posteriors)):
            ax.plot(z, density, color="0.6", lw=0.9, label="q(z|x) / 4, four images" if index == 0 else None)
        ax.plot(z, marginal, color=PALETTE[0], lw=2, label="their sum: q(z)")
        ax.plot(z, prior, "--", color=PALETTE[1], lw=2, label="prior p(z)")
        hole = marginal < prior / 10
        ax.fill_between(z, prior, where=hole, color=PALETTE[1], alpha=0.3, lw=0, label="holes: q(z) < p(z) / 10")
        ax.set(xlim=(-3.5, 3.5), ylim=(0, 1.1), xlabel="z", title=f"σ = {sigma:g}: {one.hole:.0%} of draws in holes")
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("density")
    panels[-1].legend(frameon=False, loc="upper center")
    return figure
