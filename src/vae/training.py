"""One `fit()`: the train stage, every search trial and the examples train with it.

It knows neither MLflow nor files: it calls `on_epoch(record)`, and tracking, printing and saving are such callbacks.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, lr_scheduler
from tqdm import tqdm

from vae.config import Binarization, TrainParams
from vae.data import Split, binarize_once, sample_binary, to_float
from vae.device import Hardware
from vae.errors import ConfigError, DivergedError
from vae.model import VAE
from vae.objective import bernoulli_nll, beta_at, gaussian_kl, weighted_kl

EVALUATION_BATCH = 1024  # images at a time where no gradients are kept

Record = dict[str, float]
OnEpoch = Callable[[Record], None]
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """What `fit()` did: a record an epoch, and the epoch (from 1) whose weights the model now has."""

    history: list[Record]
    best_epoch: int

    @property
    def best(self) -> Record:
        """The record of the best epoch."""
        return self.history[self.best_epoch - 1]


def fit(
    model: VAE,
    train: Split,
    validation: Split,
    params: TrainParams,
    hardware: Hardware,
    *,
    binarization: Binarization = "dynamic",
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
) -> Fitted:
    """Train `model` in place and leave it with the weights of its best epoch.

    Best is the lowest validation −ELBO at β = 1, whatever β is trained with. Each epoch's record holds
    `train/…` and `val/…` figures in nats per image; `improved` in it is 1 where the model is the best so far.
    The same seed, machine and thread count give the same weights, bit for bit.

    Raises DivergedError at the end of the first epoch with a loss that isn't finite, before `on_epoch` sees it;
    ConfigError where there is no full batch to train on.
    """
    if not len(train):
        raise ConfigError("there are no training images")
    model.to(hardware.device)
    loop = _Loop(model, train, params, hardware, binarization, seed)
    targets = binarize_once(validation.images, binarization).to(hardware.device)
    history: list[Record] = []
    best_epoch, best_weights = 0, model.state_dict()
    for epoch in range(1, params.epochs + 1):
        record = {"epoch": epoch, **loop.run_epoch(epoch, progress)}
        record |= {f"val/{name}": value for name, value in validate(model, targets, hardware).items()}
        _require_finite(record, epoch)
        improved = not best_epoch or record["val/neg_elbo"] < history[best_epoch - 1]["val/neg_elbo"]
        history.append(record | {"improved": int(improved)})
        if improved:
            best_epoch, best_weights = epoch, copy.deepcopy(model.state_dict())
        if on_epoch:
            on_epoch(history[-1])
        if params.early_stopping_patience and epoch - best_epoch >= params.early_stopping_patience:
            break
    model.load_state_dict(best_weights)
    return Fitted(history, best_epoch)


class _Loop:
    """What lasts from epoch to epoch: images on the device, optimiser, schedule, random state."""

    def __init__(
        self,
        model: VAE,
        train: Split,
        params: TrainParams,
        hardware: Hardware,
        binarization: Binarization,
        seed: int,
    ) -> None:
        self.model, self.params, self.hardware = model, params, hardware
        self.dynamic = binarization == "dynamic"
        images = train.images if self.dynamic else binarize_once(train.images, binarization)
        self.images = images.to(hardware.device)
        self.generator = torch.Generator(hardware.device).manual_seed(seed)
        self.optimizer = Adam(model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
        self.steps_per_epoch = -(-len(images) // params.batch_size)
        self.schedule = _schedule(self.optimizer, params, params.epochs * self.steps_per_epoch)
        self.step = _step_function(model, params, hardware)
        self.last_epoch: Record = {}

    def run_epoch(self, epoch: int, progress: bool) -> Record:
        """Train one epoch; the figures are means over its images, as the weights were when each was seen."""
        started = time.perf_counter()
        beta = beta_at(epoch, self.params.beta, self.params.kl_warmup_epochs)
        beta_tensor = torch.tensor(beta, device=self.hardware.device)
        sums = torch.zeros(self.steps_per_epoch, 3, device=self.hardware.device)
        self.model.train()
        with tqdm(
            desc=f"epoch {epoch}/{self.params.epochs}",
            total=len(self.images),
            unit=" images",
            unit_scale=True,
            postfix=self.last_epoch,  # this epoch's figures would cost a wait for the device at every step
            leave=False,
            disable=None if progress else True,
        ) as bar:
            for number, images in enumerate(self._batches()):
                sums[number] = torch.stack(self._train_step(images, beta_tensor)) * len(images)
                bar.update(len(images))
        _require_finite_steps(sums, epoch)  # the epoch's one wait for the device
        loss, reconstruction, kl = (sums.sum(0) / len(self.images)).tolist()
        seconds = time.perf_counter() - started
        self.last_epoch = {"−ELBO": reconstruction + kl, "reconstruction": reconstruction, "KL": kl}
        return {
            "train/loss": loss,
            "train/reconstruction": reconstruction,
            "train/kl": kl,
            "train/neg_elbo": reconstruction + kl,
            "train/beta": beta,
            "train/learning_rate": self.schedule.get_last_lr()[0],
            "train/seconds": seconds,
            "train/images_per_second": len(self.images) / seconds,
        }

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.hardware.device)
        for index in order.split(self.params.batch_size):
            images = self.images.index_select(0, index)  # on the CPU, ten times faster than self.images[index]
            yield sample_binary(images, self.generator) if self.dynamic else images

    def _train_step(self, images: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(images), self.model.params.latent_dim)
        noise = torch.randn(shape, generator=self.generator, device=self.hardware.device)
        loss, reconstruction, kl = self.step(to_float(images), noise, beta)
        self.optimizer.zero_grad()
        loss.backward()
        if self.params.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach(), reconstruction.detach(), kl.detach()


def _step_function(model: VAE, params: TrainParams, hardware: Hardware) -> Step:
    """(x, noise, beta) -> loss, reconstruction, KL: means over the batch. Random draws and β come in from
    outside, so that it compiles to one graph without state."""

    def step(x: Tensor, noise: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with hardware.autocast():
            logits, mu, logvar = model(x, noise)
        kl = gaussian_kl(mu, logvar)
        reconstruction = bernoulli_nll(logits, x).mean()
        return reconstruction + weighted_kl(kl, beta, params.free_bits), reconstruction, kl.sum(1).mean()

    if not hardware.compile:
        return step
    if hardware.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    # "reduce-overhead" is CUDA graphs: a step this small is bound by launching its kernels, not by running them.
    mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
    compiled: Step = torch.compile(step, mode=mode, dynamic=False)
    return compiled


def _schedule(optimizer: Adam, params: TrainParams, total_steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate by step: `learning_rate` is where constant, step and cosine start, and one_cycle's peak."""
    match params.lr_schedule:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case "step":  # a tenth at half and again at three quarters of the training
            return lr_scheduler.MultiStepLR(optimizer, [total_steps // 2, total_steps * 3 // 4])
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
        case "one_cycle":
            return lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps + 1)


@torch.no_grad()
def validate(model: VAE, targets: Tensor, hardware: Hardware) -> Record:
    """Reconstruction, KL and −ELBO at β = 1 over binarized `targets` (uint8 [N, D]), nats per image.

    The same posterior noise each time, so that epochs differ by their weights only.
    """
    model.eval()
    generator = torch.Generator(targets.device).manual_seed(0)
    sums = torch.zeros(2, dtype=torch.float64, device="cpu" if targets.device.type == "mps" else targets.device)
    for batch in targets.split(EVALUATION_BATCH):
        x = to_float(batch)
        noise = torch.randn(len(x), model.params.latent_dim, generator=generator, device=x.device)
        with hardware.autocast():
            logits, mu, logvar = model(x, noise)
        sums += torch.stack([bernoulli_nll(logits, x).sum(), gaussian_kl(mu, logvar).sum()]).to(sums.device)
    reconstruction, kl = (sums / len(targets)).tolist()
    return {"reconstruction": reconstruction, "kl": kl, "neg_elbo": reconstruction + kl}


def _require_finite_steps(sums: Tensor, epoch: int) -> None:
    bad_steps = (~sums.isfinite()).any(1).nonzero()
    if not len(bad_steps):
        return
    step = int(bad_steps[0])
    _, reconstruction, kl = sums[step].isfinite().tolist()
    terms = [name for name, finite in (("reconstruction", reconstruction), ("KL", kl)) if not finite]
    raise _diverged(f"epoch {epoch}, step {step + 1} of {len(sums)}: {' and '.join(terms) or 'the loss'}")


def _require_finite(record: dict[str, Any], epoch: int) -> None:
    bad = [name for name, value in record.items() if not torch.isfinite(torch.tensor(float(value)))]
    if bad:
        raise _diverged(f"epoch {epoch}: {', '.join(bad)}")


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        f"training diverged at {what} is not finite; try a lower train.learning_rate, train.max_grad_norm: 1, "
        "train.kl_warmup_epochs, or train.precision: fp32"
    )
