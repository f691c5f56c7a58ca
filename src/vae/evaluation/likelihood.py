"""Likelihood bounds of test images: per image, per class, and averaged.

Everything but the decoder's products is computed in fp32, from a fixed seed: the same weights give the same metrics.
Metrics of the test set as a whole are in `kl_decomposition`, `linear_probe` and `sample_quality`.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor

from vae.checkpoints import Checkpoints
from vae.config import EvaluateParams, Params
from vae.data.binarization import to_float
from vae.device import full_fp32
from vae.files import write_arrays
from vae.models.distributions import importance_weighted_bound
from vae.models.networks import Posterior
from vae.models.vae import VAE
from vae.progress import Progress

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
# Posterior collapse. Many unused dimensions alone are normal: at β = 1 on MNIST, up to 16 of 40.
COLLAPSED_SHARE = 0.9
COLLAPSED_KL = 0.1  # nats per image; which of ten classes it is of takes 2.3

SECONDS_BETWEEN_CHECKPOINTS = 15.0

Floats = npt.NDArray[np.float32]
Part = tuple[Tensor, Tensor, Tensor]  # of a batch: columns [B, columns], posterior means and log-variances [B, L]
# Of each image: −log p(x|z), KL and importance-weighted NLL; the NLL of the first tenth of the samples; their effective
# sample size; and the variance of the NLL between halves, and between quarters, of the samples.
COLUMNS = ["reconstruction", "kl", "nll", "nll_tenth", "effective_samples"]
COLUMNS += ["variance_of_halves", "variance_of_quarters"]


@dataclass(frozen=True)
class Evaluation:
    """Per-image metrics of a test set, and its posterior means and log-variances [N, L]."""

    images: pd.DataFrame  # label, elbo, COLUMNS and, with several stochastic layers, `layer_columns`
    mu: Floats
    logvar: Floats
    dimensions: int | None = None  # D, if the likelihood is a discretized one

    def metrics(self) -> dict[str, float]:
        """The `summary` of all images, and the number of active units, collapsed units and images.

        With a discretized likelihood, also `bits_per_dimension`, nll / (D ln 2), which other models of the same 8-bit
        images are compared by. Undefined errors are left out: the sampling error with fewer than four importance
        samples, the standard error with one image.
        """
        active = active_units(self.mu)
        metrics = {
            **summary(self.images),
            "active_units": active,
            "collapsed_units": self.mu.shape[1] - active,
            "n_test": len(self.images),
        }
        if self.dimensions:
            metrics["bits_per_dimension"] = metrics["nll"] / (self.dimensions * math.log(2))
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def by_class(self, classes: Sequence[str] = ()) -> pd.DataFrame:
        """One row per class: the number of images, the means and errors of `summary`, and the active units.

        `classes` are the names of labels. Without labels, there is one row for the class "all".
        """
        parts: dict[Any, pd.DataFrame] = {"all": self.images}
        if "label" in self.images:
            labels = self.images["label"].to_numpy()
            parts = {classes[n] if classes else n: self.images[labels == n] for n in np.unique(labels)}
        rows = [
            {"class": name, "images": len(part), **summary(part), "active_units": active_units(self.mu[part.index])}
            for name, part in parts.items()
        ]
        return pd.DataFrame(rows)

    def write_bounds(self, path: Path, protocol: Mapping[str, Any]) -> None:
        """Write −ELBO, KL and NLL of each image in nats, [N] each, their labels if any, and the protocol as .npz."""
        bounds = {"neg_elbo": -self.images["elbo"], "kl": self.images["kl"], "nll": self.images["nll"]}
        labels = {"labels": self.images["label"]} if "label" in self.images else {}
        write_arrays(path, **bounds, **labels, **protocol)


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
    bias: the NLL is an upper bound, which gets tighter with more importance samples (Burda et al. 2016), as its
    difference from `nll_tenth` shows.
    """
    names = ["reconstruction", "kl", "elbo", "nll", "nll_tenth", "effective_samples"]
    names += [str(name) for name in images.filter(regex="^kl_")]
    means = {name: float(images[name].mean()) for name in names}
    return {
        **means,
        "nll_standard_error": float(images["nll"].std()) / math.sqrt(len(images)),
        "nll_sampling_error": math.sqrt(sampling_variance(images) / len(images)),
        "elbo_gap": -means["elbo"] - means["nll"],
    }


def sampling_variance(images: pd.DataFrame) -> float:
    """The variance of an image's NLL over repetitions of the importance sampling, averaged over `images`.

    With V(K), that of K samples, it is V(K) ≈ V(K/2) · V(K/2) / V(K/4): halving the samples again raises the variance
    by the same factor. Where a few samples have most of the weight, this factor is below 2; errors that take it to be
    2, those of the delta method or of batch means, are then too small.
    """
    half, quarter = (float(images[f"variance_of_{parts}"].mean()) for parts in ("halves", "quarters"))
    return half * half / quarter if quarter else 0.0


