"""One `fit()`: the train stage, every search trial and the examples train with it.

It knows neither MLflow nor files: it calls `on_epoch(record)`, and tracking, printing and saving are such callbacks.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from vae.checkpoints import Checkpoints, State
from vae.config import Binarization, TrainParams, check_together
from vae.data.batches import InMemoryBatches, LoaderBatches, all_images
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.device import Hardware
from vae.errors import ConfigError, DivergedError
from vae.models.distributions import importance_weighted_bound
from vae.models.vae import VAE, Terms
from vae.training.objectives import beta_at, doubly_reparameterized_bound, mmd, weighted_kl
from vae.training.optimizers import make_optimizers, make_schedule

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
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train `model` in place and leave it with the weights of its best epoch.

    Best is the lowest validation −ELBO at β = 1, whatever β is trained with; with the importance-weighted bound, the
    highest such bound (`criterion`). Each epoch's record holds `train/…` and `val/…` figures in nats per image;
    `improved` in it is 1 where the model is the best so far.
    The same seed, machine and thread count give the same weights, bit for bit.

    With `checkpoints`, every epoch leaves one, and a training that finds one there goes on from it: to the same
    weights as if it hadn't been interrupted. `on_epoch` is called for the epochs that are left.

    A DataLoader brings its own order, batch size and transforms; `params.batch_size` is that of a Split. Without an
    `optimizer` of yours it is Adam, and `params` say its learning rate and schedule; a `scheduler` of yours moves
    once an epoch.

    Raises DivergedError at the end of the first epoch with a loss that isn't finite, before `on_epoch` sees it;
    DataError where there are no images, or not such as `vae.data.image_batch` takes; ConfigError where the model can't
    be trained as `params` say.
    """
    try:
        check_together(model.params, params)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    model.to(hardware.device)
    loop = _Loop(model, train, params, hardware, binarization, seed, optimizer, scheduler)
    targets = binarize_once(all_images(validation, model.input_dim), binarization).to(hardware.device)
    key, patience = criterion(params), params.early_stopping_patience
    history: list[Record] = []
    best_epoch, best_weights = 0, model.state_dict()
    if checkpoints and (state := checkpoints.load(hardware.device)):
        loop.load_state_dict(state["loop"])
        history, best_epoch, best_weights = state["history"], state["best_epoch"], state["best_weights"]
    for epoch in range(len(history) + 1, params.epochs + 1):
        if patience and len(history) - best_epoch >= patience:
            break
        record = {"epoch": epoch, **loop.run_epoch(epoch, progress)}
        started = time.perf_counter()
        figures = validate(model, targets, hardware, params.importance_samples if params.objective == "iwae" else 0)
        record |= {f"val/{name}": value for name, value in figures.items()}
        record["val/seconds"] = time.perf_counter() - started
        _require_finite(record, epoch)
        improved = not best_epoch or record[key] < history[best_epoch - 1][key]
        history.append(record | {"improved": int(improved)})
        if improved:
            best_epoch, best_weights = epoch, copy.deepcopy(model.state_dict())
        loop.end_epoch(record[key])
        if on_epoch:
            on_epoch(history[-1])
        if checkpoints:
            best = {"best_epoch": best_epoch, "best_weights": best_weights}
            checkpoints.save(epoch, {"loop": loop.state_dict(), "history": history, **best})
    model.load_state_dict(best_weights)
    return Fitted(history, best_epoch)


