"""Checks of the terms of the objective: the ELBO, its gradient, the KL, the likelihood, importance weighting.

One side of each check is a function that the pipeline trains or evaluates with. The other side is Monte Carlo,
`torch.distributions`, or a model with an exact solution.

Shapes: N images or samples, D pixels, L latent dimensions, K importance samples. Nats, float64, fixed seeds.
"""

import math
from functools import cache

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl, importance_weighted_bound, normal_log_density
from vae.models.likelihoods import bernoulli_nll
from vae.models.vae import VAE
from vae.theory.check import Check, mean_check, normal
from vae.theory.linear import ZERO, LinearGaussian
from vae.training.objectives import weighted_kl


def small_model() -> tuple[LinearGaussian, Tensor]:
    """A model with five pixels and two latents, correlated under the exact posterior, and one image [1, 5]."""
    weight = torch.tensor([[1.0, 0.8], [0.5, 0.9], [-0.7, -0.3], [0.2, 0.6], [0.4, 0.1]], dtype=torch.float64)
    model = LinearGaussian(weight, normal(5, seed=2), variance=0.5)
    return model, normal(1, 2, seed=3) @ model.weight.T + model.bias + normal(1, 5, seed=4) * math.sqrt(model.variance)


def approximate_posterior(exact: MultivariateNormal, shift: float = 0.0) -> tuple[Tensor, Tensor, MultivariateNormal]:
    """An approximation q of the exact posterior: mean shifted, variances 1.5 times as large, no correlation.

    Returns its mean, its log-variance, and its distribution.
    """
    mu, logvar = exact.loc + shift, (1.5 * exact.covariance_matrix.diagonal(dim1=-2, dim2=-1)).log()
    return mu, logvar, MultivariateNormal(mu, torch.diag_embed(logvar.exp()))


# The evidence lower bound


def elbo_is_evidence_minus_gap() -> list[Check]:
    """ELBO = log p(x) − KL(q ‖ p(z|x)), for a q with the wrong mean, variances and correlation."""
    model, x = small_model()
    exact = model.posterior(x)
    mu, logvar, q = approximate_posterior(exact, shift=0.3)
    reference = (model.marginal().log_prob(x) - kl_divergence(q, exact)).item()
    z = mu + torch.exp(0.5 * logvar) * normal(100_000, 2, seed=5)
    samples = importance_weighted_bound((model.log_joint(x, z) - normal_log_density(z, mu, logvar))[:, None])
    return [
        Check("ELBO in closed form = log p(x) − KL(q ‖ p(z|x))", model.elbo(x, mu, logvar).item(), reference),
        mean_check("mean of log p(x,z) − log q(z|x) over z ~ q = the same", samples, reference),
    ]


def exact_posterior_leaves_no_gap() -> list[Check]:
    """With q = p(z|x), each sample of the bound equals log p(x): checked for the largest and smallest of 1,000."""
    model, x = small_model()
    exact = model.posterior(x)
    z = exact.loc + normal(1000, 2, seed=6) @ torch.linalg.cholesky(exact.covariance_matrix[0]).T
    bounds = model.log_joint(x, z) - exact.log_prob(z)
    evidence = model.marginal().log_prob(x).item()
    return [
        Check("q = p(z|x): largest of 1,000 samples of the bound = log p(x)", bounds.max().item(), evidence),
        Check("q = p(z|x): smallest of the 1,000 = log p(x)", bounds.min().item(), evidence),
    ]


# Reparameterization

MU = 0.5  # the mean of each latent


def gradient_samples(latents: int, samples: int) -> dict[str, Tensor]:
    """Single-sample estimates [samples] of the gradient of E ‖z‖², z ~ N(MU, I), for the mean's first entry.

    `reparameterized` differentiates through z. `score` is f(z) ∇log q(z) (Williams 1992). `score − baseline` first
    subtracts E f from f.
    """
    mean = torch.full((samples, latents), MU, dtype=torch.float64, requires_grad=True)
    logvar = torch.zeros_like(mean)
    noise = normal(samples, latents, seed=latents)
    z = VAE.from_params(ModelParams(hidden_dims=(1,)), seed=0).reparameterize(mean, logvar, noise)
    (through_z,) = torch.autograd.grad(z.square().sum(), mean)
    z = z.detach()
    (score,) = torch.autograd.grad(normal_log_density(z, mean, logvar).sum(), mean)
    value, baseline = z.square().sum(-1), latents * (MU**2 + 1)
    return {
        "reparameterized": through_z[:, 0],
        "score": value * score[:, 0],
        "score − baseline": (value - baseline) * score[:, 0],
    }


