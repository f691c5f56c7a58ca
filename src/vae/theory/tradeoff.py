"""Statements on what training comes to, a function each: rate and distortion, posterior collapse, holes.

A linear VAE is trained on the project's loss, and held against its optimum in closed form. Nats, float64, fixed seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from torch import Tensor

from vae.models.distributions import gaussian_kl, normal_log_density
from vae.theory.check import Check
from vae.theory.linear import (
    EIGENVALUES,
    LATENTS,
    NOISE,
    ZERO,
    LinearVAE,
    fit_linear_vae,
    linear_data,
    solve_linear_vae,
)

BETAS = (0.5, 1.0, 2.0, 4.0, 7.0, 14.0, 28.0)
TRAINED = 1e-5  # how near L-BFGS comes to the optimum
MEANS = (-1.5, -1.0, 1.0, 1.5)  # posterior means of the four images of `aggregate_posterior`


# --- rate and distortion


@cache
def fitted(beta: float, latents: int = LATENTS, variance: float = NOISE) -> LinearVAE:
    """`fit_linear_vae` on the data of EIGENVALUES, once."""
    return fit_linear_vae(linear_data(), beta, latents, variance)


def rate_distortion() -> pd.DataFrame:
    """A row a β: rate, squared error and −log p(x) of a trained linear VAE, and the first two in closed form."""
    rows = []
    for beta in BETAS:
        trained, exact = fitted(beta), solve_linear_vae(beta)
        rows.append((beta, trained.rate, exact.rate, trained.squared_error, exact.squared_error, trained.nll))
    return pd.DataFrame(
        rows, columns=["β", "rate", "rate, exact", "squared error", "squared error, exact", "−log p(x)"]
    )


def rate_distortion_curve() -> pd.DataFrame:
    """The closed form at many β: rate, squared error and −log p(x)."""
    rows = [(beta, exact.rate, exact.squared_error, exact.nll) for beta, exact in _exact_curve().items()]
    return pd.DataFrame(rows, columns=["β", "rate", "squared error", "−log p(x)"])


def _exact_curve() -> dict[float, LinearVAE]:
    betas = torch.logspace(math.log10(BETAS[0]), math.log10(BETAS[-1]), 200, dtype=torch.float64).tolist()
    return {beta: solve_linear_vae(beta) for beta in betas}


def rate_distortion_is_shannons() -> list[Check]:
    """A linear β-VAE pays Shannon's rate for its error; its slope is −β; only β = 1 gives the best likelihood."""
    trained, threshold = fitted(2.0), 2.0 * NOISE
    rate = sum(0.5 * math.log(value / threshold) for value in EIGENVALUES if value > threshold)
    less, more = fitted(1.99), fitted(2.01)
    at_one = fitted(1.0)
    return [
        Check("β = 2, trained: rate = Σ max(0, ½ log(λ / βσ²))", trained.rate, rate, tolerance=TRAINED),
        Check(
            "β = 2, trained: squared error = Σ min(λ, βσ²)",
            trained.squared_error,
            sum(min(value, threshold) for value in EIGENVALUES),
            tolerance=TRAINED,
        ),
        Check(
            "from β = 1.99 to 2.01, trained: change of distortion / change of rate = −β",
            (more.distortion - less.distortion) / (more.rate - less.rate),
            -2.0,
            tolerance=1e-3,
        ),
        Check("β = 1, trained: −ELBO = −log p(x)", at_one.rate + at_one.distortion, at_one.nll, tolerance=TRAINED),
        Check("β of the lowest −log p(x) in the table", min(BETAS, key=lambda beta: fitted(beta).nll), 1.0),
    ]


def beta_is_the_noise() -> list[Check]:
    """Under a Gaussian decoder of fixed σ², the encoder sees β and σ² only as their product."""
    return [
        Check(
            "linear VAE, rate trained with β = 4, σ² = 0.2 = with β = 1, σ² = 0.8",
            fitted(4.0, variance=0.2).rate,
            fitted(1.0, variance=0.8).rate,
            tolerance=TRAINED,
        )
    ]


# --- posterior collapse