def criterion(params: TrainParams) -> str:
    """The figure in a record that is lowest in the best epoch."""
    return "val/neg_bound" if params.objective == "iwae" else "val/neg_elbo"


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
        self.generators = [self.generator, torch.default_generator]  # the latter gives someone's DataLoader its order
        self.batches: InMemoryBatches | LoaderBatches = (
            InMemoryBatches(all_images(train, model.input_dim), params.batch_size, binarization, self.generator)
            if isinstance(train, Split)
            else LoaderBatches(train, model.input_dim, binarization, self.generator)
        )
        if isinstance(self.batches, LoaderBatches):
            self.generators += self.batches.generators
        self.optimizers = [optimizer] if optimizer else make_optimizers(model, params)
        self.scheduler = scheduler
        # Someone's own optimiser keeps its learning rate, unless their own scheduler moves it.
        steps = params.epochs * len(self.batches)
        self.schedules = (
            [] if optimizer or scheduler else [make_schedule(each, params, steps) for each in self.optimizers]
        )
        self.step = _step_function(model, params, hardware)
        self.last_epoch: Record = {}

    def state_dict(self) -> State:
        """Weights, optimiser, schedules and random states."""
        return {
            "parts": [part.state_dict() for part in self._parts()],
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from what `state_dict` returned."""
        for part, saved in zip(self._parts(), state["parts"], strict=True):
            part.load_state_dict(saved)
        for generator, found in zip(self.generators, state["generators"], strict=True):
            generator.set_state(found.cpu())

    def _parts(self) -> list[Any]:
        return [self.model, *self.optimizers, *self.schedules, *([self.scheduler] if self.scheduler else [])]

    def end_epoch(self, score: float) -> None:
        """Move a scheduler of the caller's; one that waits for a plateau looks at the validation's `score`."""
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(score)
        elif self.scheduler:
            self.scheduler.step()

    def run_epoch(self, epoch: int, progress: bool) -> Record:
        """Train one epoch; the figures are means over its images, as the weights were when each was seen."""
        started = time.perf_counter()
        cycle = -(-self.params.epochs // self.params.kl_cycles)
        beta = beta_at(epoch, self.params.beta, self.params.kl_warmup_epochs, cycle)
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
            "train/learning_rate": self.optimizers[0].param_groups[0]["lr"],
            "train/seconds": seconds,
            "train/images_per_second": count / seconds,
        }

    def _train_step(self, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(x), self.params.importance_samples, self.model.noise_dim)
        noise = torch.randn(shape, generator=self.generator, device=self.hardware.device)
        # Drawn only where it is used: other trainings see the same noise as if there were no such term.
        prior = self._prior_draws(len(x)) if self.params.mmd else None
        loss, reconstruction, kl = self.step(x, noise, beta, prior)
        self.model.zero_grad()
        loss.backward()
        if self.params.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        return loss.detach(), reconstruction.detach(), kl.detach()

    @torch.no_grad()
    def _prior_draws(self, n: int) -> Tensor:
        return self.model.prior.sample(n, self.generator, self.hardware.device)


def _step_function(model: VAE, params: TrainParams, hardware: Hardware) -> Step:
    """(x, noise, beta, prior samples or None) -> loss, reconstruction, KL: means over the batch.

    Random numbers and β are arguments, so that the step compiles to one graph without state.
    """

    def step(x: Tensor, noise: Tensor, beta: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with hardware.autocast():
            terms = model(x, noise, detach_posterior=params.doubly_reparameterized)
            loss = _loss(terms, params, beta)
        if prior is not None:
            loss = loss + params.mmd * mmd(terms.z[:, 0], prior)
        kl = terms.kl.sum(1) if params.objective == "elbo" else terms.log_ratio
        return loss, terms.nll.mean(), kl.mean()

    if not hardware.compile:
        return step
    if hardware.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    # "reduce-overhead" is CUDA graphs: a step this small is bound by launching its kernels, not by running them.
    mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
    compiled: Step = torch.compile(step, mode=mode, dynamic=False)
    return compiled


def _loss(terms: Terms, params: TrainParams, beta: Tensor) -> Tensor:
    """The training loss, a mean over images: with β, that of the ELBO or of the importance-weighted bound."""
    if params.objective == "elbo":
        return terms.nll.mean() + weighted_kl(terms.kl, beta, params.free_bits)
    log_weights = -terms.nll - beta * terms.log_ratio
    if params.doubly_reparameterized:
        return -doubly_reparameterized_bound(log_weights, terms.z, beta).mean()
    return -importance_weighted_bound(log_weights).mean()


@torch.no_grad()
def validate(model: VAE, targets: Tensor, hardware: Hardware, importance_samples: int = 0) -> Record:
    """Reconstruction, KL and −ELBO at β = 1 over binarized `targets` (uint8 [N, D]), nats per image.

    With `importance_samples`, these are means over that many samples, and `neg_bound` is the negative
    importance-weighted bound. The posterior noise is the same each time, so that epochs differ by their weights only.
    """
    model.eval()
    generator = torch.Generator(targets.device).manual_seed(0)
    samples = importance_samples or 1
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if targets.device.type == "mps" else targets.device)
    for batch in targets.split(max(1, EVALUATION_BATCH // samples)):
        x = to_float(batch)
        noise = torch.randn(len(x), samples, model.noise_dim, generator=generator, device=x.device)
        with hardware.autocast():
            terms = model(x, noise)
        bound = importance_weighted_bound(terms.log_weights)
        sums += torch.stack([terms.nll.mean(1).sum(), terms.kl.sum(), bound.sum()]).to(sums.device)
    reconstruction, kl, bound = (sums / len(targets)).tolist()
    metrics = {"reconstruction": reconstruction, "kl": kl, "neg_elbo": reconstruction + kl}
    if importance_samples:
        metrics["neg_bound"] = -bound
    return metrics


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
