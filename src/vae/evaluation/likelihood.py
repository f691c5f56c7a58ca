"""Test-set metrics: one table with a row an image, and its averages as one flat table of numbers.

Everything is computed in fp32 and from a fixed seed: the same weights give the same figures. What looks at the test
set as a whole is in `vae.aggregate` (the KL's split) and `vae.sample_quality`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from vae.checkpoints import Checkpoints
from vae.config import EvaluateParams, Params
from vae.data.binarization import to_float
from vae.models.distributions import importance_weighted_bound
from vae.models.networks import Posterior
from vae.models.vae import VAE

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
# When to warn. A model with dimensions to spare leaves many unused (at β = 1 on MNIST about half of 40): no error.
COLLAPSED_SHARE = 0.9
COLLAPSED_KL = 0.1  # nats per image; which of ten digits it is takes 2.3

SECONDS_BETWEEN_CHECKPOINTS = 10.0

Floats = npt.NDArray[np.float32]
Part = tuple[Tensor, Tensor, Tensor]  # of a batch: figures [B, 4], posterior means and log-variances [B, L]


@dataclass(frozen=True)
class Evaluation:
    """A test set's figures, image by image, and its posterior means and log-variances [N, L]."""

    images: pd.DataFrame  # label, reconstruction, kl, elbo, nll, nll_sampling_error; nats
    mu: Floats
    logvar: Floats

    def metrics(self) -> dict[str, float]:
        """Means over all images, in nats per image, the NLL's errors, and the numbers of units and images.

        What isn't defined is left out: the NLL's sampling error with one importance sample, its standard error with
        one image.
        """
        active = active_units(self.mu)
        figures = {
            **summary(self.images),
            "active_units": active,
            "collapsed_units": self.mu.shape[1] - active,
            "n_test": len(self.images),
        }
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def by_digit(self) -> pd.DataFrame:
        """The same by label: the number of images, means and errors, and the active units of each."""
        rows = [
            {"digit": digit, "images": len(part), **summary(part), "active_units": active_units(self.mu[part.index])}
            for digit, part in self.images.groupby("label")
        ]
        return pd.DataFrame(rows)


def summary(images: pd.DataFrame) -> dict[str, float]:
    """Means over rows of `Evaluation.images`, the NLL's two errors (NaN where undefined), and the gap to the −ELBO.

    `nll_standard_error` is that of a mean over images, as a sample of all that there could be: std / √N.
    `nll_sampling_error` is the importance sampling's on these very images, where the draws alone are random. It
    doesn't tell of the bias: with K samples the NLL is too large, by less the more there are (Burda et al. 2016).
    """
    means = {name: float(images[name].mean()) for name in ("reconstruction", "kl", "elbo", "nll")}
    return {
        **means,
        "nll_standard_error": float(images["nll"].std()) / math.sqrt(len(images)),
        "nll_sampling_error": float(np.linalg.norm(images["nll_sampling_error"])) / len(images),
        "elbo_gap": -means["elbo"] - means["nll"],
    }


def describe(metrics: Mapping[str, float], params: Params) -> str:
    """A line on a test set's metrics, one more on what looks at it as a whole, and a warning: those that there are."""
    terms = f"reconstruction {metrics['reconstruction']:.2f} + KL {metrics['kl']:.2f}"
    nll = f", NLL {metrics['nll']:.2f}" if "nll" in metrics else ""
    samples = f" ({params.evaluate.importance_samples} importance samples)" if nll else ""
    lines = [
        f"test −ELBO {-metrics['elbo']:.2f} = {terms}{nll} nats per image{samples}, "
        f"{metrics['active_units']} of {params.model.latent_dim} latent dimensions active"
    ]
    if "mutual_information" in metrics:
        lines.append(
            f"mutual information {metrics['mutual_information']:.2f} (at most {math.log(metrics['n_test']):.2f}) nats, "
            f"linear probe {metrics['linear_probe_accuracy']:.1%}, Fréchet distance of samples "
            f"{metrics['sample_frechet_distance']:.1f} (training images {metrics['train_frechet_distance']:.1f})"
        )
    if has_collapsed(metrics):
        lines.append(
            "warning: posterior collapse, the latents tell next to nothing of an image: "
            "lower train.beta, or set train.kl_warmup_epochs or train.free_bits"
        )
    return "\n".join(lines)


def has_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether all or nearly all latent dimensions are unused, or the KL is about 0."""
    units = metrics["active_units"] + metrics["collapsed_units"]
    return metrics["kl"] < COLLAPSED_KL or metrics["collapsed_units"] >= COLLAPSED_SHARE * units


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
    checkpoints: Checkpoints | None = None,
) -> Evaluation:
    """Evaluate `model` on binarized `targets`, uint8 [N, D], on the device that both are on.

    The reconstruction is the mean over all importance samples, hence a better estimate than one sample's.
    With `checkpoints`, an evaluation that is interrupted goes on from there, to the same figures.
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
    bar = tqdm(total=len(batches), initial=done, desc="evaluate", disable=None if progress else True, leave=False)
    with bar:
        for number, batch in enumerate(batches[done:], done + 1):
            parts.append(_evaluate_batch(model, to_float(batch), params, generator))
            bar.update()
            if checkpoints and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                parts = [_joined(parts)]
                checkpoints.save(number, {"part": parts[0], "batches": number, "generator": generator.get_state()})
                saved = time.monotonic()
    columns, mu, logvar = _joined(parts)
    reconstruction, kl, nll, error = columns.unbind(1)
    table = pd.DataFrame(
        {
            "label": labels.cpu().numpy(),
            "reconstruction": reconstruction.numpy(),
            "kl": kl.numpy(),
            "elbo": -(reconstruction + kl).numpy(),
            "nll": nll.numpy(),
            "nll_sampling_error": error.numpy(),
        }
    )
    return Evaluation(table, mu.numpy(), logvar.numpy())


def _evaluate_batch(model: VAE, x: Tensor, params: EvaluateParams, generator: torch.Generator) -> Part:
    """Reconstruction, KL, NLL and its sampling error of images [B, D], [B, 4], and their posteriors' mu and logvar."""
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
    """−log p(x|z_k) [B, K], the KL [B] and the log importance weights [B, K] at K samples of `posterior`, encode(x).

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

    Delta method: the variance of log(mean) is about that of the mean, over the mean squared, Var(w) / (K · mean(w)²).
    Too small where a few samples have most of the weight.
    """
    samples = log_weights.shape[-1]
    weights = log_weights.softmax(-1) * samples  # their mean is 1
    return ((weights - 1).square().sum(-1) / (samples * (samples - 1))).sqrt()