def describe(metrics: Mapping[str, float], params: Params) -> str:
    """The metrics in lines of at most 80 columns, and a warning of posterior collapse."""
    error = f" ± {metrics['nll_standard_error']:.2f}" if "nll_standard_error" in metrics else ""
    lines = [
        f"test −ELBO {-metrics['elbo']:.2f} = reconstruction {metrics['reconstruction']:.2f} "
        f"+ KL {metrics['kl']:.2f} nats per image",
        f"test NLL {metrics['nll']:.2f}{error} ({params.evaluate.importance_samples} importance samples), "
        f"{metrics['active_units']} of {params.model.latent_dim} latents active",
    ]
    if by_layer := [f"{value:.2f}" for name, value in metrics.items() if name.startswith("kl_")]:
        lines += [f"KL of each stochastic layer, top first: {', '.join(by_layer)}"]
    if "bits_per_dimension" in metrics:
        lines += [f"{metrics['bits_per_dimension']:.3f} bits per dimension"]
    if "nll_sampling_error" in metrics:
        lines += [
            f"NLL with {tenth(params.evaluate.importance_samples)} samples {metrics['nll_tenth']:.2f}, sampling error "
            f"{metrics['nll_sampling_error']:.3f}, effective sample size {metrics['effective_samples']:.1f}"
        ]
    if "mutual_information" in metrics:
        lines += [f"mutual information of latents and image {metrics['mutual_information']:.2f} nats"]
    if "linear_probe_accuracy" in metrics:
        lines += [f"linear probe of the latents {metrics['linear_probe_accuracy']:.1%}"]
    if "sample_frechet_distance" in metrics:
        lines += [
            f"Fréchet distance of samples {metrics['sample_frechet_distance']:.1f} "
            f"± {metrics['sample_frechet_distance_sd']:.1f} (training images {metrics['train_frechet_distance']:.1f})",
            f"precision of samples {metrics['sample_precision']:.0%} (training images "
            f"{metrics['train_precision']:.0%}), recall {metrics['sample_recall']:.0%} ({metrics['train_recall']:.0%})",
        ]
    if has_collapsed(metrics):
        lines += [
            "warning: posterior collapse: the latents hold almost no information;",
            "lower train.beta, or set train.kl_warmup_epochs",
        ]
    return "\n".join(lines)


