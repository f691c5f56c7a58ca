"""Statements on the objective's terms, a function each: bound, gradient, KL, likelihood, importance weighting.

One side of a check is a function that the pipeline trains or evaluates with; the other is Monte Carlo,
`torch.distributions`, or a model of which everything is known.

Shapes: N images or samples, D pixels, L latent dimensions, K importance samples. Nats, float64, fixed seeds.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from vae.config import ModelParams
from vae.models.distributions import gaussian_kl, importance_weighted_bound, normal_log_density
from vae.models.likelihoods import bernoulli_nll
from vae.models.vae import VAE
from vae.theory.check import Check, by_sampling, draws
from vae.theory.linear import ZERO, LinearGaussian
from vae.training.objectives import weighted_kl


def small_model() -> tuple[LinearGaussian, Tensor]:
    """Five pixels, two latents whose exact posterior is correlated, so that no diagonal q can be right; an image."""
    weight = torch.tensor([[1.0, 0.8], [0.5, 0.9], [-0.7, -0.3], [0.2, 0.6], [0.4, 0.1]], dtype=torch.float64)
    model = LinearGaussian(weight, draws(5, seed=2), variance=0.5)
    return model, draws(1, 2, seed=3) @ model.weight.T + model.bias + draws(1, 5, seed=4) * math.sqrt(model.variance)


# --- the evidence lower bound


def elbo_is_evidence_minus_gap() -> list[Check]:
    """ELBO = log p(x) − KL(q ‖ p(z|x)), for a q that is wrong in its mean, its variances and its correlation."""
    model, x = small_model()
    exact = model.posterior(x)
    mu, logvar = exact.loc + 0.3, (1.5 * exact.covariance_matrix.diagonal(dim1=-2, dim2=-1)).log()
    gap = kl_divergence(MultivariateNormal(mu, torch.diag_embed(logvar.exp())), exact)
    expected = (model.marginal().log_prob(x) - gap).item()
    z = mu + torch.exp(0.5 * logvar) * draws(100_000, 2, seed=5)
    samples = importance_weighted_bound((model.log_joint(x, z) - normal_log_density(z, mu, logvar))[:, None])
    return [
        Check("ELBO in closed form = log p(x) − KL(q ‖ p(z|x))", model.elbo(x, mu, logvar).item(), expected),
        by_sampling("mean of log p(x,z) − log q(z|x) over z ~ q = the same", samples, expected),
    ]


def exact_posterior_leaves_no_gap() -> list[Check]:
    """With q = p(z|x) every single sample gives log p(x): the largest and the smallest of 1,000 are shown."""
    model, x = small_model()
    exact = model.posterior(x)
    z = exact.loc + draws(1000, 2, seed=6) @ torch.linalg.cholesky(exact.covariance_matrix[0]).T
    weights = model.log_joint(x, z) - exact.log_prob(z)
    evidence = model.marginal().log_prob(x).item()
    return [
        Check("q = p(z|x): largest of 1,000 samples of the bound = log p(x)", weights.max().item(), evidence),
        Check("q = p(z|x): smallest of the 1,000 = log p(x)", weights.min().item(), evidence),
    ]


def elbo_by_posterior(offsets: Sequence[float] = (0.0, 0.5, 1.0)) -> tuple[pd.DataFrame, float]:
    """The ELBO of one image under q of other means and widths than the exact posterior's, and log p(x) itself.

    `offset` and `width` are in standard deviations of the exact posterior.
    """
    model = LinearGaussian(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), 0.5)
    x = torch.ones(1, 1, dtype=torch.float64)
    exact = model.posterior(x)
    deviation = exact.covariance_matrix[0].sqrt()
    widths = torch.logspace(-0.8, 0.6, 60, dtype=torch.float64)
    logvar = 2 * (widths[:, None] * deviation).log()
    rows = [
        pd.DataFrame({"offset": offset, "width": widths, "elbo": model.elbo(x, exact.loc + offset * deviation, logvar)})
        for offset in offsets
    ]
    return pd.concat(rows, ignore_index=True), model.marginal().log_prob(x).item()


# --- reparameterization


def gradient_samples(latents: int, samples: int, mu: float = 0.5, sigma: float = 1.0) -> dict[str, Tensor]:
    """Single-sample gradients of E ‖z‖² over z ~ N(mu, sigma² I) for the mean's first entry: [samples] each.

    `reparameterized` differentiates through z; `score` is f(z) ∇log q(z) (Williams 1992); `score − baseline`
    takes E f from f first.
    """
    mean = torch.full((samples, latents), mu, dtype=torch.float64, requires_grad=True)
    logvar = torch.full_like(mean, 2 * math.log(sigma), requires_grad=False)
    noise = draws(samples, latents, seed=latents)
    z = VAE.from_params(ModelParams(hidden_dims=(1,)), seed=0).reparameterize(mean, logvar, noise)
    (through_z,) = torch.autograd.grad(z.square().sum(), mean)
    z = z.detach()
    (score,) = torch.autograd.grad(normal_log_density(z, mean, logvar).sum(), mean)
    value, baseline = z.square().sum(-1), latents * (mu**2 + sigma**2)
    return {
        "reparameterized": through_z[:, 0],
        "score": value * score[:, 0],
        "score − baseline": (value - baseline) * score[:, 0],
    }


def gradient_variances(latents: int, mu: float = 0.5, sigma: float = 1.0) -> dict[str, float]:
    """The variances of those gradients, exactly, from a normal variable's moments up to the sixth."""
    of_others = (latents - 1) * (mu**2 + sigma**2)  # mean of the other latents' share of ‖z‖²
    spread = (latents - 1) * (4 * mu**2 * sigma**2 + 2 * sigma**4)  # its variance
    fourth = mu**4 + 18 * mu**2 * sigma**2 + 15 * sigma**4  # E z⁴ε² with z = mu + sigma ε
    second = mu**2 + 3 * sigma**2  # E z²ε²

    def of_score(shift: float) -> float:
        return (fourth + 2 * shift * second + shift**2 + spread) / sigma**2 - (2 * mu) ** 2

    return {
        "reparameterized": 4 * sigma**2,
        "score": of_score(of_others),
        "score − baseline": of_score(of_others - latents * (mu**2 + sigma**2)),
    }


