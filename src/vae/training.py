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
from torch.optim import Adam, Optimizer, lr_scheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from vae.config import Binarization, TrainParams
from vae.data import Split, binarize_once, image_batch, sample_binary, to_float
from vae.device import Hardware
from vae.errors import ConfigError, DataError, DivergedError
from vae.model import VAE
from vae.objective import bernoulli_nll, beta_at, gaussian_kl, mmd, weighted_kl

EVALUATION_BATCH = 1024  # images at a time where no gradients are kept

Record = dict[str, float]
OnEpoch = Callable[[Record], None]
Step = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]


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
    train: Split | DataLoader[Any],
    validation: Split | DataLoader[Any],
    params: TrainParams,
    hardware: Hardware,
    *,
    binarization: Binarization = "dynamic",
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    progress: bool = False,
    optimizer: Optimizer | None = None,
    scheduler: lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau | None = None,
) -> Fitted:
    """Train `model` in place and leave it with the weights of its best epoch.

    Best is the lowest validation −ELBO at β = 1, whatever β is trained with. Each epoch's record holds
    `train/…` and `val/…` figures in nats per image; `improved` in it is 1 where the model is the best so far.
    The same seed, machine and thread count give the same weights, bit for bit.

    A DataLoader brings its own order, batch size and transforms; `params.batch_size` is that of a Split. Without an
    `optimizer` of yours it is Adam, and `params` say its learning rate and schedule; a `scheduler` of yours moves
    once an epoch.

    Raises DivergedError at the end of the first epoch with a loss that isn't finite, before `on_epoch` sees it;
    DataError where there are no images, or not such as `vae.data.image_batch` takes.
    """
    model.to(hardware.device)
    loop = _Loop(model, train, params, hardware, binarization, seed, optimizer, scheduler)
    targets = binarize_once(_images(validation, model.input_dim), binarization).to(hardware.device)
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
        loop.end_epoch(record["val/neg_elbo"])
        if on_epoch:
            on_epoch(history[-1])
        if params.early_stopping_patience and epoch - best_epoch >= params.early_stopping_patience:
            break
    model.load_state_dict(best_weights)
    return Fitted(history, best_epoch)


def _images(part: Split | DataLoader[Any], input_dim: int) -> Tensor:
    """All images of a split or a loader, [N, D]. Raises DataError where there are none."""
    images = [part.images] if isinstance(part, Split) else [image_batch(batch, input_dim) for batch in part]
    if not sum(map(len, images)):
        raise DataError("there are no images to train or validate on")
    return torch.cat(images)


class _Resident:
    """Images kept on the device, where they are shuffled and binarized: no step waits for the host."""

    def __init__(self, images: Tensor, batch_size: int, binarization: Binarization, generator: torch.Generator) -> None:
        self.dynamic = binarization == "dynamic"
        images = images if self.dynamic else binarize_once(images, binarization)
        self.images, self.batch_size, self.generator = images.to(generator.device), batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        for index in order.split(self.batch_size):
            images = self.images.index_select(0, index)  # on the CPU, ten times faster than self.images[index]
            yield to_float(sample_binary(images, self.generator) if self.dynamic else images)


class _Streamed:
    """A DataLoader's batches, checked and moved to the device one by one."""

    def __init__(
        self, loader: DataLoader[Any], input_dim: int, binarization: Binarization, generator: torch.Generator
    ) -> None:
        self.loader, self.input_dim, self.binarization, self.generator = loader, input_dim, binarization, generator
        if binarization == "static":
            raise ConfigError("'static' binarizes a whole data set once, which a DataLoader's batches don't let it")
        try:
            steps = len(loader)
        except TypeError:
            raise DataError("the DataLoader must have a length: an IterableDataset needs __len__") from None
        if not steps:
            raise DataError("the DataLoader yields nothing to train on")

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            images = image_batch(batch, self.input_dim).to(self.generator.device, non_blocking=True)
            if self.binarization == "dynamic":
                yield to_float(sample_binary(images, self.generator))
            else:
                yield to_float(binarize_once(images, self.binarization))


