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
from vae.model import VAE, Encoding
from vae.objective import bernoulli_nll, importance_weighted_bound

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
        encoding = model.encoding(x)
        mu, logvar = encoding.mu, encoding.logvar
        log_likelihood, log_ratio = importance_samples(model, x, encoding, params, generator)
        kl = exact_kl(model, mu, logvar) if model.params.kl_is_exact else log_ratio.mean(-1)
        nll = -importance_weighted_bound(log_likelihood - log_ratio)
        rows.append(torch.stack([-log_likelihood.mean(-1), kl, nll], 1).double().cpu())
        mus.append(mu.cpu())
        logvars.append(logvar.cpu())
    mu, logvar = torch.cat(mus), torch.cat(logvars)
    reconstruction, kl, nll = torch.cat(rows).unbind(1)
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
    model: VAE, x: Tensor, encoding: Encoding, params: EvaluateParams, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """log p(x|z_k) and log q(z_k|x) − log p(z_k) of K posterior samples: [B, K] each.

    The posterior is encoded once an image; at most `chunk_size` latents are decoded at a time. With `precision` bf16
    the decoder's matrix products are in bf16; everything else stays in fp32.
    """
    log_likelihoods, log_ratios = [], []
    remaining = params.importance_samples
    while remaining:
        samples = min(remaining, max(1, params.chunk_size // len(x)))
        noise = torch.randn(len(x), samples, model.noise_dim, generator=generator, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            draws = model.draw(encoding, noise)
        log_likelihoods.append(-bernoulli_nll(draws.logits, x[:, None]))
        log_ratios.append(model.log_ratio(draws))
        remaining -= samples
    return torch.cat(log_likelihoods, -1), torch.cat(log_ratios, -1)


def exact_kl(model: VAE, mu: Tensor, logvar: Tensor) -> Tensor:
    """The KL of posteriors [B, L] in closed form, [B]."""
    mu, logvar = mu.double(), logvar.double()
    return model.prior.kl(mu, logvar, mu).sum(-1)