def gradients_agree_in_mean(latents: int = 16, samples: int = 100_000) -> list[Check]:
    """All three estimators are unbiased: their mean is the exact gradient 2 mu; and their variances are as derived."""
    gradients, variances = gradient_samples(latents, samples), gradient_variances(latents)
    means = [by_sampling(f"{name}: mean gradient, {latents} latents", g, 1.0) for name, g in gradients.items()]
    spread = [
        by_sampling(f"{name}: variance of one sample", (g - 1.0).square(), variances[name])
        for name, g in gradients.items()
    ]
    return means + spread


def gradient_variance_by_latents(sizes: Sequence[int] = (1, 4, 16, 64), samples: int = 50_000) -> pd.DataFrame:
    """Variance of a single-sample gradient by the number of latents: `measured` and `exact` for each estimator."""
    rows = []
    for latents in sizes:
        exact = gradient_variances(latents)
        for name, gradients in gradient_samples(latents, samples).items():
            rows.append((latents, name, gradients.var().item(), exact[name]))
    return pd.DataFrame(rows, columns=["latents", "estimator", "measured", "exact"])


# --- the KL in closed form


def kl_by_sampling(
    cases: Sequence[tuple[float, float]] = ((0.0, 1.0), (1.0, 0.5), (-2.0, 0.1), (0.5, 2.0)), samples: int = 100_000
) -> list[Check]:
    """KL(N(mu, sigma²) ‖ N(0, 1)) in closed form = the mean of log q(z) − log p(z) over z ~ q."""
    checks = []
    for seed, (mean, sigma) in enumerate(cases):
        mu = torch.full((1,), mean, dtype=torch.float64)
        logvar = torch.full((1,), 2 * math.log(sigma), dtype=torch.float64)
        z = mu + sigma * draws(samples, 1, seed=20 + seed)
        log_ratio = normal_log_density(z, mu, logvar) - normal_log_density(z, ZERO, ZERO)
        statement = f"KL(N({mean:g}, {sigma:g}²) ‖ N(0, 1)): sampled = closed form".replace("-", "−")
        checks.append(by_sampling(statement, log_ratio, gaussian_kl(mu, logvar).item()))
    return checks


# --- the Bernoulli likelihood


def bernoulli_is_cross_entropy() -> list[Check]:
    """−log p(x|z) of binary pixels is binary cross-entropy, summed over pixels."""
    logits, x = 2 * draws(784), (draws(784, seed=1) > 0).double()
    expected = binary_cross_entropy_with_logits(logits, x, reduction="sum").item()
    statement = "784 pixels: bernoulli_nll = binary cross-entropy, summed"
    return [Check(statement, bernoulli_nll(logits, x).item(), expected)]


