"""Priors p(z): what the KL pulls the posterior towards, and what new images are drawn from.

A new prior is one class here, with a name in `_flat_prior` and in `config.PriorName`.

Shapes: ... any leading dimensions, D pixels, L latent dimensions, T those of a second layer, C components. Densities
in nats. All take `noise` [..., noise_dim]: the standard normal draws by which a prior that has latents of its own
estimates its density, [..., 0] for one that hasn't.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae.config import ModelParams
from vae.data import to_float
from vae.networks import dense_stack
from vae.objective import gaussian_kl, normal_log_density

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # images [B, D] -> a posterior's mean and log-variance


class Prior(nn.Module):
    """A distribution over the latents of which only density and draws are known: the KL is estimated from a draw."""

    noise_dim = 0

    def log_density(self, z: Tensor, noise: Tensor) -> Tensor:
        """log p(z), [..., L] -> [...]; or, where that is intractable, a lower bound's estimate from `noise`."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        raise NotImplementedError

    def log_ratio(self, mu: Tensor, logvar: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """log q(z|x) − log p(z) at draws `z` of q(z|x) = N(mu, exp(logvar)), [..., L] -> [...]: its mean is the KL."""
        return normal_log_density(z, mu, logvar) - self.log_density(z, noise)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """KL(q(z|x) ‖ p) as terms that add up to it, [..., L] -> [..., terms].

        Here a single term, estimated from the draws `z`: `log_ratio`.
        """
        return self.log_ratio(mu, logvar, z, noise).unsqueeze(-1)


class StandardNormal(Prior):
    """N(0, 1) in every dimension (Kingma & Welling 2014)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def log_density(self, z: Tensor, noise: Tensor) -> Tensor:
        """log N(z; 0, 1), [..., L] -> [...]."""
        zero = torch.zeros((), device=z.device)
        return normal_log_density(z, zero, zero)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        return torch.randn(n, self.latent_dim, generator=generator, device=device)

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """The KL in closed form, a term for each dimension, [..., L] -> [..., L]."""
        return gaussian_kl(mu, logvar)


class Mixture(Prior):
    """A mixture of C normal distributions with diagonal covariances."""

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances, [C, L] each, and the logarithms of the weights, [C]."""
        raise NotImplementedError

    def log_density(self, z: Tensor, noise: Tensor) -> Tensor:
        """log Σ_c w_c N(z; mu_c, exp(logvar_c)), [..., L] -> [...]."""
        # Σ_j (z_j − mu_j)² / var_j, multiplied out: two matrix products instead of [..., C, L] differences, which
        # narrow components survive in double precision only (TF32 and bf16 don't touch that; MPS hasn't got it).
        wide = torch.float32 if z.device.type == "mps" else torch.float64
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


class Hierarchical(Prior):
    """A second stochastic layer: p(z) = ∫ p(z|y) p(y) dy, with latents y [T] and a posterior q(y|z) of their own.

    The two-layer model of Burda et al. 2016, seen from below: its q(y|z) is trained with everything else, and
    log p(z) ≥ E_q(y|z) [log p(z|y) + log p(y) − log q(y|z)]. In importance weights the estimate from one y is exact:
    they are then those of (z, y). `top` is p(y), and may be a mixture.
    """

    def __init__(self, encode: Encode, input_dim: int, params: ModelParams) -> None:
        super().__init__()
        self.noise_dim = params.top_latent_dim or 0
        self.lower_encode = encode
        widths = params.top_hidden_dims
        self.up = self._network(params.latent_dim, widths, self.noise_dim, params)
        self.down = self._network(self.noise_dim, tuple(reversed(widths)), params.latent_dim, params)
        self.top = _flat_prior(self.encode, input_dim, self.noise_dim, params)

    @staticmethod
    def _network(n_in: int, widths: tuple[int, ...], n_out: int, params: ModelParams) -> nn.Sequential:
        hidden = dense_stack([n_in, *widths], params.activation, params.residual)
        return nn.Sequential(*hidden, nn.Linear(widths[-1], 2 * n_out))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, D] -> mean and log-variance of q(y|z) at the mean z of q(z|x), [B, T] each."""
        return self.above(self.lower_encode(x)[0])

    def above(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., L] -> mean and log-variance of q(y|z), [..., T] each."""
        mu, logvar = self.up(z).float().chunk(2, -1)
        return mu, logvar

    def below(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y [..., T] -> mean and log-variance of p(z|y), [..., L] each."""
        mu, logvar = self.down(y).float().chunk(2, -1)
        return mu, logvar

    def log_density(self, z: Tensor, noise: Tensor) -> Tensor:
        """log p(z|y) + log p(y) − log q(y|z) at one draw y of q(y|z), [..., L] -> [...]."""
        mu, logvar = self.above(z)
        y = mu + torch.exp(0.5 * logvar) * noise
        ratio = normal_log_density(y, mu, logvar) - self.top.log_density(y, noise[..., :0])
        return normal_log_density(z, *self.below(y)) - ratio

    def kl(self, mu: Tensor, logvar: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        """log q(z) − log p(z|y) + KL(q(y|z) ‖ p(y)) at draws z and y, [..., L] -> [..., 1]: an upper bound's estimate.

        The last term is exact where the top prior has it in closed form.
        """
        top_mu, top_logvar = self.above(z)
        y = top_mu + torch.exp(0.5 * top_logvar) * noise
        top_kl = self.top.kl(top_mu, top_logvar, y, noise[..., :0]).sum(-1)
        ratio = normal_log_density(z, mu, logvar) - normal_log_density(z, *self.below(y))
        return (ratio + top_kl).unsqueeze(-1)

    def sample(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """`n` draws, [n, L]."""
        mu, logvar = self.below(self.top.sample(n, generator, device))
        return mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=generator, device=device)


def make_prior(encode: Encode, input_dim: int, params: ModelParams) -> Prior:
    """The prior that `params` describe; `encode` is a bound method of the model, and is copied along with it."""
    if params.top_latent_dim:
        return Hierarchical(encode, input_dim, params)
    return _flat_prior(encode, input_dim, params.latent_dim, params)


def _flat_prior(encode: Encode, input_dim: int, latent_dim: int, params: ModelParams) -> Prior:
    match params.prior:
        case "standard":
            return StandardNormal(latent_dim)
        case "gaussian_mixture":
            return GaussianMixture(latent_dim, params.prior_components)
        case "vampprior":
            return VampPrior(encode, input_dim, params.prior_components)
