"""Checks of learned priors: the aggregate posterior is the best prior; a mixture and a flow are fitted to it.

Three images with two latents; integrals are sums over a grid. Nats, float64, fixed seeds.
"""

from copy import deepcopy
from functools import cache

import pandas as pd
import torch
from torch import Tensor

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl, normal_log_density
from vae.models.priors import Prior
from vae.models.vae import VAE
from vae.theory.check import Check, mean_check

MEANS = torch.tensor([[-1.4, -1.0], [1.4, -1.0], [0.0, 1.4]], dtype=torch.float64)  # of the three posteriors
LOGVAR = torch.full_like(MEANS, 0.4).log() * 2  # log-variances: standard deviation 0.4
SIDE = torch.linspace(-5, 5, 81, dtype=torch.float64)
GRID = torch.cartesian_prod(SIDE, SIDE)  # [G, 2]
AREA = (SIDE[1] - SIDE[0]).item() ** 2  # of a cell of the grid
PRIORS = ("standard", "gaussian_mixture", "realnvp")
STEPS = 150


def integral(log_density: Tensor, values: Tensor) -> float:
    """The expectation of `values` [..., G] under a density [..., G] on the grid, averaged over other dimensions."""
    return (log_density.exp() * values).sum(-1).mean().item() * AREA


def densities() -> tuple[Tensor, Tensor]:
    """Log-densities on the grid of the three posteriors, [3, G], and of their average q(z), [G]."""
    posteriors = normal_log_density(GRID, MEANS[:, None], LOGVAR[:, None])
    return posteriors, torch.logsumexp(posteriors, 0) - torch.tensor(len(MEANS)).double().log()


@cache
def fitted(name: str) -> Prior:
    """The prior of this name with the lowest mean KL that `STEPS` steps of L-BFGS find."""
    params = ModelParams(
        hidden_dims=(1,), latent_dim=2, prior=name, prior_components=3, prior_couplings=6, prior_width=16
    )
    prior = VAE.from_params(params, seed=0).double().prior
    if parameters := list(prior.parameters()):
        _, log_aggregate = densities()
        optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")

        def cross_entropy() -> Tensor:
            optimizer.zero_grad()
            loss = -(log_aggregate.exp() * prior.log_density(GRID)).sum() * AREA
            loss.backward()
            return loss

        optimizer.step(cross_entropy)
    return prior.requires_grad_(False)


def learned_priors() -> pd.DataFrame:
    """By prior: mean KL(q(z|x) ‖ p(z)), its lower bound I(x; z), and KL(q(z) ‖ p(z)), their difference."""
    posteriors, aggregate = densities()
    information = integral(posteriors, posteriors - aggregate)
    rows = []
    for name in PRIORS:
        log_prior = fitted(name).log_density(GRID)
        mean_kl, gap = integral(posteriors, posteriors - log_prior), integral(aggregate, aggregate - log_prior)
        rows.append((name, round(mean_kl, 3), round(information, 3), abs(round(gap, 3))))
    return pd.DataFrame(rows, columns=["prior", "mean KL", "I(x; z)", "KL(q(z) ‖ p(z))"])


def best_prior_is_the_aggregate_posterior() -> list[Check]:
    """A prior that equals q(z) reduces the mean KL to I(x; z). A flow's density agrees with its samples."""
    posteriors, aggregate = densities()
    information = integral(posteriors, posteriors - aggregate)
    standard, mixture, flow = (fitted(name).log_density(GRID) for name in PRIORS)
    sampler = deepcopy(fitted("realnvp")).float()
    samples = sampler.sample(20_000, torch.Generator().manual_seed(0), torch.device("cpu")).double()
    return [
        Check(
            "N(0, I): mean KL on the grid = in closed form",
            integral(posteriors, posteriors - standard),
            gaussian_kl(MEANS, LOGVAR).sum(1).mean().item(),
        ),
        Check("mixture: mean KL = I(x; z)", integral(posteriors, posteriors - mixture), information, tolerance=1e-4),
        Check("flow: integral of p(z)", integral(flow, torch.ones_like(flow)), 1.0, tolerance=1e-3),
        mean_check(
            "flow: mean log p(z) of samples = on the grid", fitted("realnvp").log_density(samples), integral(flow, flow)
        ),
    ]