def grey_is_no_likelihood(probability: float = 0.9, grey: float = 0.3) -> list[Check]:
    """Three facts on exp(−cross-entropy) of a grey pixel: no density, never free, an average over binarizations.

    Its integral over [0, 1] is (2p − 1) / logit(p), below 1: the constant that Loaiza-Ganem & Cunningham 2019 add.
    """
    logit = torch.tensor([math.log(probability / (1 - probability))], dtype=torch.float64)
    values = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mass = torch.trapezoid(torch.exp(-bernoulli_nll(logit.expand(len(values), 1), values[:, None])), values).item()
    best = torch.logit(torch.tensor([grey], dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    binarized = torch.bernoulli(torch.full((100_000, 1), grey, dtype=torch.float64), generator=generator)
    target = torch.tensor([grey], dtype=torch.float64)
    return [
        Check(
            f"p = {probability:g}: integral of exp(−cross-entropy) over grey x in [0, 1] = (2p − 1) / logit p",
            mass,
            (2 * probability - 1) / logit.item(),
        ),
        Check(
            f"lowest cross-entropy that a pixel of grey {grey:g} allows = its entropy, not 0",
            bernoulli_nll(best, target).item(),
            Bernoulli(target).entropy().item(),
        ),
        by_sampling(
            f"grey {grey:g}, p = {probability:g}: mean NLL of binarized pixels = cross-entropy of the grey one",
            bernoulli_nll(logit.expand_as(binarized), binarized),
            bernoulli_nll(logit, target).item(),
        ),
    ]


# --- β


def mean_over_pixels_is_beta_784() -> list[Check]:
    """A mean over 784 pixels beside a summed KL has the gradient of β = 784, divided by 784."""
    model = VAE.from_params(ModelParams(hidden_dims=(32,), latent_dim=4), seed=0)
    x = (draws(16, 784) > 0).float()
    logits, mu, logvar = model(x, draws(16, 4, seed=1).float())
    nll, kl = bernoulli_nll(logits, x), gaussian_kl(mu, logvar)

    def gradient(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        return torch.cat([part.flatten() for part in gradients]).double()

    by_mean = gradient((nll / 784).mean() + weighted_kl(kl, 1.0))
    by_beta = gradient(nll.mean() + weighted_kl(kl, 784.0))
    cosine = torch.cosine_similarity(by_mean, by_beta, 0).item()
    ratio = (by_beta.norm() / by_mean.norm()).item()
    return [
        Check("mean over pixels against β = 784: cosine of the gradients", cosine, 1.0, tolerance=1e-5),
        Check("mean over pixels against β = 784: ratio of their lengths", ratio, 784.0, tolerance=1e-2),
    ]


# --- importance weighting


def importance_gap(sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256)) -> tuple[pd.DataFrame, float, float]:
    """The bound's gap to log p(x) by K, with its exact value at K = 1 and the limit of K · gap.

    q has the exact posterior's mean, variances half too large, and no correlation. With r the ratio of the average
    weight to p(x), the gap is E[−log r]; since E r = 1 that is E[r − 1 − log r], whose samples are all ≥ 0: less
    noise. The limit is χ²(p(z|x) ‖ q) / 2 (Domke & Sheldon 2018), an integral of Gaussians.
    """
    model, x = small_model()
    exact = model.posterior(x)
    logvar = (1.5 * exact.covariance_matrix.diagonal(dim1=-2, dim2=-1)).log()
    q = MultivariateNormal(exact.loc, torch.diag_embed(logvar.exp()))
    z = exact.loc + torch.exp(0.5 * logvar) * draws(2**19, 2, seed=7)
    log_weights = model.log_joint(x, z) - normal_log_density(z, exact.loc, logvar)
    evidence = model.marginal().log_prob(x)
    rows = []
    for k in sizes:
        log_ratio = importance_weighted_bound(log_weights.view(-1, k)) - evidence
        gaps = log_ratio.exp() - 1 - log_ratio
        rows.append((k, gaps.mean().item(), gaps.std().item() / math.sqrt(len(gaps))))
    both = 2 * exact.precision_matrix - q.precision_matrix
    log_chi = exact.precision_matrix.logdet() - 0.5 * (q.precision_matrix.logdet() + both.logdet())
    table = pd.DataFrame(rows, columns=["K", "gap", "standard_error"])
    return table, kl_divergence(q, exact).item(), 0.5 * (log_chi.exp().item() - 1)


def gap_shrinks_with_samples(table: pd.DataFrame, at_one: float, limit: float) -> list[Check]:
    """Of `importance_gap`: it is KL(q ‖ p(z|x)) at K = 1, falls at every doubling of K, like χ²/2K in the end."""
    first, last = table.iloc[0], table.iloc[-1]
    falls = int((table["gap"].diff()[1:] < 0).sum())
    k = int(last["K"])
    return [
        Check("K = 1: gap = KL(q ‖ p(z|x))", first["gap"], at_one, first["standard_error"]),
        Check(f"doublings of K up to {k} at which the gap falls", falls, len(table) - 1),
        Check(
            f"K = {k}: K · gap = χ²(p(z|x) ‖ q) / 2, up to order 1/K",
            k * last["gap"],
            limit,
            k * last["standard_error"],
            tolerance=limit / 50,
        ),
    ]
