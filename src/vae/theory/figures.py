"""The figures of docs/theory.md."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.plots.figure import PALETTE
from vae.theory import learned_prior as priors
from vae.theory import terms, tradeoff
from vae.theory.linear import EIGENVALUES, LATENTS, NOISE, LinearGaussian, fit_linear_vae, solve_linear_vae

BETAS = np.geomspace(tradeoff.BETAS[0], tradeoff.BETAS[-1], 200).tolist()


def elbo() -> Figure:
    """The ELBO of one image under a model with one latent, by the width of q, one curve per mean of q."""
    model = LinearGaussian(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.5)
    x = torch.ones(1, 1, dtype=torch.float64)
    evidence = model.marginal().log_prob(x).item()
    exact = model.posterior(x)
    deviation = exact.covariance_matrix[0].sqrt()
    widths = torch.logspace(-0.8, 0.6, 60, dtype=torch.float64)
    figure, ax = _axes(
        "The gap between ELBO and log p(x) is KL(q ‖ p(z|x))",
        "standard deviation of q / σ, that of the exact posterior",
        "nats",
        (0.2, 0.5, 1, 2, 4),
    )
    ax.axhline(evidence, color="0.25", ls="--", lw=1.4)
    ax.text(4.1, evidence + 0.04, "log p(x)", ha="right", va="bottom", color="0.25")
    for offset, colour, dash in zip((0, 0.5, 1), PALETTE, ("-", "-.", ":"), strict=False):
        bound = model.elbo(x, exact.loc + offset * deviation, 2 * (widths[:, None] * deviation).log())
        ax.plot(widths, bound, dash, color=colour, lw=2, label=f"mean of q off by {offset:g} σ")
    ax.plot(1, evidence, "o", color=PALETTE[0])
    ax.set_ylim(evidence - 2, evidence + 0.25)
    ax.legend(frameon=False, loc="lower center")
    return figure


def gradient_variance() -> Figure:
    """Variance of a single-sample gradient by the number of latents: exact as lines, sampled as markers."""
    table = terms.gradient_variance_by_latents()
    title = "The score function's gradient grows noisier with every latent"
    figure, ax = _axes(title, "latent dimensions", "variance of one sample's gradient", [*table["latents"]])
    for name, colour, mark in zip(terms.gradient_variances(1), PALETTE, "osD", strict=False):
        ax.plot(table["latents"], table[f"{name}, exact"], color=colour, lw=1.6)
        ax.plot(table["latents"], table[f"{name}, sampled"], mark, color=colour, label=name)
    ax.set_yscale("log")
    ax.legend(frameon=False, title="markers: sampled; lines: exact")
    return figure


def importance() -> Figure:
    """The gap of the bound by the number of importance samples, its exact value at K = 1, and its limit χ²/2K."""
    table, at_one, limit = terms.importance_gap()
    k = table["K"]
    figure, ax = _axes("The importance-weighted bound closes as 1/K", "importance samples K", "nats", [*k])
    ax.plot(k, limit / k, "--", color="0.35", lw=1.4, label="χ²(p(z|x) ‖ q) / 2K")
    ax.plot(k, table["gap"], "o-", color=PALETTE[0], lw=1.6, label="log p(x) − bound, sampled")
    ax.plot(1, at_one, "o", ms=13, mfc="none", color=PALETTE[1], label="KL(q ‖ p(z|x))")
    ax.set_yscale("log")
    ax.legend(frameon=False)
    return figure


def rate_distortion() -> Figure:
    """Squared error against rate: trained linear VAEs as markers, the closed form as a line."""
    table = tradeoff.rate_distortion()
    exact = [solve_linear_vae(beta) for beta in BETAS]
    figure, ax = _axes("Rate buys distortion", "rate: KL, nats per image", "squared error per image")
    ax.plot(
        [vae.rate for vae in exact], [vae.squared_error for vae in exact], color="0.35", lw=1.6, label="closed form"
    )
    ax.plot(table["rate"], table["squared error"], "o", color=PALETTE[0], label="trained")
    for beta, rate, error in table[["β", "rate", "squared error"]].itertuples(index=False):
        ax.annotate(f"β = {beta:g}", (rate, error), (6, 5), textcoords="offset points")
    ax.set(xlim=(-0.25, 6.4), ylim=(0, 8.4))
    ax.legend(frameon=False)
    return figure


def collapse() -> Figure:
    """KL of each latent by β: trained as markers, the closed form as lines, and the β at which it collapses."""
    figure, ax = _axes(
        "A latent collapses at β = λ / σ²", f"β (σ² = {NOISE:g})", "KL of the latent, nats", tradeoff.BETAS
    )
    for latent, colour, mark in zip(range(LATENTS), PALETTE, "osD^", strict=False):
        value = EIGENVALUES[latent]
        ax.plot(BETAS, [solve_linear_vae(beta).kl[latent] for beta in BETAS], color=colour, lw=1.6)
        trained = [fit_linear_vae(beta).kl[latent] for beta in tradeoff.BETAS]
        ax.plot(tradeoff.BETAS, trained, mark, color=colour, label=f"λ = {value:g}: zero from β = {value / NOISE:g}")
        ax.axvline(value / NOISE, color=colour, ls=":", lw=1.2)
    ax.legend(framealpha=1, edgecolor="none")
    return figure


def aggregate() -> Figure:
    """Four posteriors, their average and the prior, one panel per posterior width, with the holes shaded."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    z = torch.linspace(-3.5, 3.5, 701, dtype=torch.float64)
    for index, sigma, *_, holes in tradeoff.aggregate_posterior().itertuples():
        ax = figure.add_subplot(1, len(tradeoff.WIDTHS), index + 1)
        posteriors, marginal, prior = (values.exp().numpy() for values in tradeoff.densities(z, sigma))
        ax.plot(z, posteriors[0] / 4, color="0.6", lw=0.9, label="q(z|x) / 4, four images")
        ax.plot(z, posteriors[1:].T / 4, color="0.6", lw=0.9)
        ax.plot(z, marginal, color=PALETTE[0], lw=2, label="their sum: q(z)")
        ax.plot(z, prior, "--", color=PALETTE[1], lw=2, label="prior p(z)")
        where = marginal < prior / 10
        ax.fill_between(z, prior, where=where, color=PALETTE[1], alpha=0.3, lw=0, label="holes: q(z) < p(z) / 10")
        ax.set(xlim=(-3.5, 3.5), ylim=(0, 1.1), xlabel="z", title=f"σ = {sigma:g}: {holes:.0%} of samples in holes")
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("density")
    figure.axes[-1].legend(frameon=False, loc="upper center")
    return figure


def learned_prior() -> Figure:
    """The average of three posteriors with two latents, and three priors: a darker area has a higher density."""
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    _, aggregate = priors.densities()
    panels = {"aggregate posterior q(z)": aggregate}
    panels |= {name: priors.fitted(name).log_density(priors.GRID) for name in priors.PRIORS}
    side = priors.SIDE.numpy()
    for index, (title, log_density) in enumerate(panels.items()):
        ax = figure.add_subplot(1, len(panels), index + 1)
        density = log_density.exp().view(len(side), -1).T.numpy()
        ax.contourf(side, side, density, levels=np.linspace(0, aggregate.exp().max().item(), 12), cmap="Blues")
        ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    return figure


def _axes(title: str, xlabel: str, ylabel: str, log_ticks: Sequence[float] = ()) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    ax = figure.add_subplot()
    ax.grid(alpha=0.3)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log_ticks:
        ax.set_xscale("log")
        ax.set_xticks(log_ticks, [f"{tick:g}" for tick in log_ticks])
        ax.minorticks_off()
    return figure, ax
