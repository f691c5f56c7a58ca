"""Priors p(z): what the KL pulls the posterior towards, and what new images are drawn from.

A new prior is one class here, with a name in `make_prior` and in `config.PriorName`.

Shapes: ... any leading dimensions, D pixels, L latent dimensions, C components. Densities in nats.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.data.binarization import to_float
from vae.models.distributions import gaussian_kl, normal_log_density

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # images [B, D] -> a posterior's mean and log-variance


class Prior(nn.Module):
    """A distribution over the latents of which only density and draws are known: the KL is estimated from a draw."""

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z), [..., L] -> [...]."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        raise NotImplementedError

    def log_ratio(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """log q(z|x) − log p(z) at draws `z` of q(z|x) = N(mu, exp(logvar)), [..., L] -> [...]: its mean is the KL."""
        return normal_log_density(z, mu, logvar) - self.log_density(z)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p) as terms that add up to it, [..., L] -> [..., terms].

        Here a single term: the posterior's negative entropy, which is known, less log p at the draws `z`.
        """
        entropy = 0.5 * (1 + logvar + math.log(2 * math.pi)).sum(-1)
        return (-entropy - self.log_density(z)).unsqueeze(-1)


class StandardNormal(Prior):
    """N(0, 1) in every dimension (Kingma & Welling 2014)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; 0, 1), [..., L] -> [...]."""
        zero = torch.zeros((), device=z.device)
        return normal_log_density(z, zero, zero)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        return torch.randn(n, self.latent_dim, generator=generator, device=device)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """The KL in closed form, a term for each dimension, [..., L] -> [..., L]."""
        return gaussian_kl(mu, logvar)


class Mixture(Prior):
    """A mixture of C normal distributions with diagonal covariances."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the weights, [C]."""
        raise NotImplementedError

    def log_density(self, z: Tensor) -> Tensor:
        """log Σ_c w_c N(z; mu_c, exp(logvar_c)), [..., L] -> [...]."""
        # Σ_j (z_j − mu_j)² / var_j, multiplied out: two matrix products instead of [..., C, L] differences. Narrow
        # components survive that in double precision only. A training step on a CPU makes do with single, as does MPS.
        device = z.device.type
        wide = torch.float32 if device == "mps" or (device == "cpu" and torch.is_grad_enabled()) else torch.float64
        mu, logvar, log_weight = (part.to(wide) for part in self.components())
        with torch.autocast(z.device.type, enabled=False):
            precision = torch.exp(-logvar)
            constant = (mu.square() * precision + logvar).sum(-1) + mu.shape[-1] * math.log(2 * math.pi)
            distance = z.to(wide).square() @ precision.T - 2 * z.to(wide) @ (mu * precision).T + constant
        return torch.logsumexp(log_weight - 0.5 * distance, -1).to(z.dtype)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        mu, logvar, log_weight = (part.float() for part in self.components())
        chosen = torch.multinomial(log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, mu.shape[-1], generator=generator, device=device)
        return mu[chosen] + torch.exp(0.5 * logvar[chosen]) * noise


class GaussianMixture(Mixture):
    """A mixture whose means, variances and weights are learned."""

    def __init__(self, latent_dim: int, components: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.randn(components, latent_dim))
        self.logvar = nn.Parameter(torch.zeros(components, latent_dim))
        self.weight_logits = nn.Parameter(torch.zeros(components))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the weights, [C]."""
        return self.mu, self.logvar, self.weight_logits.log_softmax(-1)


class VampPrior(Mixture):
    """The mixture of the encoder's posteriors of C learned pseudo-images (Tomczak & Welling 2018, eq. 9)."""

    def __init__(self, encode: Encode, input_dim: int, components: int) -> None:
        super().__init__()
        self.encode = encode
        self.pseudo_images = nn.Parameter(torch.rand(components, input_dim))

    def start_from(self, images: Tensor) -> None:
        """Take C of `images` [B, D] as pseudo-images, evenly spread; each of them several times if they are fewer."""
        chosen = torch.arange(len(self.pseudo_images)) * len(images) // len(self.pseudo_images)
        self.pseudo_images.copy_(to_float(images[chosen]))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the equal weights, [C]."""
        mu, logvar = self.encode(self.pseudo_images.clamp(0, 1))
        return mu, logvar, torch.full(mu.shape[:1], -math.log(len(mu)), device=mu.device)


def make_prior(encode: Encode, input_dim: int, params: ModelParams) -> Prior:
    """The prior that `params` describe; `encode` is a bound method of the model, and is copied along with it."""
    match params.prior:
        case "standard":
            return StandardNormal(params.latent_dim)
        case "gaussian_mixture":
            return GaussianMixture(params.latent_dim, params.prior_components)
        case "vampprior":
            return VampPrior(encode, input_dim, params.prior_components)
