"""Annealed importance sampling (AIS): the NLL by a method that does not use the encoder, as a check.

From samples of the prior, Hamiltonian Monte Carlo follows the densities p(u) p(x|u)^β from β = 0 to β = 1 (Neal 2001;
Wu et al. 2017). The mean weight of the chains is an unbiased estimate of p(x): its negative logarithm is too large on
average, as the importance-weighted NLL is. An image that the model has generated comes with an exact sample of its
posterior. From there, the reversed path estimates 1 / p(x), and an NLL that is too small on average (bidirectional
Monte Carlo, Grosse et al. 2015).

The latents u are z and, for further stochastic layers, the standard normal noise from which these sample: their density
is then p(z) N(noise; 0, I), however many layers there are.

Shapes: N images, C chains for each, M = N · C, D pixels, U latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vae.device import full_fp32
from vae.models.distributions import importance_weighted_bound, normal_log_density
from vae.models.hierarchy import StochasticLayer, TopDown
from vae.models.vae import VAE
from vae.progress import Progress

ACCEPTANCE = 0.65  # the probability to which step sizes are adapted (Wu et al. 2017)
ADAPTATION = 0.1  # how fast
FIRST_STEP_SIZE = 0.3


class State(NamedTuple):
    """Where chains are: the latents, the two terms of their log-density, and the gradients of these."""

    u: Tensor  # [M, U]
    log_prior: Tensor  # log p(u), [M]
    log_likelihood: Tensor  # log p(x|u), [M]
    prior_gradient: Tensor  # [M, U]
    likelihood_gradient: Tensor  # [M, U]

    def log_density(self, beta: float) -> Tensor:
        """log p(u) p(x|u)^β, [M]."""
        return self.log_prior + beta * self.log_likelihood

    def gradient(self, beta: float) -> Tensor:
        """The gradient of `log_density` in u, [M, U]."""
        return self.prior_gradient + beta * self.likelihood_gradient


@dataclass(frozen=True)
class AIS:
    """Chains with one HMC transition for each temperature β. `progress` shows how far they are."""

    model: VAE
    generator: torch.Generator  # on the model's device
    chains: int = 4
    temperatures: int = 2000
    leapfrog_steps: int = 5
    progress: bool = False

    @full_fp32()
    def nll(self, x: Tensor) -> Tensor:
        """−log p(x) of images [N, D], from the prior to the posterior: [N], in nats, too large on average."""
        step_sizes = self._step_sizes(x)
        u = sample_latents(self.model, len(x) * self.chains, self.generator)
        return -self._log_mean_weight(x, u, self._betas(), step_sizes)

    @full_fp32()
    def nll_from_posterior(self, x: Tensor, u: Tensor) -> Tensor:
        """−log p(x) of images [N, D] that were generated from `u` [N, U]: [N], in nats, too small on average."""
        step_sizes = self._step_sizes(x)
        return self._log_mean_weight(x, u.repeat_interleave(self.chains, 0), self._betas()[::-1], step_sizes[::-1])

    def _betas(self) -> list[float]:
        """β from 0 to 1, closest to each other at both ends: a sigmoid of evenly spaced points (Wu et al. 2017)."""
        points = torch.linspace(-4, 4, self.temperatures + 1, dtype=torch.float64).sigmoid()
        betas: list[float] = ((points - points[0]) / (points[-1] - points[0])).tolist()
        return betas

    def _step_sizes(self, x: Tensor) -> list[Tensor]:
        """Step sizes [N, 1] of every transition but the first and the last β's, from one further chain per image.

        They are given to the chains that count: weights of chains that adapt their own would not be unbiased.
        """
        state = state_at(self.model, sample_latents(self.model, len(x), self.generator), x)
        step_sizes = [torch.full((len(x), 1), FIRST_STEP_SIZE, device=x.device)]
        betas = self._betas()[1:-1]
        for beta in Progress(iterable=betas, show=self.progress, desc="adapt step sizes", total=len(betas)):
            state, acceptance = self._transition(x, state, beta, step_sizes[-1])
            step_sizes.append(step_sizes[-1] * torch.exp(ADAPTATION * (acceptance[:, None] - ACCEPTANCE)))
        return step_sizes[:-1]

    def _log_mean_weight(self, x: Tensor, u: Tensor, betas: Sequence[float], step_sizes: Sequence[Tensor]) -> Tensor:
        """The logarithm of the mean weight of each image's chains, which start at `u` [M, U]: [N]."""
        x = x.repeat_interleave(self.chains, 0)
        state = state_at(self.model, u, x)
        log_weights = (betas[1] - betas[0]) * state.log_likelihood.double()
        steps = list(zip(betas[1:-1], betas[2:], step_sizes, strict=True))
        for beta, following, step_size in Progress(iterable=steps, show=self.progress, desc="anneal", total=len(steps)):
            step_size = step_size.repeat_interleave(self.chains, 0)
            state, _ = self._transition(x, state, beta, step_size)
            log_weights += (following - beta) * state.log_likelihood.double()
        return importance_weighted_bound(log_weights.view(-1, self.chains))

    def _transition(self, x: Tensor, state: State, beta: float, step_size: Tensor) -> tuple[State, Tensor]:
        """One HMC transition, which leaves p(u) p(x|u)^β invariant, and the probability of its acceptance, [M]."""
        start = momentum = torch.randn(state.u.shape, generator=self.generator, device=x.device)
        end = state
        for _ in range(self.leapfrog_steps):
            momentum = momentum + 0.5 * step_size * end.gradient(beta)
            end = state_at(self.model, end.u + step_size * momentum, x)
            momentum = momentum + 0.5 * step_size * end.gradient(beta)
        kinetic_change = 0.5 * (momentum.square() - start.square()).sum(1)
        log_ratio = end.log_density(beta) - state.log_density(beta) - kinetic_change
        acceptance = log_ratio.exp().nan_to_num(0).clamp(max=1)  # NaN where a trajectory diverged
        accepted = torch.rand(len(x), generator=self.generator, device=x.device) < acceptance
        parts = [
            torch.where(accepted.view(-1, *[1] * (old.ndim - 1)), new, old) for new, old in zip(end, state, strict=True)
        ]
        return State(*parts), acceptance