class _Loop:
    """What lasts from epoch to epoch: the batches, optimiser, schedule, random state."""

    def __init__(
        self,
        model: VAE,
        train: Split | DataLoader[Any],
        params: TrainParams,
        hardware: Hardware,
        binarization: Binarization,
        seed: int,
        optimizer: Optimizer | None,
        scheduler: lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau | None,
    ) -> None:
        self.model, self.params, self.hardware = model, params, hardware
        self.generator = torch.Generator(hardware.device).manual_seed(seed)
        self.batches = (
            _Resident(_images(train, model.input_dim), params.batch_size, binarization, self.generator)
            if isinstance(train, Split)
            else _Streamed(train, model.input_dim, binarization, self.generator)
        )
        self.optimizer = optimizer or Adam(
            model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
        )
        self.scheduler = scheduler
        # Someone's own optimiser keeps its learning rate, unless their own scheduler moves it.
        self.schedule = (
            None if optimizer or scheduler else _schedule(self.optimizer, params, params.epochs * len(self.batches))
        )
        self.step = _step_function(model, params, hardware)
        self.last_epoch: Record = {}

    def end_epoch(self, neg_elbo: float) -> None:
        """Move a scheduler of the caller's; one that waits for a plateau looks at the validation −ELBO."""
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(neg_elbo)
        elif self.scheduler:
            self.scheduler.step()

    def run_epoch(self, epoch: int, progress: bool) -> Record:
        """Train one epoch; the figures are means over its images, as the weights were when each was seen."""
        started = time.perf_counter()
        beta = beta_at(epoch, self.params.beta, self.params.kl_warmup_epochs)
        beta_tensor = torch.tensor(beta, device=self.hardware.device)
        sums = torch.zeros(len(self.batches), 3, device=self.hardware.device)
        count = 0
        self.model.train()
        with tqdm(
            desc=f"epoch {epoch}/{self.params.epochs}",
            total=len(self.batches),
            unit=" batches",
            postfix=self.last_epoch,  # this epoch's figures would cost a wait for the device at every step
            leave=False,
            disable=None if progress else True,
        ) as bar:
            for number, x in enumerate(self.batches):
                sums[number] = torch.stack(self._train_step(x, beta_tensor)) * len(x)
                count += len(x)
                bar.update()
        _require_finite_steps(sums, epoch)  # the epoch's one wait for the device
        loss, reconstruction, kl = (sums.sum(0) / count).tolist()
        seconds = time.perf_counter() - started
        self.last_epoch = {"−ELBO": reconstruction + kl, "reconstruction": reconstruction, "KL": kl}
        return {
            "train/loss": loss,
            "train/reconstruction": reconstruction,
            "train/kl": kl,
            "train/neg_elbo": reconstruction + kl,
            "train/beta": beta,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/seconds": seconds,
            "train/images_per_second": count / seconds,
        }

    def _train_step(self, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(x), self.model.params.latent_dim)
        noise = torch.randn(shape, generator=self.generator, device=self.hardware.device)
        # Drawn only where it is used: other trainings see the same noise as if there were no such term.
        prior = torch.randn(shape, generator=self.generator, device=noise.device) if self.params.mmd else None
        loss, reconstruction, kl = self.step(x, noise, beta, prior)
        self.optimizer.zero_grad()
        loss.backward()
        if self.params.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)
        self.optimizer.step()
        if self.schedule:
            self.schedule.step()
        return loss.detach(), reconstruction.detach(), kl.detach()


def _step_function(model: VAE, params: TrainParams, hardware: Hardware) -> Step:
    """(x, noise, beta, prior draws or None) -> loss, reconstruction, KL: means over the batch. Random draws and β
    come in from outside, so that it compiles to one graph without state."""

    def step(x: Tensor, noise: Tensor, beta: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with hardware.autocast():
            logits, mu, logvar = model(x, noise)
        kl = gaussian_kl(mu, logvar)
        reconstruction = bernoulli_nll(logits, x).mean()
        loss = reconstruction + weighted_kl(kl, beta, params.free_bits)
        if prior is not None:
            loss = loss + params.mmd * mmd(model.reparameterize(mu, logvar, noise), prior)
        return loss, reconstruction, kl.sum(1).mean()

    if not hardware.compile:
        return step
    if hardware.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    # "reduce-overhead" is CUDA graphs: a step this small is bound by launching its kernels, not by running them.
    mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
    compiled: Step = torch.compile(step, mode=mode, dynamic=False)
    return compiled


def _schedule(optimizer: Optimizer, params: TrainParams, total_steps: int) -> lr_scheduler.LRScheduler:
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
