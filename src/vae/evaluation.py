"""Test-set metrics: one table with a row an image, and its averages as one flat table of numbers.

Everything is computed in fp32 and from a fixed seed: the same weights give the same figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vae.config import EvaluateParams, Params
from vae.data import to_float
from vae.model import VAE
from vae.objective import bernoulli_nll, gaussian_kl, importance_weighted_bound, normal_log_density

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """A test set's figures, image by image, and its posterior means and log-variances [N, L]."""

    images: pd.DataFrame  # label, reconstruction, kl, elbo, nll; nats
    mu: Floats
    logvar: Floats

    def metrics(self) -> dict[str, float]:
        """Means over all images, in nats per image, and the number of active units."""
        means = self.images.drop(columns="label").mean()
        return {
            **{str(name): value for name, value in means.items()},
            "active_units": active_units(self.mu),
            "n_test": len(self.images),
        }

    def by_digit(self) -> pd.DataFrame:
        """The same means by label, with the number of images and the active units of each."""
        groups = self.images.groupby("label")
        table = groups.mean()
        table["active_units"] = [active_units(self.mu[index]) for index in groups.indices.values()]
        table.insert(0, "images", groups.size())
        return table.rename_axis("digit").reset_index()


def describe(metrics: Mapping[str, float], params: Params) -> str:
    """One line on a test set's metrics; the NLL is told where they have it."""
    terms = f"reconstruction {metrics['reconstruction']:.2f} + KL {metrics['kl']:.2f}"
    nll = f", NLL {metrics['nll']:.2f}" if "nll" in metrics else ""
    samples = f" ({params.evaluate.importance_samples} importance samples)" if nll else ""
    return (
        f"test −ELBO {-metrics['elbo']:.2f} = {terms}{nll} nats per image{samples}, "
        f"{metrics['active_units']} of {params.model.latent_dim} latent dimensions active"
    )


def active_units(mu: Floats) -> int:
    """How many latent dimensions the model uses: variance of the posterior mean [N, L] over images > 0.01."""
    return int((mu.var(axis=0, ddof=1) > ACTIVE_UNIT_VARIANCE).sum())


@torch.no_grad()
def evaluate(
    model: VAE,
    targets: Tensor,
    labels: Tensor,
    params: EvaluateParams,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Evaluate `model` on binarized `targets`, uint8 [N, D], on the device that both are on.

    The reconstruction is the mean over all importance samples, hence a better estimate than one sample's.
    """
    model.eval()
    generator = torch.Generator(targets.device).manual_seed(seed)
    images_at_once = max(1, params.chunk_size // params.importance_samples)
    rows, mus, logvars = [], [], []
    batches = targets.split(images_at_once)
    for batch in tqdm(batches, "evaluate", disable=None if progress else True, leave=False, unit="batch"):
        x = to_float(batch)
        mu, logvar = model.encode(x)
        log_likelihood, log_weights = importance_samples(model, x, mu, logvar, params, generator)
        rows.append(torch.stack([-log_likelihood.mean(-1), -importance_weighted_bound(log_weights)], 1).cpu())
        mus.append(mu.cpu())
        logvars.append(logvar.cpu())
    mu, logvar = torch.cat(mus), torch.cat(logvars)
    reconstruction, nll = torch.cat(rows).double().unbind(1)
    kl = gaussian_kl(mu.double(), logvar.double()).sum(1)
    table = pd.DataFrame(
        {
            "label": labels.cpu().numpy(),
            "reconstruction": reconstruction.numpy(),
            "kl": kl.numpy(),
            "elbo": -(reconstruction + kl).numpy(),
            "nll": nll.numpy(),
        }
    )
    return Evaluation(table, mu.numpy(), logvar.numpy())


def importance_samples(
    model: VAE, x: Tensor, mu: Tensor, logvar: Tensor, params: EvaluateParams, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """log p(x|z_k) and log weights log p(x, z_k) − log q(z_k|x) of K posterior samples: [B, K] each.

    The posterior is encoded once an image; at most `chunk_size` latents are decoded at a time.
    """
    log_likelihoods, log_weights = [], []
    remaining = params.importance_samples
    zero = torch.zeros((), device=x.device)
    while remaining:
        samples = min(remaining, max(1, params.chunk_size // len(x)))
        noise = torch.randn(len(x), samples, mu.shape[1], generator=generator, device=x.device)
        z = model.reparameterize(mu[:, None], logvar[:, None], noise)
        log_likelihood = -bernoulli_nll(model.decode(z), x[:, None])
        log_prior = normal_log_density(z, zero, zero)
        log_posterior = normal_log_density(z, mu[:, None], logvar[:, None])
        log_likelihoods.append(log_likelihood)
        log_weights.append(log_likelihood + log_prior - log_posterior)
        remaining -= samples
    return torch.cat(log_likelihoods, -1), torch.cat(log_weights, -1)