def kl_by_beta() -> tuple[pd.DataFrame, pd.DataFrame]:
    """KL of each latent by β: trained at BETAS, and in closed form; columns β, latent (from 0), kl."""

    def table(solutions: dict[float, LinearVAE]) -> pd.DataFrame:
        rows = [(beta, latent, kl) for beta, found in solutions.items() for latent, kl in enumerate(found.kl)]
        return pd.DataFrame(rows, columns=["β", "latent", "kl"])

    return table({beta: fitted(beta) for beta in BETAS}), table(_exact_curve())


def components_collapse_below_the_noise() -> list[Check]:
    """A latent collapses exactly where its component's variance λ ≤ βσ², at β = 1 too; free bits hold it open."""
    at_four = fitted(4.0)
    too_many = fitted(1.0, latents=5)
    one_component = linear_data([1.0])
    free = fit_linear_vae(one_component, beta=2.0, latents=1, variance=1.0, free_bits=0.5)
    return [
        Check("β = 4, βσ² = 0.8: KL of the component λ = 1", at_four.kl[2], 0.5 * math.log(1 / 0.8), tolerance=TRAINED),
        Check("β = 4, βσ² = 0.8: KL of the component λ = 0.5", at_four.kl[3], 0.0, tolerance=TRAINED),
        Check("β = 1, σ² = 0.2: KL of a fifth latent, for λ = 0.1", too_many.kl[4], 0.0, tolerance=TRAINED),
        Check("λ = 1, βσ² = 2 with 0.5 free nats: KL", free.kl[0], 0.5, tolerance=1e-3),
        Check("the same: squared error = λ exp(−2 · 0.5)", free.squared_error, math.exp(-1), tolerance=1e-3),
    ]


# --- the aggregate posterior


@dataclass(frozen=True)
class Aggregate:
    """The posteriors of N images with one latent, on a grid of z [G], and the split of their mean KL."""

    z: Tensor
    posteriors: Tensor  # q(z|x_n) [N, G]
    prior: Tensor  # p(z) [G]
    mutual_information: float
    marginal_kl: float  # KL(q(z) ‖ p(z))
    hole: float  # the prior's mass where q(z) < p(z) / 10

    @property
    def marginal(self) -> Tensor:
        """q(z), the posteriors' average [G]."""
        return self.posteriors.mean(0)


def aggregate_posterior(sigma: float) -> Aggregate:
    """Four images' posteriors N(mean, sigma²), integrated on a grid: mutual information and marginal KL."""
    z = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    mu = torch.tensor(MEANS, dtype=torch.float64)[:, None, None]
    log_posteriors = normal_log_density(z[:, None], mu, torch.tensor(2 * math.log(sigma), dtype=torch.float64))
    log_prior = normal_log_density(z[:, None], ZERO, ZERO)
    log_marginal = log_posteriors.logsumexp(0) - math.log(len(MEANS))
    posteriors, prior, marginal = log_posteriors.exp(), log_prior.exp(), log_marginal.exp()
    return Aggregate(
        z,
        posteriors,
        prior,
        torch.trapezoid(posteriors * (log_posteriors - log_marginal), z).mean().item(),
        torch.trapezoid(marginal * (log_marginal - log_prior), z).item(),
        torch.trapezoid(prior * (marginal < prior / 10), z).item(),
    )


def mean_kl_splits_in_two(sigmas: Sequence[float] = (0.1, 0.25, 0.5)) -> tuple[pd.DataFrame, list[Check]]:
    """Mean KL = mutual information + KL of the aggregate posterior (Hoffman & Johnson 2016), and its holes."""
    rows, checks = [], []
    mu = torch.tensor(MEANS, dtype=torch.float64)
    for sigma in sigmas:
        found = aggregate_posterior(sigma)
        kl = gaussian_kl(mu, torch.full_like(mu, 2 * math.log(sigma))).mean().item()
        rows.append((sigma, kl, found.mutual_information, found.marginal_kl, found.hole))
        total = found.mutual_information + found.marginal_kl
        checks.append(Check(f"σ = {sigma:g}: mean KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z))", kl, total))
    columns = ["σ of q(z|x)", "mean KL", "I(x; z)", "KL(q(z) ‖ p(z))", "prior mass in holes"]
    return pd.DataFrame(rows, columns=columns), checks