def state_at(model: VAE, u: Tensor, x: Tensor) -> State:
    """The state of chains at `u` [M, U] for images [M, D]."""
    u = u.detach().requires_grad_()
    z, noise = u.tensor_split([model.params.latent_dim], 1)
    zero = torch.zeros((), device=u.device)
    log_prior = model.prior.log_density(z) + normal_log_density(noise, zero, zero)
    log_likelihood = -model.likelihood.nll(decode(model, u), x)
    gradients = (torch.autograd.grad(term.sum(), u)[0] for term in (log_prior, log_likelihood))
    return State(u.detach(), log_prior.detach(), log_likelihood.detach(), *gradients)


@torch.no_grad()
def sample_images(model: VAE, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` sampled images of the model, floats [n, D], and the latents that they were generated from, [n, U]."""
    u = sample_latents(model, n, generator)
    return model.likelihood.sample(decode(model, u), generator), u


@torch.no_grad()
def sample_latents(model: VAE, n: int, generator: torch.Generator) -> Tensor:
    """`n` samples of p(u), [n, U]."""
    z = model.prior.sample(n, generator, generator.device)
    return torch.cat([z, torch.randn(n, model.noise_dim - z.shape[1], generator=generator, device=z.device)], 1)


def decode(model: VAE, u: Tensor) -> Tensor:
    """Latents [M, U] -> the likelihood's parameters, [M, P·D]."""
    if not model.hierarchy:
        return model.decode(u)
    z, *noise = u.split(
        [model.params.latent_dim, *(cast(StochasticLayer, layer).noise_dim for layer in model.hierarchy)], 1
    )
    return model.decode(z, top_down=TopDown(noise))
