"""Figures that compare trainings, for the examples: tables in, matplotlib Figures out."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from vae.plots.figure import PALETTE

BASELINE_COLOUR = "0.55"


def rate_distortion(table: pd.DataFrame) -> Figure:
    """Reconstruction (distortion) over KL (rate), one point for each β; points on a dashed line have equal −ELBO.

    As figure 1 of Alemi et al. 2018. Columns: beta, kl, reconstruction, neg_elbo.
    """
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    ax = figure.add_subplot()
    ax.plot(table["kl"], table["reconstruction"], color="0.8", lw=1.2, zorder=1)
    norm = LogNorm(table["beta"].min(), table["beta"].max())
    points = ax.scatter(table["kl"], table["reconstruction"], c=table["beta"], norm=norm, s=70, zorder=3)
    for beta, rate, distortion in zip(table["beta"], table["kl"], table["reconstruction"], strict=True):
        ax.annotate(f"β = {beta:g}", (rate, distortion), xytext=(8, 6), textcoords="offset points")
    ax.margins(0.25, 0.12)
    rates, distortions = np.array(ax.get_xlim()), ax.get_ylim()
    totals = [table["neg_elbo"].min() + extra for extra in (0, 10, 20, 40)]
    label = f"−ELBO = {', '.join(f'{total:.0f}' for total in totals)}"
    for total in totals:
        ax.plot(rates, total - rates, "--", color=PALETTE[1], lw=0.9, alpha=0.6, zorder=2, label=label)
        label = ""
    ax.set(
        xlim=rates,
        ylim=distortions,
        title="The rate–distortion trade-off of β, test images",
        xlabel="rate: KL, nats per image",
        ylabel="distortion: reconstruction, nats per image",
    )
    figure.colorbar(points, label="β in training", ticks=table["beta"], format="%g").minorticks_off()
    ax.legend(frameon=False)
    ax.grid(alpha=0.3)
    return figure


def latent_dimensions(table: pd.DataFrame) -> Figure:
    """−ELBO, NLL and active units by the number of latent dimensions.

    Columns: latent_dim, neg_elbo, nll, active_units.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    bounds, units = figure.subplots(1, 2)
    sizes = table["latent_dim"]
    for column, label, colour, marker in (("neg_elbo", "−ELBO", PALETTE[0], "o"), ("nll", "NLL", PALETTE[1], "s")):
        bounds.plot(sizes, table[column], marker=marker, color=colour, label=label)
    bounds.set(title="Test metrics by latent dimensions", ylabel="nats per image")
    units.plot(sizes, sizes, "--", color="0.6", label="all latent dimensions")
    units.plot(sizes, table["active_units"], marker="o", color=PALETTE[0], label="active")
    for size, active in zip(sizes, table["active_units"], strict=True):
        units.annotate(f"{active}", (size, active), xytext=(0, -16), textcoords="offset points", ha="center")
    units.margins(0.1, 0.14)
    units.set(title="Active latent dimensions", ylabel="active units", yscale="log")
    for ax in (bounds, units):
        ax.set(xlabel="latent dimensions", xscale="log")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.legend(frameon=False)
        ax.grid(alpha=0.3)
    units.set_yticks(sizes, [str(size) for size in sizes])
    return figure


def differences(runs: pd.DataFrame, noise: float) -> Figure:
    """The difference of each change to the baseline, of each seed and on average; a band marks differences ≤ `noise`.

    Columns: group, change, difference (nats per image, negative is better); the baseline's rows come first.
    """
    changes = runs[runs["change"] != runs["change"].iloc[0]]
    means = changes.groupby(["group", "change"], sort=False)["difference"].mean()
    position = {change: row for row, (_, change) in enumerate(means.index)}
    colours = dict(zip(means.index.get_level_values("group").unique(), PALETTE, strict=False))
    figure = Figure(figsize=(8.4, 0.36 * len(means) + 1.4), layout="constrained")
    ax = figure.add_subplot()
    ax.axvspan(-noise, noise, color="0.9", label="within noise (three standard errors)")
    ax.axvline(0, color=BASELINE_COLOUR, lw=1)
    for (group, change), mean in means.items():
        each = changes.loc[changes["change"] == change, "difference"]
        ax.plot(each, np.full(len(each), position[change]), ".", color=colours[group], alpha=0.45, ms=8)
        ax.plot(mean, position[change], "D", color=colours[group], ms=7)
        ax.annotate(
            f"{mean:+.2f}".replace("-", "−"), (1.01, position[change]), xycoords=("axes fraction", "data"), va="center"
        )
    ax.plot([], [], "D", color="0.3", label="mean over seeds")
    ax.plot([], [], ".", color="0.3", alpha=0.6, ms=8, label="one seed")
    for group, colour in colours.items():
        ax.plot([], [], "s", color=colour, label=group)
    ax.set_yticks(list(position.values()), list(position))
    ax.invert_yaxis()
    # A failed training is tens of nats worse, a helpful technique one or two better: the axis shows both.
    ax.set_xscale("symlog", linthresh=max(4 * noise, 0.01), linscale=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.margins(x=0.05)
    ax.set_title("The effect of each change", loc="left")
    ax.set_xlabel(
        "difference of the test −ELBO to the baseline, nats per image: lower is better\n"
        "(linear in the middle, logarithmic at the ends)"
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=4, fontsize="small")
    ax.grid(axis="x", alpha=0.3)
    return figure


def validation_curves(histories: pd.DataFrame) -> Figure:
    """Validation −ELBO by epoch, averaged over seeds: one panel for each group of changes, each with the baseline.

    Columns: group, change, seed, epoch, val/neg_elbo; the baseline's rows come first.
    """
    means = histories.groupby(["group", "change", "epoch"], sort=False)["val/neg_elbo"].mean().reset_index()
    is_baseline = means["change"] == means["change"].iloc[0]
    baseline, others = means[is_baseline], means[~is_baseline]
    groups = others["group"].unique()
    figure = Figure(figsize=(3.6 * len(groups), 3.8), layout="constrained")
    low = means["val/neg_elbo"].min()
    high = baseline["val/neg_elbo"].quantile(0.85)  # the first epoch would flatten all others
    for ax, group in zip(np.atleast_1d(figure.subplots(1, len(groups), sharey=True)), groups, strict=True):
        ax.plot(baseline["epoch"], baseline["val/neg_elbo"], color=BASELINE_COLOUR, lw=2.5, label="baseline")
        for number, (change, curve) in enumerate(others[others["group"] == group].groupby("change", sort=False)):
            ax.plot(curve["epoch"], curve["val/neg_elbo"], color=PALETTE[number], lw=1.5, label=change)
        ax.set(title=group, xlabel="epoch", ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize="small", loc="upper right")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("validation −ELBO, nats per image")
    return figure
