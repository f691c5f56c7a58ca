"""The VAE's objective, in nats per image: sums over pixels and latents, never means.

Shapes: B images, L latent dimensions, K importance samples, D pixels.
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
    """Squared maximum mean discrepancy between two sets of samples, [N, L] and [M, L] -> a scalar from 0 to 2.

    mean k(z, z') + mean k(p, p') − 2 mean k(z, p) (Gretton et al. 2012, eq. 5), with the kernel of InfoVAE's authors,
    k(a, b) = exp(−‖a − b‖² / L²) (Zhao et al. 2019). It has no unit. Its weight in the loss, in nats, is large (they
    use 1,000), because the kernel is close to 1 everywhere if L is large.

    This is the biased estimator, which includes the pairs of a sample with itself: it is never negative, defined for a
    single image, and above the true value by at most 1/N + 1/M.
    """
    return _kernel(z, z).mean() + _kernel(prior, prior).mean() - 2 * _kernel(z, prior).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    squared_distance = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return torch.exp(-squared_distance.clamp(min=0) / a.shape[1] ** 2)


def beta_at(position: float, beta: float, warmup_epochs: int, cycle_epochs: int | None = None) -> float:
    """β under linear warm-up, `position` epochs after the start (> 0): β · min(1, position / warmup_epochs).

    With `cycle_epochs` the warm-up is repeated in each cycle (Fu et al. 2019, eq. 6 with R = warmup / cycle). A step is
    at the position of its end: β is never 0, and reaches its maximum in the last step of the warm-up.
    """
    if cycle_epochs:
        position = cycle_epochs - (-position) % cycle_epochs
    return beta * min(1.0, position / warmup_epochs) if warmup_epochs else beta


def doubly_reparameterized_bound(log_weights: Tensor, z: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """The importance-weighted bound with the DReG gradient (Tucker et al. 2019, eq. 8): [..., K] -> [...].

    The log q(z|x) in `log_weights` must be that of detached parameters: the encoder's gradient then comes through the
    samples `z` [..., K, L] alone, each with its normalized weight w squared. The decoder and the prior have the usual
    gradient. If the weights hold q to the power −β, the score function term that reparameterization removes is β times
    as large, and the weight of a sample is (1 − β) w + β w². Registers a hook on `z`.
    """
    weights = log_weights.detach().softmax(-1)
    if z.requires_grad:
        share = 1 - beta + beta * weights
        z.register_hook(lambda gradient: gradient * share.unsqueeze(-1))
    surrogate = (weights * log_weights).sum(-1)
    return surrogate + (importance_weighted_bound(log_weights) - surrogate).detach()