def tenth(samples: int) -> int:
    """A tenth of the importance samples, at least one."""
    return max(1, samples // 10)


def has_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether the KL is below 0.1 nats per image, or at least 90 % of the latent dimensions are inactive.

    With several stochastic layers, the KL decides: the lower ones may hold the information.
    """
    units = metrics["active_units"] + metrics["collapsed_units"]
    inactive = metrics["collapsed_units"] >= COLLAPSED_SHARE * units and "kl_top" not in metrics
    return metrics["kl"] < COLLAPSED_KL or inactive


def active_units(mu: Floats) -> int:
    """The number of latent dimensions whose posterior mean [N, L] has a variance over images above 0.01."""
    return int((mu.var(axis=0, ddof=1) > ACTIVE_UNIT_VARIANCE).sum())


@full_fp32()
@torch.no_grad()
def evaluate(
    model: VAE,
    targets: Tensor,
    labels: Tensor | None,
    params: EvaluateParams,
    *,
    seed: int = 0,
    progress: bool = False,
    checkpoints: Checkpoints | None = None,
    shared: bool = False,
) -> Evaluation:
    """Evaluate `model` on `targets`, uint8 [N, D] and binarized if the model is for such, on the same device.

    A conditional model is given the `labels` [N]: its bounds are of p(x|label).

    The reconstruction is a mean over all importance samples, and so is the KL where it has no closed form.
    With `checkpoints`, an interrupted evaluation resumes there, with the same metrics; the caller deletes them.
    `shared` divides the images among the processes of `torch.distributed`, which all call this function: each gets the
    result that one alone computes.
    """
    model.eval()
    rank, size = (dist.get_rank(), dist.get_world_size()) if shared and dist.is_initialized() else (0, 1)
    generator = torch.Generator(targets.device).manual_seed(seed)
    batches = targets.split(max(1, params.chunk_size // params.importance_samples))
    given = labels.to(targets.device).split(len(batches[0])) if model.classes and labels is not None else None
    parts: list[Part] = []
    done = 0
    if checkpoints and (state := checkpoints.load(torch.device("cpu"))):
        parts, done = [state["part"]], state["batches"]
        generator.set_state(state["generator"])
    saved = time.monotonic()
    if progress:
        count = params.importance_samples
        print(f"evaluating {len(targets):,} images with {count} importance sample{'s' * (count > 1)} each")
    with Progress(show=progress, desc="evaluate", total=len(batches), initial=done) as bar:
        for number, batch in enumerate(batches[done:], done + 1):
            label = given[number - 1] if given else None
            if number % size == rank:
                parts.append(_evaluate_batch(model, to_float(batch), label, params, generator))
            else:  # another process does, with the noise that would be drawn here
                for _ in noise_of(model, len(batch), params, generator):
                    pass
            bar.update()
            if checkpoints and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                parts = [_joined(parts)]
                checkpoints.save(number, {"part": parts[0], "batches": number, "generator": generator.get_state()})
                saved = time.monotonic()
    columns, mu, logvar = _joined(_of_all(parts, size))
    images = pd.DataFrame(columns.numpy(), columns=COLUMNS + layer_columns(model))
    images = images.assign(elbo=-(images["reconstruction"] + images["kl"]))
    images = images if labels is None else images.assign(label=labels.cpu().numpy())
    dimensions = model.input_dim if model.likelihood.discretized else None
    return Evaluation(images, mu.numpy(), logvar.numpy(), dimensions)


def _evaluate_batch(
    model: VAE, x: Tensor, labels: Tensor | None, params: EvaluateParams, generator: torch.Generator
) -> Part:
    """The `COLUMNS` and `layer_columns` [B, columns], and the posteriors of images [B, D]."""
    posterior = model.encode(x) if labels is None else model.encode(x, labels)
    nll, kl, log_weights = importance_samples(model, x, posterior, params, generator)
    first = log_weights[:, : tenth(params.importance_samples)]
    bounds = (-importance_weighted_bound(weights) for weights in (log_weights, first))
    variances = (variance_between_parts(log_weights, parts) for parts in (2, 4))
    columns = (nll.mean(-1), kl.sum(1), *bounds, effective_samples(log_weights), *variances)
    if model.hierarchy:
        columns += kl.unbind(1)
    mu, logvar = posterior
    return torch.stack([column.cpu().double() for column in columns], 1), mu.cpu(), logvar.cpu()


def layer_columns(model: VAE) -> list[str]:
    """The columns with the KL of z and of each further stochastic layer; none where z is the only one."""
    return ["kl_top", *(f"kl_lower_{number}" for number, _ in enumerate(model.hierarchy, 1))] if model.hierarchy else []


def _of_all(parts: list[Part], size: int) -> list[Part]:
    """The parts that `size` processes computed in turns, in the order of the images."""
    if size == 1:
        return parts
    gathered: list[list[Part]] = [[]] * size
    dist.all_gather_object(gathered, parts)
    turns = [iter(each) for each in gathered]
    return [next(turns[number % size]) for number in range(1, sum(map(len, gathered)) + 1)]


def _joined(parts: list[Part]) -> Part:
    columns, mu, logvar = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return columns, mu, logvar


def importance_samples(
    model: VAE, x: Tensor, posterior: Posterior, params: EvaluateParams, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """−log p(x|z_k) [B, K], the KL and log importance weights [B, K] at K samples of `posterior` = encode(x).

    The KL is that of each stochastic layer, [B, layers], the top one first.

    At most `chunk_size` latents are decoded at a time. With `precision` bf16 the networks' matrix products are in bf16;
    densities and sums stay in fp32.
    """
    layers = len(model.hierarchy)
    nll, kl, log_weights = [], torch.zeros(len(x), 1 + layers, device=x.device), []
    for noise in noise_of(model, len(x), params, generator):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=params.precision == "bf16"):
            terms = model(x, noise, posterior=posterior)
        nll.append(terms.nll)
        top, lower = terms.kl.split([terms.kl.shape[1] - layers, layers], 1)
        kl += torch.cat([top.sum(1, keepdim=True), lower], 1) * (noise.shape[1] / params.importance_samples)
        log_weights.append(terms.log_weights)
    return torch.cat(nll, -1), kl, torch.cat(log_weights, -1)


def noise_of(model: VAE, n: int, params: EvaluateParams, generator: torch.Generator) -> Iterator[Tensor]:
    """Standard normal noise for all importance samples of `n` images, [n, samples, N] at a time."""
    remaining = params.importance_samples
    while remaining:
        samples = min(remaining, max(1, params.chunk_size // n))
        yield torch.randn(n, samples, model.noise_dim, generator=generator, device=generator.device)
        remaining -= samples


def effective_samples(log_weights: Tensor) -> Tensor:
    """The effective sample size of log importance weights, (Σ_k w_k)² / Σ_k w_k² (Kong 1992): [..., K] -> [...]."""
    return 1 / log_weights.softmax(-1).square().sum(-1)


def variance_between_parts(log_weights: Tensor, parts: int) -> Tensor:
    """The variance of the bound between equal parts of the samples, [..., K] -> [...]; NaN for K < `parts`."""
    size = log_weights.shape[-1] // parts
    if not size:
        return torch.full(log_weights.shape[:-1], math.nan)
    bounds = importance_weighted_bound(log_weights[..., : parts * size].unflatten(-1, (parts, size)))
    return bounds.var(-1)
