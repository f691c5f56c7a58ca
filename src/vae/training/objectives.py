"""The VAE's objective, in nats per image: sums over pixels and latents, never means.

Shapes: B images, L latent dimensions, K importance samples, D = 784 pixels.
"""

import torch
from torch import Tensor

from vae.models.distributions import importance_weighted_bound


def weighted_kl(kl: Tensor, beta: Tensor | float, free_bits: float = 0.0) -> Tensor:
    """The KL term of the training loss: per-dimension KL [B, L] -> a scalar.

    beta · Σ_j max(free_bits, mean over the batch of KL_j): the β-VAE of Higgins et al. 2017 with the free bits
    of Kingma et al. 2016, eq. 15 (groups of one dimension; `free_bits` in nats).
    """
    per_dimension = kl.mean(0)
    if free_bits > 0:
        per_dimension = per_dimension.clamp(min=free_bits)
    return beta * per_dimension.sum()


def mmd(z: Tensor, prior: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between two sets of draws, [N, L] and [M, L] -> a scalar from 0 to 2.

    mean k(z, z') + mean k(p, p') − 2 mean k(z, p) (Gretton et al. 2012, eq. 5), with the kernel of InfoVAE's authors,
    k(a, b) = exp(−‖a − b‖² / L²) (Zhao et al. 2019). It has no unit; a weight in the loss makes nats of it, and that
    is large (they take 1,000), since the kernel is near 1 throughout where L is large.

    The biased estimator, pairs of a draw with itself included: never negative, defined for a single image, and above
    the true value by at most 1/N + 1/M.
    """
    return _kernel(z, z).mean() + _kernel(prior, prior).mean() - 2 * _kernel(z, prior).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    squared_distance = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return torch.exp(-squared_distance.clamp(min=0) / a.shape[1] ** 2)


def beta_at(epoch: int, beta: float, warmup_epochs: int, cycle_epochs: int | None = None) -> float:
    """β in `epoch` (from 1) under linear warm-up: β · min(1, epoch / warmup_epochs).

    With `cycle_epochs` the warm-up begins anew with each cycle (Fu et al. 2019, eq. 6 with R = warmup / cycle; here β
    is never 0: an epoch has the value that theirs reaches at its end).
    """
    if cycle_epochs:
        epoch = (epoch - 1) % cycle_epochs + 1
    return beta * min(1.0, epoch / warmup_epochs) if warmup_epochs else beta


def doubly_reparameterized_bound(log_weights: Tensor, z: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """The importance-weighted bound with the DReG gradient (Tucker et al. 2019, eq. 8): [..., K] -> [...].

    In `log_weights` the density log q(z|x) must be that of detached parameters, so that the encoder's gradient comes
    through the samples `z` [..., K, L] alone, each with its normalized weight squared; the decoder's and prior's is the
    usual one. Where the weights hold q to the power −β, the score that their reparameterization takes away is β times
    as large, and what is left of a sample's weight w is (1 − β) w + β w². Adds a hook to `z`.
    """
    weights = log_weights.detach().softmax(-1)
    if z.requires_grad:
        share = 1 - beta + beta * weights
        z.register_hook(lambda gradient: gradient * share.unsqueeze(-1))
    surrogate = (weights * log_weights).sum(-1)
    return surrogate + (importance_weighted_bound(log_weights) - surrogate).detach()
