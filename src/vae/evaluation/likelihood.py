"""Likelihood bounds of test images: per image, per class, and averaged.

Everything but the decoder's products is computed in fp32, from a fixed seed: the same weights give the same metrics.
Metrics of the test set as a whole are in `kl_decomposition`, `linear_probe` and `sample_quality`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vae.checkpoints import Checkpoints
from vae.config import EvaluateParams, Params
from vae.data.binarization import to_float
from vae.device import full_fp32
from vae.files import write_arrays
from vae.models.distributions import importance_weighted_bound
from vae.models.networks import Posterior
from vae.models.vae import VAE

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
# Posterior collapse. Many unused dimensions alone are normal: at β = 1 on MNIST, about half of 40.
COLLAPSED_SHARE = 0.9
COLLAPSED_KL = 0.1  # nats per image; the class of a digit takes 2.3

SECONDS_BETWEEN_CHECKPOINTS = 15.0  # and between percentages, where there is no terminal for a progress bar

Floats = npt.NDArray[np.float32]
Part = tuple[Tensor, Tensor, Tensor]  # of a batch: metrics [B, 4], posterior means and log-variances [B, L]


@dataclass(frozen=True)
class Evaluation:
    """Per-image metrics of a test set, and its posterior means and log-variances [N, L]."""

    images: pd.DataFrame  # label, and in nats: reconstruction, kl, elbo, nll, nll_sampling_error
    mu: Floats
    logvar: Floats

    def metrics(self) -> dict[str, float]:
        """The `summary` of all images, and the number of active units, collapsed units and images.

        Undefined errors are left out: the sampling error with one importance sample, the standard error with one image.
        """
        active = active_units(self.mu)
        metrics = {
            **summary(self.images),
            "active_units": active,
            "collapsed_units": self.mu.shape[1] - active,
            "n_test": len(self.images),
        }
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def by_class(self) -> pd.DataFrame:
        """One row per class: the number of images, the means and errors of `summary`, and the active units."""
        rows = [
            {"class": label, "images": len(part), **summary(part), "active_units": active_units(self.mu[part.index])}
            for label, part in self.images.groupby("label")
        ]
        return pd.DataFrame(rows)

    def write_bounds(self, path: Path, protocol: Mapping[str, Any]) -> None:
        """Write −ELBO, KL and NLL of each image in nats, [N] each, their labels and the protocol as .npz."""
        bounds = {"neg_elbo": -self.images["elbo"], "kl": self.images["kl"], "nll": self.images["nll"]}
        write_arrays(path, **bounds, labels=self.images["label"], **protocol)


def protocol_of(params: Params, dataset: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    """How the test images are evaluated, and of what model: likelihoods under another protocol are not comparable."""
    return {
        "importance_samples": params.evaluate.importance_samples,
        "precision": params.evaluate.precision,
        "binarization": params.data.binarization,
        "dataset": dataset["name"],
        "split": "test",
        "seed": params.seed,
        "weights_sha256": weights_sha256,
    }


def summary(images: pd.DataFrame) -> dict[str, float]:
    """Means over rows of `Evaluation.images`, two errors of the mean NLL (NaN where undefined), and the gap to −ELBO.

    `nll_standard_error` is the standard error of a mean over a random sample of images, std / √N.
    `nll_sampling_error` is the error of importance sampling alone, with these images fixed. It does not include the
    bias: the NLL is an upper bound, which gets tighter with more importance samples (Burda et al. 2016).
    """
    means = {name: float(images[name].mean()) for name in ("reconstruction", "kl", "elbo", "nll")}
    return {
        **means,
        "nll_standard_error": float(images["nll"].std()) / math.sqrt(len(images)),
        "nll_sampling_error": float(np.linalg.norm(images["nll_sampling_error"])) / len(images),
        "elbo_gap": -means["elbo"] - means["nll"],
    }


def describe(metrics: Mapping[str, float], params: Params) -> str:
    """The metrics in lines of at most 80 columns, and a warning of posterior collapse."""
    error = f" ± {metrics['nll_standard_error']:.2f}" if "nll_standard_error" in metrics else ""
    lines = [
        f"test −ELBO {-metrics['elbo']:.2f} = reconstruction {metrics['reconstruction']:.2f} "
        f"+ KL {metrics['kl']:.2f} nats per image",
        f"test NLL {metrics['nll']:.2f}{error} ({params.evaluate.importance_samples} importance samples), "
        f"{metrics['active_units']} of {params.model.latent_dim} latents active",
    ]
    if "mutual_information" in metrics:
        lines += [
            f"mutual information {metrics['mutual_information']:.2f} (at most {math.log(metrics['n_test']):.2f}) nats, "
            f"linear probe {metrics['linear_probe_accuracy']:.1%}",
            f"Fréchet distance of samples {metrics['sample_frechet_distance']:.1f} "
            f"(training images {metrics['train_frechet_distance']:.1f})",
        ]
    if has_collapsed(metrics):
        lines += [
            "warning: posterior collapse: the latents hold almost no information;",
            "lower train.beta, or set train.kl_warmup_epochs or train.free_bits",
        ]
    return "\n".join(lines)


def has_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether at least 90 % of the latent dimensions are inactive, or the KL is below 0.1 nats per image."""
    units = metrics["active_units"] + metrics["collapsed_units"]
    return metrics["kl"] < COLLAPSED_KL or metrics["collapsed_units"] >= COLLAPSED_SHARE * units


