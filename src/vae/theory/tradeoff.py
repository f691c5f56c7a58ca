"""Checks of what a trained model trades: rate against distortion, posterior collapse, the aggregate posterior.

A linear VAE is trained on the library's loss and compared with its exact optimum. Nats, float64, fixed seeds.
"""

import math

import pandas as pd
import torch
from torch import Tensor

from vae.models.distributions import gaussian_kl, normal_log_density
from vae.theory.check import Check
from vae.theory.linear import EIGENVALUES, NOISE, ZERO, fit_linear_vae, solve_linear_vae

BETAS = (0.5, 1.0, 2.0, 4.0, 7.0, 14.0, 28.0)
TRAINED = 1e-5  # accuracy that BFGS reaches
MEANS = (-1.5, -1.0, 1.0, 1.5)  # of the posteriors of four images with one latent
WIDTHS = (0.1, 0.25, 0.5)  # posterior standard deviations


# Rate and distortion


def rate_distortion() -> pd.DataFrame:
    """Rate, squared error and −log p(x) of trained linear VAEs by β; the first two also in closed form."""
    rows = []
    for beta in BETAS:
        trained, exact = fit_linear_vae(beta), solve_linear_vae(beta)
        rows.append((beta, trained.rate, exact.rate, trained.squared_error, exact.squared_error, trained.nll))
    names = ["β", "rate", "rate, exact", "squared error", "squared error, exact", "−log p(x)"]
    return pd.DataFrame(rows, columns=names)


def rate_distortion_is_shannons() -> list[Check]:
    """Rate and error of a linear β-VAE are Shannon's; the slope is −β; β = 1 gives the best likelihood."""
    trained, threshold = fit_linear_vae(2.0), 2.0 * NOISE
    rate = sum(0.5 * math.log(value / threshold) for value in EIGENVALUES if value > threshold)
    error = sum(min(value, threshold) for value in EIGENVALUES)
    below, above, at_one = fit_linear_vae(1.99), fit_linear_vae(2.01), fit_linear_vae(1.0)
    slope = (above.distortion - below.distortion) / (above.rate - below.rate)
    slope_statement = "from β = 1.99 to 2.01, trained: change of distortion / change of rate = −β"
    return [
        Check("β = 2, trained: rate = Σ max(0, ½ log(λ / βσ²))", trained.rate, rate, tolerance=TRAINED),
        Check("β = 2, trained: squared error = Σ min(λ, βσ²)", trained.squared_error, error, tolerance=TRAINED),
        Check(slope_statement, slope, -2.0, tolerance=1e-3),
        Check("β = 1, trained: −ELBO = −log p(x)", at_one.rate + at_one.distortion, at_one.nll, tolerance=TRAINED),
        Check("β of the lowest −log p(x) in the table", min(BETAS, key=lambda beta: fit_linear_vae(beta).nll), 1.0),
    ]


def beta_is_the_noise() -> list[Check]:
    """With a Gaussian decoder of fixed σ², only the product βσ² matters."""
    by_beta, by_noise = fit_linear_vae(4.0, variance=0.2), fit_linear_vae(1.0, variance=0.8)
    statement = "linear VAE: rate trained with β = 4, σ² = 0.2 = with β = 1, σ² = 0.8"
    return [Check(statement, by_beta.rate, by_noise.rate, tolerance=TRAINED)]


# Posterior collapse


def components_collapse_below_the_noise() -> list[Check]:
    """A latent collapses exactly where its component has λ ≤ βσ², at β = 1 too; free bits keep it open."""
    at_four, too_many = fit_linear_vae(4.0), fit_linear_vae(1.0, latents=5)
    free = fit_linear_vae(2.0, latents=1, variance=1.0, free_bits=0.5, eigenvalues=(1.0,))
    return [
        Check("β = 4, βσ² = 0.8: KL of the component λ = 1", at_four.kl[2], 0.5 * math.log(1 / 0.8), tolerance=TRAINED),
        Check("β = 4, βσ² = 0.8: KL of the component λ = 0.5", at_four.kl[3], 0.0, tolerance=TRAINED),
        Check("β = 1, σ² = 0.2: KL of a fifth latent, for λ = 0.1", too_many.kl[4], 0.0, tolerance=TRAINED),
        Check("λ = 1, βσ² = 2 with 0.5 free nats: KL", free.kl[0], 0.5, tolerance=1e-3),
        Check("the same: squared error = λ exp(−2 · 0.5)", free.squared_error, math.exp(-1), tolerance=1e-3),
    ]


# The aggregate posterior


def densities(z: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-densities at z [G]: four images' posteriors N(mean, sigma²) [4, G], their average q(z) and the prior [G]."""
    mu = torch.tensor(MEANS, dtype=torch.float64)[:, None, None]
    posteriors = normal_log_density(z[:, None], mu, torch.tensor(2 * math.log(sigma), dtype=torch.float64))
    return posteriors, posteriors.logsumexp(0) - math.log(len(MEANS)), normal_log_density(z[:, None], ZERO, ZERO)


def aggregate_posterior() -> pd.DataFrame:
    """By posterior width: mean KL, its two parts by numerical integration, and the prior mass in holes."""
    rows = []
    z, mu = torch.linspace(-8, 8, 16_001, dtype=torch.float64), torch.tensor(MEANS, dtype=torch.float64)
    for sigma in WIDTHS:
        log_posteriors, log_marginal, log_prior = densities(z, sigma)
        mean_kl = gaussian_kl(mu, torch.full_like(mu, 2 * math.log(sigma))).mean()
        information = torch.trapezoid(log_posteriors.exp() * (log_posteriors - log_marginal), z).mean()
        marginal_kl = torch.trapezoid(log_marginal.exp() * (log_marginal - log_prior), z)
        holes = torch.trapezoid(log_prior.exp() * (log_marginal < log_prior - math.log(10)), z)
        rows.append([sigma, *(value.item() for value in (mean_kl, information, marginal_kl, holes))])
    return pd.DataFrame(rows, columns=["σ of q(z|x)", "mean KL", "I(x; z)", "KL(q(z) ‖ p(z))", "prior mass in holes"])


def mean_kl_splits_in_two() -> list[Check]:
    """Mean KL = mutual information + KL of the aggregate posterior (Hoffman & Johnson 2016)."""
    return [
        Check(f"σ = {sigma:g}: mean KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z))", kl, information + marginal)
        for sigma, kl, information, marginal, _ in aggregate_posterior().itertuples(index=False)
    ]
