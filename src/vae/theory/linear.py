"""Models of which everything is known: the linear-Gaussian one, and the linear β-VAE's optimum.

Shapes: N images, D pixels, L latent dimensions. Nats, float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.models.distributions import gaussian_kl, normal_log_density
from vae.theory.check import draws
from vae.training.objectives import weighted_kl

ZERO = torch.zeros((), dtype=torch.float64)

# Variances of the principal components of the linear VAE's data; its latents, and its decoder's variance σ².
EIGENVALUES = (4.0, 2.0, 1.0, 0.5, 0.1)
LATENTS = 4
NOISE = 0.2


@dataclass(frozen=True)
class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, σ²I): evidence and posterior are known (Tipping & Bishop 1999)."""

    weight: Tensor  # W [D, L]
    bias: Tensor  # b [D]
    variance: float  # σ²

    def marginal(self) -> MultivariateNormal:
        """p(x) = N(b, WWᵀ + σ²I)."""
        noise = self.variance * torch.eye(len(self.bias), dtype=torch.float64)
        return MultivariateNormal(self.bias, self.weight @ self.weight.T + noise)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z|x) = N(M⁻¹Wᵀ(x − b), σ²M⁻¹) with M = WᵀW + σ²I, of images [..., D] (their eq. 7)."""
        inverse = torch.linalg.inv(
            self.weight.T @ self.weight + self.variance * torch.eye(self.weight.shape[1], dtype=torch.float64)
        )
        return MultivariateNormal((x - self.bias) @ self.weight @ inverse, self.variance * inverse)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): [..., D], [..., L] -> [...]."""
        log_variance = torch.tensor(math.log(self.variance), dtype=torch.float64)
        log_likelihood = normal_log_density(x, z @ self.weight.T + self.bias, log_variance)
        return log_likelihood + normal_log_density(z, ZERO, ZERO)

    def expected_log_likelihood(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """E log p(x|z) over z ~ N(mu, exp(logvar)), in closed form: [N, D], [N, L], [N or 1, L] -> [N]."""
        residual = x - self.bias - mu @ self.weight.T
        error = residual.square().sum(-1) + logvar.exp() @ self.weight.square().sum(0)
        return -0.5 * (error / self.variance + x.shape[-1] * math.log(2 * math.pi * self.variance))

    def elbo(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """E log p(x|z) − KL(q ‖ p(z)) in closed form: [N]."""
        return self.expected_log_likelihood(x, mu, logvar) - gaussian_kl(mu, logvar).sum(-1)


@dataclass(frozen=True)
class LinearVAE:
    """What a linear VAE came to: the KL of each latent, largest first [L]; squared error, −E log p(x|z), −log p(x)."""

    kl: list[float]
    squared_error: float
    distortion: float
    nll: float

    @property
    def rate(self) -> float:
        """The KL, summed over latents."""
        return sum(self.kl)


def solve_linear_vae(beta: float, latents: int = LATENTS, variance: float = NOISE) -> LinearVAE:
    """The optimum of −E log p(x|z) + β KL over linear encoders and decoders, for data of covariance EIGENVALUES.

    With θ = βσ² it is probabilistic PCA of noise θ: a component of variance λ > θ costs ½ log(λ/θ) and leaves the
    error θ, one of λ ≤ θ collapses and leaves λ (derived in docs/theory.md; β = 1: Lucas et al. 2019).
    """
    threshold = beta * variance
    kept = [max(value, threshold) for value in EIGENVALUES[:latents]]
    kl = [0.5 * math.log(value / threshold) for value in kept]
    squared_error = sum(min(value, threshold) for value in EIGENVALUES[:latents]) + sum(EIGENVALUES[latents:])
    pixels = len(EIGENVALUES)
    distortion = 0.5 * (squared_error / variance + pixels * math.log(2 * math.pi * variance))
    modelled = [value - threshold + variance for value in kept] + [variance] * (pixels - latents)
    nll = 0.5 * sum(math.log(2 * math.pi * m) + v / m for v, m in zip(EIGENVALUES, modelled, strict=True))
    return LinearVAE(kl, squared_error, distortion, nll)


def linear_data(eigenvalues: Sequence[float] = EIGENVALUES, images: int = 32) -> Tensor:
    """Centred images [N, D] whose covariance has exactly these eigenvalues, along no axis."""
    pixels = len(eigenvalues)
    noise = draws(images, pixels, seed=8)
    scores = torch.linalg.qr(noise - noise.mean(0)).Q * math.sqrt(images)
    rotation = torch.linalg.qr(draws(pixels, pixels, seed=9)).Q
    data: Tensor = scores * torch.tensor(eigenvalues, dtype=torch.float64).sqrt() @ rotation
    return data


def fit_linear_vae(
    x: Tensor, beta: float, latents: int = LATENTS, variance: float = NOISE, free_bits: float = 0.0
) -> LinearVAE:
    """The same optimum by gradient descent on the project's loss, from random weights."""
    decoder = (0.3 * draws(x.shape[1], latents, seed=10)).requires_grad_()
    encoder = (0.3 * draws(x.shape[1], latents, seed=11)).requires_grad_()
    logvar = torch.zeros(1, latents, dtype=torch.float64, requires_grad=True)
    model = LinearGaussian(decoder, torch.zeros(x.shape[1], dtype=torch.float64), variance)

    def loss() -> Tensor:
        mu = x @ encoder
        distortion = -model.expected_log_likelihood(x, mu, logvar).mean()
        return distortion + weighted_kl(gaussian_kl(mu, logvar), beta, free_bits)

    _minimize(loss, [decoder, encoder, logvar], kink=free_bits > 0)
    with torch.no_grad():
        mu = x @ encoder
        kl = gaussian_kl(mu, logvar).mean(0).sort(descending=True).values.tolist()
        distortion = -model.expected_log_likelihood(x, mu, logvar).mean().item()
        nll = -model.marginal().log_prob(x).mean().item()
    squared_error = 2 * variance * distortion - variance * x.shape[1] * math.log(2 * math.pi * variance)
    return LinearVAE(kl, squared_error, distortion, nll)


def _minimize(loss: Callable[[], Tensor], parameters: list[Tensor], kink: bool, steps: int = 1500) -> None:
    """L-BFGS; or Adam with a falling rate, which slides along the kink of free bits where a line search stops."""
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        parameters, max_iter=3000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )
    if kink:
        optimizer = torch.optim.Adam(parameters, lr=0.03)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=2)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    for _ in range(steps if kink else 1):
        optimizer.step(closure)
        schedule.step()