def active_units(mu: Floats) -> int:
    """The number of latent dimensions whose posterior mean [N, L] has a variance over images above 0.01."""
    return int((mu.var(axis=0, ddof=1) > ACTIVE_UNIT_VARIANCE).sum())


@full_fp32()
@torch.no_grad()
def evaluate(
    model: VAE,
    targets: Tensor,
    labels: Tensor,
    params: EvaluateParams,
    *,
    seed: int = 0,
    progress: bool = False,
    checkpoints: Checkpoints | None = None,
) -> Evaluation:
    """Evaluate `model` on binarized `targets`, uint8 [N, D], on the same device.

    The reconstruction is a mean over all importance samples, and so is the KL where it has no closed form.
    With `checkpoints`, an interrupted evaluation resumes there, with the same metrics; the caller deletes them.
    """
    model.eval()
    generator = torch.Generator(targets.device).manual_seed(seed)
    batches = targets.split(max(1, params.chunk_size // params.importance_samples))
    parts: list[Part] = []
    done = 0
    if checkpoints and (state := checkpoints.load(torch.device("cpu"))):
        parts, done = [state["part"]], state["batches"]
        generator.set_state(state["generator"])
    saved = time.monotonic()
    if progress:
        count = params.importance_samples
        print(f"evaluating {len(targets):,} images with {count} importance sample{'s' * (count > 1)} each")
    bar = tqdm(total=len(batches), initial=done, desc="evaluate", disable=None if progress else True, leave=False)
    with bar:
        for number, batch in enumerate(batches[done:], done + 1):
            parts.append(_evaluate_batch(model, to_float(batch), params, generator))
            bar.update()
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                if progress and bar.disable:
                    print(f"evaluated {number / len(batches):.0%}")
                if checkpoints:
                    parts = [_joined(parts)]
                    checkpoints.save(number, {"part": parts[0], "batches": number, "generator": generator.get_state()})
                saved = time.monotonic()
    columns, mu, logvar = _joined(parts)
    reconstruction, kl, nll, error = columns.numpy().T
    bounds = {"reconstruction": reconstruction, "kl": kl, "elbo": -(reconstruction + kl), "nll": nll}
    images = pd.DataFrame({"label": labels.cpu().numpy(), **bounds, "nll_sampling_error": error})
    return Evaluation(images, mu.numpy(), logvar.numpy())


def _evaluate_batch(model: VAE, x: Tensor, params: EvaluateParams, generator: torch.Generator) -> Part:
    """Reconstruction, KL, NLL and its sampling error, [B, 4], and the posteriors, of images [B, D]."""
    posterior = model.encode(x)
    nll, kl, log_weights = importance_samples(model, x, posterior, params, generator)
    columns = (nll.mean(-1), kl, -importance_weighted_bound(log_weights), sampling_error(log_weights))
    mu, logvar = posterior
    return torch.stack([column.cpu().double() for column in columns], 1), mu.cpu(), logvar.cpu()


def _joined(parts: list[Part]) -> Part:
    columns, mu, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return columns, mu, logvar


def importance_samples(
    model: VAE, x: Tensor, posterior: Posterior, params: EvaluateParams, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """−log p(x|z_k) [B, K], the KL [B] and log importance weights [B, K] at K samples of `posterior` = encode(x).

    At most `chunk_size` latents are decoded at a time. With `precision` bf16 the decoder's matrix products are in bf16;
    everything else stays in fp32.
    """
    nll, kl, log_weights = [], torch.zeros(len(x), device=x.device), []
    remaining = params.importance_samples
    while remaining:
        samples = min(remaining, max(1, params.chunk_size // len(x)))
        noise = torch.randn(len(x), samples, model.noise_dim, generator=generator, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            terms = model(x, noise, posterior=posterior)
        nll.append(terms.nll)
        kl += terms.kl.sum(1) * (samples / params.importance_samples)
        log_weights.append(terms.log_weights)
        remaining -= samples
    return torch.cat(nll, -1), kl, torch.cat(log_weights, -1)


def sampling_error(log_weights: Tensor) -> Tensor:
    """The standard error of log (1/K) Σ_k w_k from log weights: [..., K] -> [...], NaN for K = 1.

    By the delta method, Var(log mean(w)) ≈ Var(w) / (K · mean(w)²); an underestimate where few samples dominate.
    """
    samples = log_weights.shape[-1]
    weights = log_weights.softmax(-1) * samples  # their mean is 1
    return ((weights - 1).square().sum(-1) / (samples * (samples - 1))).sqrt()
