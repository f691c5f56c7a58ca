"""Models with an exact solution: the linear-Gaussian model, and the optimum of a linear β-VAE.

Shapes: N images, D pixels, L latent dimensions. All quantities are in nats and float64.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae.models.distributions import gaussian_kl, normal_log_density
from vae.theory.check import normal
from vae.training.objectives import weighted_kl

ZERO = torch.zeros((), dtype=torch.float64)

# The linear VAE: variances of its data's principal components, number of latents, and decoder variance σ².
EIGENVALUES = (4.0, 2.0, 1.0, 0.5, 0.1)
LATENTS = 4
NOISE = 0.2


@dataclass(frozen=True)
class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + b, σ²I), with exact evidence and posterior (Tipping & Bishop 1999)."""

    weight: Tensor  # W [D, L]
    bias: Tensor  # b [D]
    variance: float  # σ²

    def marginal(self) -> MultivariateNormal:
        """p(x) = N(b, WWᵀ + σ²I)."""
        noise = self.variance * torch.eye(len(self.bias), dtype=torch.float64)
        return MultivariateNormal(self.bias, self.weight @ self.weight.T + noise)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z|x) = N(M⁻¹Wᵀ(x − b), σ²M⁻¹) with M = WᵀW + σ²I (eq. 7 of the paper), for images [..., D]."""
        noise = self.variance * torch.eye(self.weight.shape[1], dtype=torch.float64)
        inverse = torch.linalg.inv(self.weight.T @ self.weight + noise)
        return MultivariateNormal((x - self.bias) @ self.weight @ inverse, self.variance * inverse)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z): [..., D], [..., L] -> [...]."""
        log_variance = torch.tensor(math.log(self.variance), dtype=torch.float64)
        log_likelihood = normal_log_density(x, z @ self.weight.T + self.bias, log_variance)
        return log_likelihood + normal_log_density(z, ZERO, ZERO)

    def expected_log_likelihood(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """E log p(x|z) for z ~ N(mu, exp(logvar)) in closed form: [N, D], [N, L], [N or 1, L] -> [N]."""
        residual = x - self.bias - mu @ self.weight.T
        error = residual.square().sum(-1) + logvar.exp() @ self.weight.square().sum(0)
        return -0.5 * (error / self.variance + x.shape[-1] * math.log(2 * math.pi * self.variance))

    def elbo(self, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
        """E log p(x|z) − KL(q ‖ p(z)) in closed form, shape [N]."""
        return self.expected_log_likelihood(x, mu, logvar) - gaussian_kl(mu, logvar).sum(-1)


@dataclass(frozen=True)
class LinearVAE:
    """Averages over images of a linear VAE: KL of each latent (sorted, largest first), squared error, NLLs."""

    kl: tuple[float, ...]
    squared_error: float
    distortion: float  # −E log p(x|z)
    nll: float  # −log p(x)

    @property
    def rate(self) -> float:
        """The KL, summed over latents."""
        return sum(self.kl)


def solve_linear_vae(beta: float) -> LinearVAE:
    """The minimum of −E log p(x|z) + β KL over linear encoders and decoders, for data with EIGENVALUES.

    It is probabilistic PCA with noise θ = βσ². A component of variance λ > θ has the KL ½ log(λ/θ) and leaves the
    error θ; a component with λ ≤ θ collapses and leaves λ. docs/theory.md derives it; Lucas et al. 2019 for β = 1.
    """
    threshold = beta * NOISE
    used = [max(value, threshold) for value in EIGENVALUES[:LATENTS]]
    squared_error = sum(min(value, threshold) for value in EIGENVALUES[:LATENTS]) + sum(EIGENVALUES[LATENTS:])
    pixels = len(EIGENVALUES)
    distortion = 0.5 * (squared_error / NOISE + pixels * math.log(2 * math.pi * NOISE))
    modelled = [value - threshold + NOISE for value in used] + [NOISE] * (pixels - LATENTS)
    nll = 0.5 * sum(math.log(2 * math.pi * m) + v / m for v, m in zip(EIGENVALUES, modelled, strict=True))
    return LinearVAE(tuple(0.5 * math.log(value / threshold) for value in used), squared_error, distortion, nll)


def linear_data(eigenvalues: tuple[float, ...]) -> Tensor:
    """32 centred images [32, D] whose covariance has exactly these eigenvalues, in a rotated basis."""
    images, pixels = 32, len(eigenvalues)
    noise = normal(images, pixels, seed=8)
    scores = torch.linalg.qr(noise - noise.mean(0)).Q * math.sqrt(images)
    rotation = torch.linalg.qr(normal(pixels, pixels, seed=9)).Q
    data: Tensor = scores * torch.tensor(eigenvalues, dtype=torch.float64).sqrt() @ rotation
    return data


@cache
def fit_linear_vae(
    beta: float,
    latents: int = LATENTS,
    variance: float = NOISE,
    free_bits: float = 0.0,
    eigenvalues: tuple[float, ...] = EIGENVALUES,
) -> LinearVAE:
    """Train a linear VAE from random weights on the library's loss; compare with `solve_linear_vae`."""
    x = linear_data(eigenvalues)
    pixels = x.shape[1]

    def terms(parameters: Tensor) -> tuple[LinearGaussian, Tensor, Tensor]:
        decoder, encoder, logvar = parameters.view(-1, latents).split([pixels, pixels, 1])
        model = LinearGaussian(decoder, torch.zeros(pixels, dtype=torch.float64), variance)
        return model, gaussian_kl(x @ encoder, logvar), -model.expected_log_likelihood(x, x @ encoder, logvar).mean()

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        parameters = torch.from_numpy(values).requires_grad_()
        _, kl, distortion = terms(parameters)
        value = distortion + weighted_kl(kl, beta, free_bits)
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy()

    weights = [0.3 * normal(pixels, latents, seed=10), 0.3 * normal(pixels, latents, seed=11)]
    start = torch.cat([*weights, torch.zeros(1, latents, dtype=torch.float64)]).flatten().numpy()
    if free_bits:  # they put a kink into the loss, at which a line search along the gradient stops
        optimum = minimize(lambda values: loss(values)[0], start, method="Nelder-Mead", tol=1e-9).x
    else:
        optimum = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    model, kl, distortion = terms(torch.from_numpy(optimum))
    squared_error = 2 * variance * distortion.item() - variance * pixels * math.log(2 * math.pi * variance)
    nll = -model.marginal().log_prob(x).mean().item()
    return LinearVAE(tuple(kl.mean(0).sort(descending=True).values.tolist()), squared_error, distortion.item(), nll)