def gradient_variances(latents: int) -> dict[str, float]:
    """The exact variances of these estimates, from the moments of the normal distribution up to the sixth."""
    others = (latents - 1) * (MU**2 + 1)  # mean of the other latents' part of ‖z‖²
    spread = (latents - 1) * (4 * MU**2 + 2)  # variance of that part
    fourth = MU**4 + 18 * MU**2 + 15  # E z⁴ε² with z = MU + ε
    second = MU**2 + 3  # E z²ε²

    def of_score(shift: float) -> float:
        return fourth + 2 * shift * second + shift**2 + spread - (2 * MU) ** 2

    return {
        "reparameterized": 4.0,
        "score": of_score(others),
        "score − baseline": of_score(others - latents * (MU**2 + 1)),
    }


def gradients_agree_in_mean() -> list[Check]:
    """All three estimators have the mean 2 MU, and the variances of `gradient_variances`."""
    gradients, variances = gradient_samples(16, 100_000), gradient_variances(16)
    means = [mean_check(f"{name}: mean gradient, 16 latents", g, 1.0) for name, g in gradients.items()]
    spreads = [
        mean_check(f"{name}: variance of one sample", (g - 1.0).square(), variances[name])
        for name, g in gradients.items()
    ]
    return means + spreads


def gradient_variance_by_latents() -> pd.DataFrame:
    """Variance of a single-sample gradient by the number of latents, `sampled` and `exact` for each estimator."""
    rows = []
    for latents in (1, 4, 16, 64):
        row: dict[str, float] = {"latents": latents}
        for name, gradients in gradient_samples(latents, 50_000).items():
            row |= {f"{name}, sampled": gradients.var().item(), f"{name}, exact": gradient_variances(latents)[name]}
        rows.append(row)
    return pd.DataFrame(rows)


# The KL in closed form


def kl_by_sampling() -> list[Check]:
    """KL(N(mu, sigma²) ‖ N(0, 1)) in closed form = the mean of log q(z) − log p(z) over z ~ q."""
    checks = []
    for seed, (mean, sigma) in enumerate([(0.0, 1.0), (1.0, 0.5), (-2.0, 0.1), (0.5, 2.0)]):
        mu = torch.full((1,), mean, dtype=torch.float64)
        logvar = torch.full((1,), 2 * math.log(sigma), dtype=torch.float64)
        z = mu + sigma * normal(100_000, 1, seed=20 + seed)
        log_ratio = normal_log_density(z, mu, logvar) - normal_log_density(z, ZERO, ZERO)
        statement = f"KL(N({mean:g}, {sigma:g}²) ‖ N(0, 1)): sampled = closed form".replace("-", "−")
        checks.append(mean_check(statement, log_ratio, gaussian_kl(mu, logvar).item()))
    return checks


# The Bernoulli likelihood


def bernoulli_is_cross_entropy() -> list[Check]:
    """−log p(x|z) of binary pixels is the binary cross-entropy, summed over pixels."""
    logits, x = 2 * normal(784), (normal(784, seed=1) > 0).double()
    reference = binary_cross_entropy_with_logits(logits, x, reduction="sum").item()
    return [Check("784 pixels: NLL = binary cross-entropy, summed", bernoulli_nll(logits, x).item(), reference)]


