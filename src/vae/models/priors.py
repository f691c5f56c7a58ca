"""Priors p(z): what the KL pulls the posterior towards, and what new images are sampled from.

A new prior is one class here, with a name in `PRIORS` and in `config.PRIOR_NAMES`. Every prior is constructed with
`(input_dim, params, encode)`, where `encode` is the model's method.

Shapes: ... any leading dimensions, D pixels, L latent dimensions, C mixture components. Densities in nats.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.data.binarization import to_float
from vae.models.distributions import gaussian_kl, normal_entropy, normal_log_density
from vae.models.flows import Coupling
from vae.models.networks import Posterior

Encode = Callable[[Tensor], Posterior]  # images [B, D] -> q(z|x)


class Prior(nn.Module):
    """A distribution over the latents with a density that can be evaluated and sampled from.

    The KL is estimated from posterior samples; a subclass that knows it in closed form overrides `kl`.
    """

    factorized = False  # whether the dimensions are independent, and `kl` has a closed form for each

    def __init__(self, input_dim: int, params: ModelParams, encode: Encode) -> None:
        super().__init__()
        self.latent_dim = params.latent_dim

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z), [..., L] -> [...]."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` samples, [n, L]."""
        raise NotImplementedError

    def kl(self, mu: Tensor, logvar: Tensor, log_prior: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p) of q(z|x) = N(mu, exp(logvar)), [..., L], as terms that add up to it: [..., terms].

        Here one term: the posterior's negative entropy minus `log_prior`, log p(z) at samples of q(z|x), [...].
        """
        return (-normal_entropy(logvar) - log_prior).unsqueeze(-1)

    def initialize_from_data(self, images: Tensor) -> None:
        """Data-dependent initialization from `images` [N, D], uint8 or floats; most priors have none."""


class StandardNormal(Prior):
    """N(0, 1) in every dimension (Kingma & Welling 2014)."""

    factorized = True

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; 0, 1), [..., L] -> [...]."""
        zero = torch.zeros((), device=z.device)
        return normal_log_density(z, zero, zero)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` samples, [n, L]."""
        return torch.randn(n, self.latent_dim, generator=generator, device=device)

    def kl(self, mu: Tensor, logvar: Tensor, log_prior: Tensor) -> Tensor:
        """The KL in closed form, one term per dimension, [..., L] -> [..., L]."""
        return gaussian_kl(mu, logvar)


def density_dtype(device: torch.device) -> torch.dtype:
    """The type in which mixtures compute: their rounding errors grow as components get narrower, so fp64 on the CPU.

    On GPUs, where fp64 is slow or missing, it is fp32.
    """
    return torch.float64 if device.type == "cpu" else torch.float32


class Mixture(Prior):
    """A mixture of C normal distributions with diagonal covariances."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the weights, [C]."""
        raise NotImplementedError

    def log_density(self, z: Tensor) -> Tensor:
        """log Σ_c w_c N(z; mu_c, exp(logvar_c)), [..., L] -> [...]."""
        # Σ_j (z_j − mu_j)² / var_j, multiplied out: two matrix products instead of [..., C, L] differences.
        dtype = density_dtype(z.device)
        mu, logvar, log_weight = (part.to(dtype) for part in self.components())
        with torch.autocast(z.device.type, enabled=False):
            precision = torch.exp(-logvar)
            constant = (mu.square() * precision + logvar).sum(-1) + self.latent_dim * math.log(2 * math.pi)
            distance = z.to(dtype).square() @ precision.T - 2 * z.to(dtype) @ (mu * precision).T + constant
        return torch.logsumexp(log_weight - 0.5 * distance, -1).to(z.dtype)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` samples, [n, L]."""
        mu, logvar, log_weight = (part.float() for part in self.components())
        chosen = torch.multinomial(log_weight.exp(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.latent_dim, generator=generator, device=device)
        return mu[chosen] + torch.exp(0.5 * logvar[chosen]) * noise


class GaussianMixture(Mixture):
    """A mixture whose means, variances and weights are learned."""

    def __init__(self, input_dim: int, params: ModelParams, encode: Encode) -> None:
        super().__init__(input_dim, params, encode)
        components = params.prior_components
        self.mu = nn.Parameter(torch.randn(components, self.latent_dim))
        self.logvar = nn.Parameter(torch.zeros(components, self.latent_dim))
        self.weight_logits = nn.Parameter(torch.zeros(components))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the weights, [C]."""
        return self.mu, self.logvar, self.weight_logits.log_softmax(-1)


