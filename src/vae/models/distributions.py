"""Normal distributions and the importance-weighted bound, in nats.

Shapes: ... any leading dimensions, L latent dimensions, K importance samples.
"""

import math

import torch
from torch import Tensor


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, 1)) of each latent dimension: [..., L] -> [..., L], ≥ 0.

    Kingma & Welling 2014, appendix B, without the sum over dimensions.
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def gaussian_kl_between(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(prior_mu, exp(prior_logvar))) of each dimension: [..., L] -> [..., L], ≥ 0."""
    ratio = logvar - prior_logvar
    return 0.5 * ((mu - prior_mu).square() * torch.exp(-prior_logvar) + ratio.exp() - 1 - ratio)


def normal_log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)), summed over latent dimensions: [..., L] -> [...]."""
    return -0.5 * ((z - mu).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(-1)


def normal_entropy(logvar: Tensor) -> Tensor:
    """Entropy of N(·, exp(logvar)), summed over latent dimensions: [..., L] -> [...]."""
    return 0.5 * (1 + logvar + math.log(2 * math.pi)).sum(-1)


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k from log weights log p(x, z_k) − log q(z_k|x): [..., K] -> [...].

    Burda et al. 2016, eq. 8: the ELBO at K = 1, rising to log p(x) as K grows.
    """
    return torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1])