def grey_is_no_likelihood() -> list[Check]:
    """The cross-entropy of a grey pixel: not a density, never zero, the mean NLL of binarized pixels.

    The integral of exp(−cross-entropy) over [0, 1] is (2p − 1) / logit(p) (Loaiza-Ganem & Cunningham 2019).
    """
    probability, grey = 0.9, 0.3
    logit = torch.tensor([math.log(probability / (1 - probability))], dtype=torch.float64)
    values = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mass = torch.trapezoid(torch.exp(-bernoulli_nll(logit.expand(len(values), 1), values[:, None])), values).item()
    target = torch.tensor([grey], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    binarized = torch.bernoulli(torch.full((100_000, 1), grey, dtype=torch.float64), generator=generator)
    return [
        Check(
            f"p = {probability:g}: integral of exp(−cross-entropy) over grey x in [0, 1] = (2p − 1) / logit p",
            mass,
            (2 * probability - 1) / logit.item(),
        ),
        Check(
            f"smallest cross-entropy of a pixel of grey {grey:g} = its entropy, not 0",
            bernoulli_nll(torch.logit(target), target).item(),
            Bernoulli(target).entropy().item(),
        ),
        mean_check(
            f"grey {grey:g}, p = {probability:g}: mean NLL of binarized pixels = cross-entropy of the grey pixel",
            bernoulli_nll(logit.expand_as(binarized), binarized),
            bernoulli_nll(logit, target).item(),
        ),
    ]


# β


def mean_over_pixels_is_beta_784() -> list[Check]:
    """A mean over 784 pixels plus a summed KL has the gradient of β = 784, divided by 784."""
    model = VAE.from_params(ModelParams(hidden_dims=(32,), latent_dim=4, prior="standard"), seed=0)
    x = (normal(16, 784) > 0).float()
    bound = model(x, normal(16, 1, 4, seed=1).float())

    def gradient(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        return torch.cat([part.flatten() for part in gradients]).double()

    mean = gradient((bound.nll / 784).mean() + weighted_kl(bound.kl, 1.0))
    scaled = gradient(bound.nll.mean() + weighted_kl(bound.kl, 784.0))
    cosine = torch.cosine_similarity(mean, scaled, 0).item()
    ratio = (scaled.norm() / mean.norm()).item()
    return [
        Check("mean over pixels against β = 784: cosine of the gradients", cosine, 1.0, tolerance=1e-5),
        Check("mean over pixels against β = 784: ratio of their lengths", ratio, 784.0, tolerance=1e-2),
    ]


# Importance weighting


@cache
def importance_gap() -> tuple[pd.DataFrame, float, float]:
    """The gap between log p(x) and the bound by K, its exact value at K = 1, and the limit of K · gap.

    With r the average weight divided by p(x), the gap is E[−log r]. Since E r = 1, this is E[r − 1 − log r], whose
    samples are never negative and have a smaller variance. The limit is χ²(p(z|x) ‖ q) / 2 (Domke & Sheldon 2018).
    """
    model, x = small_model()
    exact = model.posterior(x)
    mu, logvar, q = approximate_posterior(exact)
    z = mu + torch.exp(0.5 * logvar) * normal(2**19, 2, seed=7)
    log_weights = model.log_joint(x, z) - normal_log_density(z, mu, logvar)
    evidence = model.marginal().log_prob(x)
    rows = []
    for k in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        log_ratio = importance_weighted_bound(log_weights.view(-1, k)) - evidence
        gaps = log_ratio.exp() - 1 - log_ratio
        gap, error = gaps.mean().item(), gaps.std().item() / math.sqrt(len(gaps))
        rows.append({"K": k, "gap": gap, "s.e. of the gap": error, "K · gap": k * gap})
    both = 2 * exact.precision_matrix - q.precision_matrix
    log_chi = exact.precision_matrix.logdet() - 0.5 * (q.precision_matrix.logdet() + both.logdet())
    return pd.DataFrame(rows), kl_divergence(q, exact).item(), 0.5 * (log_chi.exp().item() - 1)


def gap_shrinks_with_samples() -> list[Check]:
    """The gap is KL(q ‖ p(z|x)) at K = 1, falls at every doubling of K, and approaches χ²/2K."""
    table, at_one, limit = importance_gap()
    first, last = table.iloc[0], table.iloc[-1]
    k, error = int(last["K"]), last["K"] * last["s.e. of the gap"]
    falls = int((table["gap"].diff()[1:] < 0).sum())
    limit_statement = f"K = {k}: K · gap = χ²(p(z|x) ‖ q) / 2, up to order 1/K"
    return [
        Check("K = 1: gap = KL(q ‖ p(z|x))", first["gap"], at_one, first["s.e. of the gap"]),
        Check(f"doublings of K up to {k} at which the gap falls", falls, len(table) - 1),
        Check(limit_statement, last["K · gap"], limit, error, tolerance=limit / 50),
    ]