class VampPrior(Mixture):
    """The mixture of the encoder's posteriors of C learned pseudo-images (Tomczak & Welling 2018, eq. 9)."""

    def __init__(self, input_dim: int, params: ModelParams, encode: Encode) -> None:
        super().__init__(input_dim, params, encode)
        self.encode = encode  # a bound method: a deep copy of the model copies it along
        self.pseudo_images = nn.Parameter(torch.rand(params.prior_components, input_dim))

    @torch.no_grad()
    def initialize_from_data(self, images: Tensor) -> None:
        """Take C of `images` as pseudo-images, evenly spaced; where they are fewer than C, each several times."""
        chosen = torch.arange(len(self.pseudo_images)) * len(images) // len(self.pseudo_images)
        self.pseudo_images.copy_(to_float(images[chosen]))

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the equal weights, [C]."""
        mu, logvar = self.encode(self.pseudo_images.clamp(0, 1))
        return mu, logvar, torch.full(mu.shape[:1], -math.log(len(mu)), device=mu.device)


class RealNVP(Prior):
    """N(0, I) seen through affine couplings, each pair with a random half of the dimensions and the other half.

    A flow as the prior makes up for the aggregate posterior's distance from N(0, I) (Chen et al. 2017; Xu et al. 2019).
    It is computed in fp32 under autocast.
    """

    def __init__(self, input_dim: int, params: ModelParams, encode: Encode) -> None:
        super().__init__(input_dim, params, encode)
        masks: list[Tensor] = []
        while len(masks) < params.prior_couplings:
            half = torch.randperm(self.latent_dim) < self.latent_dim / 2
            masks += [half.float(), 1 - half.float()]
        self.couplings = nn.ModuleList(Coupling(mask, params.prior_width) for mask in masks[: params.prior_couplings])

    def log_density(self, z: Tensor) -> Tensor:
        """log N(e; 0, I) + log |det de/dz| with e, the image of z under all couplings: [..., L] -> [...]."""
        with torch.autocast(z.device.type, enabled=False):
            e = z.to(torch.promote_types(z.dtype, torch.float32))
            log_determinant = zero = torch.zeros((), dtype=e.dtype, device=e.device)
            for coupling in self.couplings:
                e, change = coupling(e)
                log_determinant = log_determinant + change
            return normal_log_density(e, zero, zero) + log_determinant

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` samples, [n, L]."""
        z = torch.randn(n, self.latent_dim, generator=generator, device=device)
        with torch.autocast(device.type, enabled=False):
            for coupling in reversed(self.couplings):
                z = cast(Coupling, coupling).inverse(z)
        return z


class PriorByClass(nn.Module):
    """p(z|y) of a label y from any prior p(u): z = shift_y + scale_y · u, with a learned shift and scale of each class.

    With u ~ N(0, I), it is a normal distribution with a mean and a variance of each class (Sohn et al. 2015). The KL is
    that of the posterior of u to p(u): what is the same change of variable in both leaves it unchanged.
    """

    def __init__(self, classes: int, latent_dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(classes, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(classes, latent_dim))

    def forward(self, u: Tensor, labels: Tensor) -> Tensor:
        """u [..., L] and labels [...] -> z, [..., L]."""
        return self.shift[labels] + self.log_scale[labels].exp() * u

    def posterior_of_u(self, mu: Tensor, logvar: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of u, where z ~ N(mu, exp(logvar)), [..., L] each."""
        log_scale = self.log_scale[labels]
        return (mu - self.shift[labels]) * torch.exp(-log_scale), logvar - 2 * log_scale


PRIORS: dict[str, type[Prior]] = {
    "standard": StandardNormal,
    "gaussian_mixture": GaussianMixture,
    "vampprior": VampPrior,
    "realnvp": RealNVP,
}
