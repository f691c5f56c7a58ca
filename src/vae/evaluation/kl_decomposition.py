"""The KL split by what the aggregate posterior q(z) = (1/N) Σ_n q(z|x_n) of all N images tells.

    mean KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ p(z))                           Hoffman & Johnson 2016
    KL(q(z) ‖ p(z)) = KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))             Chen et al. 2018, eq. 2

The second line holds where the prior's dimensions are independent. Its first term is the total correlation. Every
expectation is over one draw of each image's posterior, and q(z) is summed over all images: from a minibatch, as Chen et
al. have to take it in training, log q(z) is biased.

Shapes: N images, L latent dimensions, M draws. In nats.
"""

import math

import torch
from torch import Tensor

from vae.models.distributions import normal_log_density
from vae.models.vae import VAE

# Of a draw and an image, 4 MiB: a few times as many no longer fit a core's cache; with fewer, threads mostly wait for
# each other.
PAIRS_AT_ONCE = 2**20
# Of a log-density: nothing beside what a draw's own image adds, and above that of the least normal float32, −87.3,
# below which exp is ten times slower.
FLOOR = -80.0


@torch.no_grad()
def split_kl(model: VAE, mu: Tensor, logvar: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Both splits of the KL, estimated from posteriors [N, L] on the model's device.

    `mutual_information` is that of latents and the image's index, at most ln N. Where posteriors hardly overlap it
    comes close to that ceiling, and `aggregate_kl` and `total_correlation`, which have to hold the rest of the KL, then
    tell of the number of images: compare them for the same one only. The first two add up to an estimate of the KL,
    from one draw an image. `total_correlation` is q(z)'s alone, whatever the prior; `dimensionwise_kl` is the rest of
    `aggregate_kl`, where the prior is a standard normal. A second stochastic layer has no part in any of them.
    """
    generator = torch.Generator(mu.device).manual_seed(seed)
    z = model.reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator, device=mu.device))
    log_aggregate, log_marginals = (part.cpu().double() for part in aggregate_log_density(z, mu, logvar))
    log_posterior = normal_log_density(z, mu, logvar).cpu().double()
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


def aggregate_log_density(
    z: Tensor, mu: Tensor, logvar: Tensor, pairs_at_once: int = PAIRS_AT_ONCE
) -> tuple[Tensor, Tensor]:
    """log q(z) [M] and log q(z_j) [M, L] at `z` [M, L], of the average of N(mu_n, exp(logvar_n)), [N, L] each.

    Each draw must come from one of the N: far from all of them, log q(z_j) ends at a floor.
    """
    mu, logvar = mu.T.contiguous(), logvar.T.contiguous()
    inverse_sigma, constant = torch.exp(-0.5 * logvar), -0.5 * (logvar + math.log(2 * math.pi))
    joints, marginals = [], []
    for draws in z.split(max(1, pairs_at_once // mu.shape[1])):
        joint = torch.zeros(len(draws), mu.shape[1], device=z.device)
        marginal = []
        for j, column in enumerate(draws.T):
            distance = (column[:, None] - mu[j]).mul_(inverse_sigma[j])
            log_density = torch.addcmul(constant[j], distance, distance, value=-0.5)
            joint += log_density
            marginal.append(log_density.clamp_(min=FLOOR).exp_().sum(1).log_())
        joints.append(joint.logsumexp(1))
        marginals.append(torch.stack(marginal, 1))
    log_n = math.log(mu.shape[1])
    return torch.cat(joints) - log_n, torch.cat(marginals) - log_n
