"""Decomposition of the KL by the aggregate posterior q(z) = (1/N) Σ_n q(z|x_n) of N images.

    mean KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z))                           Hoffman & Johnson 2016
    KL(q(z) ‖ p(z)) = KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))             Chen et al. 2018, eq. 2

The second line holds for priors with independent dimensions. Its first term is the total correlation. Expectations are
estimated with one sample of each posterior, and q(z) sums over all images: log q(z) of a minibatch, as Chen et al. need
it in training, is biased.

Shapes: N images, L latent dimensions, M samples. In nats.
"""

import math

import torch
from torch import Tensor

from vae.models.distributions import normal_log_density
from vae.models.vae import VAE

# Pairs of a sample and an image, 4 MiB: more do not fit a core's cache, and with fewer threads wait for each other.
PAIRS_AT_ONCE = 2**20
SAMPLES_OF_A_LOOK = 1000  # enough to see whether all of them would tell anything
# The lowest log-density: negligible beside that of a sample's own image, and above −87.3, below which exp is subnormal
# in float32 and ten times slower.
FLOOR = -80.0


@torch.no_grad()
def split_kl(model: VAE, mu: Tensor, logvar: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Decompose the KL of posteriors [N, L], on the model's device, in nats.

    `mutual_information` (of the latents and the image's index, at most ln N) and `aggregate_kl` add up to the KL.
    `aggregate_kl` is `total_correlation` plus, where the prior's dimensions are independent, `dimensionwise_kl`.
    Posteriors that hardly overlap bring the mutual information close to ln N, and then all terms depend on N more than
    on the model (`is_at_ceiling`): the result is empty. Further stochastic layers are not part of any term.
    """
    generator = torch.Generator(mu.device).manual_seed(seed)
    z = model.reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator, device=mu.device))
    log_posterior = normal_log_density(z, mu, logvar).cpu().double()
    some = slice(SAMPLES_OF_A_LOOK)
    information = (log_posterior[some] - aggregate_log_density(z[some], mu, logvar)[0].cpu()).mean().item()
    if is_at_ceiling(information, len(mu)):
        return {}
    log_aggregate, log_marginals = (part.cpu().double() for part in aggregate_log_density(z, mu, logvar))
    log_prior = model.prior.log_density(z).cpu().double()
    log_product = log_marginals.sum(1)
    terms = {
        "mutual_information": log_posterior - log_aggregate,
        "aggregate_kl": log_aggregate - log_prior,
        "total_correlation": log_aggregate - log_product,
    }
    if model.prior.factorized:
        terms["dimensionwise_kl"] = log_product - log_prior
    return {name: term.mean().item() for name, term in terms.items()}


def reference_normal(model: VAE, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [L] of the normal distribution that the KL of each dimension is shown against.

    It is the prior where that is N(0, I). Other priors are no product over dimensions: it is then the normal with the
    mean and variance of the aggregate posterior of `mu` and `logvar` [N, L].
    """
    if model.prior.factorized:
        return torch.zeros_like(mu[0]), torch.zeros_like(mu[0])
    return mu.mean(0), (mu.var(0, correction=0) + logvar.exp().mean(0)).log()


def is_at_ceiling(mutual_information: float, n: int) -> bool:
    """Whether the mutual information, estimated from `n` images, is less than 2 nats below its maximum, ln n.

    If q(z|x) / q(z) were the same for all images, an estimate g below ln n would be too small by −ln(1 − e^−g), 0.15
    nats for g = 2, and `aggregate_kl` too large by as much.
    """
    return mutual_information > math.log(n) - 2


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, pairs_at_once: int = PAIRS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """log q(z) [M] and log q(z_j) [M, L] at samples `z` [M, L], where q is the mean of N(mu_n, exp(logvar_n)), [N, L].

    Each sample must come from one of the N posteriors: far away from all of them, log q(z_j) is cut off at `FLOOR`.
    """
    mu, logvar = mu.T.contiguous(), logvar.T.contiguous()
    inverse_sigma, constant = torch.exp(-0.5 * logvar), -0.5 * (logvar + math.log(2 * math.pi))
    joints, marginals = [], []
    for samples in z.split(max(1, pairs_at_once // mu.shape[1])):
        joint = torch.zeros(len(samples), mu.shape[1], device=z.device)
        marginal = []
        for j, column in enumerate(samples.T):
            distance = (column[:, None] - mu[j]).mul_(inverse_sigma[j])
            log_density = torch.addcmul(constant[j], distance, distance, value=-0.5)
            joint += log_density
            marginal.append(log_density.clamp_(min=FLOOR).exp_().sum(1).log_())
        joints.append(joint.logsumexp(1))
        marginals.append(torch.stack(marginal, 1))
    log_n = math.log(mu.shape[1])
    return torch.cat(joints) - log_n, torch.cat(marginals) - log_n
