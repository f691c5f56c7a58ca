"""`fit()`: the training loop of the train stage, of search trials and of `VAETrainer`.

It knows neither MLflow nor files: it calls `on_epoch(record)`; tracking, printing and saving are such callbacks.
"""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from vae.checkpoints import Checkpoints, State
from vae.config import Binarization, Params, TrainParams, check_together, resolved_likelihood
from vae.data.batches import LoaderBatches, ShuffledBatches, all_images
from vae.data.binarization import binarize_once, check_colour, to_float
from vae.data.datasets import Split
from vae.device import Hardware, full_fp32
from vae.errors import ConfigError, DivergedError
from vae.models.distributions import importance_weighted_bound
from vae.models.vae import VAE, Terms
from vae.progress import Progress
from vae.training import distributed
from vae.training.objectives import beta_at, doubly_reparameterized_bound, mmd, weighted_kl
from vae.training.optimizers import make_optimizers, make_schedule

EVALUATION_BATCH = 1024  # images at a time where no gradients are needed

Record = dict[str, float]
OnEpoch = Callable[[Record], None]
Step = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
Scheduler = lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau


@dataclass(frozen=True)
class Fitted:
    """A finished training: one record per epoch, and the best epoch (from 1), whose weights the model has."""

    history: list[Record]
    best_epoch: int
    state: State  # of the last epoch, from which `fit(after=...)` trains on

    @property
    def best(self) -> Record:
        """The record of the best epoch."""
        return self.history[self.best_epoch - 1]


def new_model(params: Params, dataset: Mapping[str, Any], images: Tensor) -> VAE:
    """The untrained model of `params` for a `dataset` (dataset.json), initialized from training `images` [N, D]."""
    of_images = {"image_shape": dataset["image_shape"], "classes": len(dataset["classes"])}
    model = VAE.from_params(params.resolved_model, params.seed, **of_images)
    model.initialize_from_data(images)
    return model


@full_fp32()
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
    scheduler: Scheduler | None = None,
    checkpoints: Checkpoints | None = None,
    after: Fitted | None = None,
) -> Fitted:
    """Train `model` in place for `params.epochs` and leave it with the weights of the best epoch.

    The best epoch has the lowest validation −ELBO at β = 1, whatever β the model is trained with; with objective
    "iwae", the highest importance-weighted bound. With `ema_decay`, validation and `on_epoch` see the model with the
    average of its weights, and the best epoch's average is what it is left with. Each epoch's record holds the metrics
    `train/…` and `val/…`, in nats per image; `improved` in it is 1 if the epoch is the best so far.

    The same seed, machine and number of threads give the same weights, bit for bit, on the CPU. On CUDA that holds only
    after `torch.use_deterministic_algorithms(True)`; without it, results differ in the last digits.

    With `checkpoints`, each epoch saves one, and a training that finds one resumes from it: the result is the same as
    without the interruption. `on_epoch` is then called for the remaining epochs only.

    In a process group of `torch.distributed`, each process calls `fit` with the same arguments and computes its share
    of every batch; `on_epoch` is called, and checkpoints are written, in the first one only.

    With `after`, an earlier training of the same model, it trains on from that one's last epoch: optimizer state and
    history continue, "best" is over all epochs, and the learning-rate schedule starts anew for the new epochs.

    A DataLoader brings its own order, batch size and transforms; `params.batch_size` is for a Split. An `optimizer`
    replaces those that `params` describe, and keeps its own learning rate; a `scheduler` replaces the schedule and is
    stepped once per epoch, ReduceLROnPlateau with the validation metric.

    Warns once if the model is no better than the data's mean image after warm-up. Raises DivergedError at the end of
    the first epoch with a loss that is not finite, before `on_epoch` is called; DataError if there are no images, or
    not of the form that `vae.data.batches.image_batch` takes; ConfigError if the model can't be trained with `params`.
    """
    _check(model, params, binarization)
    if scheduler and not optimizer:
        raise ConfigError("a scheduler is given without an optimizer, allowed is both: it changes that one's rate")
    model.to(hardware.device)
    state = _TrainingState(model, train, params, hardware, binarization, seed, optimizer, scheduler)
    images, labels = all_images(validation, model.input_dim, bool(model.classes))
    targets = binarize_once(images, binarization).to(hardware.device)
    labels = None if labels is None else labels.to(hardware.device)
    samples = params.importance_samples if params.objective == "iwae" else 0
    key, patience = criterion(params), params.early_stopping_patience
    history: list[Record] = list(after.history) if after else []
    start, best_epoch = len(history), after.best_epoch if after else 0
    best_weights = copy.deepcopy(model.state_dict())
    if after:
        state.train_on(after.state)
    if saved := distributed.of_the_first(checkpoints.load(hardware.device) if checkpoints else None):
        state.load_state_dict(saved["training"])
        history, best_epoch, best_weights = saved["history"], saved["best_epoch"], saved["best_weights"]
    for epoch in range(len(history) + 1, start + params.epochs + 1):
        if patience and len(history) - max(best_epoch, start) >= patience:
            break
        record = {"epoch": epoch, **state.run_epoch(epoch, start + params.epochs, progress)}
        with state.averaged():
            started = time.perf_counter()
            metrics = validate(model, targets, hardware, samples, labels)
            record |= {f"val/{name}": value for name, value in metrics.items()}
            record["val/seconds"] = time.perf_counter() - started
            _check_finite(record, epoch)
            improved = not best_epoch or record[key] < history[best_epoch - 1][key]
            history.append(record | {"improved": int(improved)})
            if improved:
                best_epoch, best_weights = epoch, copy.deepcopy(model.state_dict())
            if epoch == _end_of_warmup(params) and distributed.is_first():
                _warn_if_collapsed(model, targets, history[best_epoch - 1])
            state.end_epoch(record[key])
            if on_epoch and distributed.is_first():
                on_epoch(history[-1])
        if checkpoints and distributed.is_first():
            best = {"best_epoch": best_epoch, "best_weights": best_weights}
            checkpoints.save(epoch, {"training": state.state_dict(), "history": history, **best})
    last_epoch = copy.deepcopy(state.state_dict())
    model.load_state_dict(best_weights)
    return Fitted(history, best_epoch, last_epoch)


def _check(model: VAE, params: TrainParams, binarization: Binarization) -> None:
    """Raise ConfigError where `model` can't be trained with `params` on such images, or not by several processes."""
    check_together(model.params, params)
    resolved_likelihood(model.params, binarization)
    check_colour(binarization, model.image_shape[0])
    if (params.mmd or params.free_bits) and distributed.size() > 1:
        name = "mmd" if params.mmd else "free_bits"
        raise ConfigError(f"train.{name} is computed from a whole batch: it is for one process, train.nproc: 1")


def criterion(params: TrainParams) -> str:
    """The metric in a record that is lowest in the best epoch."""
    return "val/neg_bound" if params.objective == "iwae" else "val/neg_elbo"


def _end_of_warmup(params: TrainParams) -> int:
    """The epoch in which the KL warm-up has ended, and a third of the training, where one_cycle has peaked."""
    return max(params.kl_warmup_epochs, min(-(-params.epochs // 3), params.early_stopping_patience or params.epochs))


class _TrainingState:
    """Batches, optimizers, learning-rate schedules and random number generators of one training."""

    def __init__(
        self,
        model: VAE,
        train: Split | DataLoader[Any],
        params: TrainParams,
        hardware: Hardware,
        binarization: Binarization,
        seed: int,
        optimizer: Optimizer | None,
        scheduler: Scheduler | None,
    ) -> None:
        self.model, self.params, self.hardware = model, params, hardware
        self.generator = torch.Generator(hardware.device).manual_seed(seed)
        self.batches: ShuffledBatches | LoaderBatches
        labelled = bool(model.classes)
        if isinstance(train, Split):
            images, labels = all_images(train, model.input_dim, labelled)
            self.batches = ShuffledBatches(images, params.batch_size, binarization, self.generator, labels)
        else:
            self.batches = LoaderBatches(train, model.input_dim, binarization, self.generator, labelled)
        # A DataLoader shuffles with its own generator, or seeds one from the global generator.
        self.generators = [self.generator, torch.default_generator]
        if isinstance(self.batches, LoaderBatches):
            self.generators += self.batches.generators
        self.optimizers = [optimizer] if optimizer else make_optimizers(model, params)
        self.scheduler = scheduler
        steps = params.epochs * len(self.batches)
        self.schedules = (
            [] if optimizer or scheduler else [make_schedule(each, params, steps) for each in self.optimizers]
        )
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if (decay := params.ema_decay) else None
        )
        # Of the first `elbo_epochs`.
        self.elbo = params.model_copy(
            update={"objective": "elbo", "importance_samples": 1, "doubly_reparameterized": False}
        )
        self.module = distributed.wrapped(model)
        self.objective, self.step = params, _step_function(self.module, params, hardware)
        self.last_epoch: Record = {}

    def state_dict(self) -> State:
        """Weights and their average, optimizers, schedules and random states."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self._all_schedules()],
            "generators": [generator.get_state() for generator in self.generators],
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        self._load_weights(state)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self._all_schedules(), state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved.cpu())

    def train_on(self, state: State) -> None:
        """Continue from the end of an earlier training, with schedules and learning rates as at the start of one."""
        self._load_weights(state)
        self.generator.set_state(state["generators"][0].cpu())
        if self.schedules:  # otherwise the caller's optimizer and scheduler have kept their state themselves
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved | {"param_groups": optimizer.state_dict()["param_groups"]})

    def _load_weights(self, state: State) -> None:
        self.model.load_state_dict(state["model"])
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In this block, the model has the average of its weights, where one is kept."""
        if not self.average:
            yield
            return
        weights = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.average.module.state_dict())
        yield
        self.model.load_state_dict(weights)

    def _all_schedules(self) -> list[Scheduler]:
        return [*self.schedules, *([self.scheduler] if self.scheduler else [])]

    def end_epoch(self, score: float) -> None:
        """Step the caller's scheduler; ReduceLROnPlateau with the validation's `score`."""
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(score)
        elif self.scheduler:
            self.scheduler.step()

    def run_epoch(self, epoch: int, epochs: int, progress: bool) -> Record:
        """Train one epoch; the metrics are means over its images, each with the weights at its step.

        `train/beta` and `train/learning_rate` are those at the end of the epoch.
        """
        started = time.perf_counter()
        steps, params = len(self.batches), self.params
        objective = self.elbo if epoch <= params.elbo_epochs else params
        if objective is not self.objective:
            self.objective, self.step = objective, _step_function(self.module, objective, self.hardware)
        cycle = -(-params.epochs // params.kl_cycles) if params.kl_cycles > 1 else None
        sums = torch.zeros(steps, 3, device=self.hardware.device)
        count, beta = 0, params.beta
        self.model.train()
        with Progress(
            show=progress and distributed.is_first(),
            desc=f"epoch {epoch}/{epochs}",
            total=steps,
            unit=" batches",
            postfix=self.last_epoch,  # this epoch's metrics would cost a wait for the device at every step
        ) as bar:
            for number, (x, labels) in enumerate(self.batches):
                beta = beta_at(epoch - 1 + (number + 1) / steps, params.beta, params.kl_warmup_epochs, cycle)
                sums[number] = self._train_step(x, labels, beta) * len(x)
                count += len(x)
                bar.update()
        _check_finite_steps(distributed.add_up(sums), epoch)  # the epoch's one wait for the device
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

    def _train_step(self, x: Tensor, labels: Tensor | None, beta: float) -> Tensor:
        """Loss, reconstruction and KL, [3]: means over the batch, or this process's part of them."""
        device = self.hardware.device
        shape = (len(x), self.objective.importance_samples, self.model.noise_dim)
        noise = torch.randn(shape, generator=self.generator, device=device)
        # Sampled only if it is used: other trainings get the same noise as if there were no such term.
        prior = self._prior_samples(len(x)) if self.params.mmd else None
        own, weight = distributed.share(len(x))
        given = None if labels is None else labels[own]
        means = torch.stack(self.step(x[own], given, noise[own], torch.full((), beta, device=device), prior))
        self.model.zero_grad()
        (weight * means[0]).backward()
        if self.params.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        if self.average:
            self.average.update_parameters(self.model)
        return means.detach() * (weight / distributed.size())

    @torch.no_grad()
    def _prior_samples(self, n: int) -> Tensor:
        return self.model.prior.sample(n, self.generator, self.hardware.device)


def _step_function(model: nn.Module, params: TrainParams, hardware: Hardware) -> Step:
    """(x, labels or None, noise, beta, prior samples or None) -> loss, reconstruction, KL: means over the batch.

    Random numbers and β are arguments, so that the step compiles to one graph without state.
    """

    def step(
        x: Tensor, labels: Tensor | None, noise: Tensor, beta: Tensor, prior: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with hardware.autocast():
            terms = model(x, noise, **_given(labels), detach_posterior=params.doubly_reparameterized)
            loss = _loss(terms, params, beta)
        if prior is not None:
            loss = loss + params.mmd * mmd(terms.z[:, 0], prior)
        kl = terms.kl.sum(1) if params.objective == "elbo" else terms.log_ratio
        return loss, terms.nll.mean(), kl.mean()

    if not hardware.compile:
        return step
    torch.compiler.reset()  # PyTorch keeps 8 variants of a function: the next model's step would silently run eagerly
    # "reduce-overhead" is CUDA graphs: launching the kernels of a step this small takes longer than running them.
    mode = "reduce-overhead" if hardware.device.type == "cuda" else "default"
    compiled: Step = torch.compile(step, mode=mode, dynamic=False)
    size = 0

    def compiled_for_the_first_size(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Compiling a second graph, for the last, smaller batch of each epoch, takes longer than it saves."""
        nonlocal size
        size = size or len(x)
        return (compiled if len(x) == size else step)(x, *others)

    return compiled_for_the_first_size


def _given(labels: Tensor | None) -> dict[str, Tensor]:
    """The labels as an argument of a conditional model; others have a `forward` without it, if a subclass wishes."""
    return {} if labels is None else {"labels": labels}


def _loss(terms: Terms, params: TrainParams, beta: Tensor) -> Tensor:
    """The training loss, a mean over images: with β, that of the ELBO or of the importance-weighted bound."""
    if params.objective == "elbo":
        return terms.nll.mean() + weighted_kl(terms.kl, beta, params.free_bits)
    log_weights = -terms.nll - beta * terms.log_ratio
    if params.doubly_reparameterized:
        return -doubly_reparameterized_bound(log_weights, terms.z, beta).mean()
    return -importance_weighted_bound(log_weights).mean()


@full_fp32()
@torch.no_grad()
def validate(
    model: VAE, targets: Tensor, hardware: Hardware, importance_samples: int = 0, labels: Tensor | None = None
) -> Record:
    """Reconstruction, KL and −ELBO at β = 1 over binarized `targets` (uint8 [N, D]), nats per image.

    `labels` [N] are those that a conditional model takes.
    With `importance_samples`, these are means over that many samples, and `neg_bound` is the negative
    importance-weighted bound. The posterior noise is the same each time, so that epochs differ by their weights only.
    """
    model.eval()
    generator = torch.Generator(targets.device).manual_seed(0)
    samples = importance_samples or 1
    sums = torch.zeros(3, dtype=torch.float64, device="cpu" if targets.device.type == "mps" else targets.device)
    chunk = max(1, EVALUATION_BATCH // samples)
    for start in range(0, len(targets), chunk):
        x = to_float(targets[start : start + chunk])
        noise = torch.randn(len(x), samples, model.noise_dim, generator=generator, device=x.device)
        own, weight = distributed.share(len(x))
        if not weight:
            continue
        with hardware.autocast():
            terms = model(x[own], noise[own], **_given(None if labels is None else labels[start : start + chunk][own]))
        bound = importance_weighted_bound(terms.log_weights)
        sums += torch.stack([terms.nll.mean(1).sum(), terms.kl.sum(), bound.sum()]).to(sums.device)
    reconstruction, kl, bound = (distributed.add_up(sums) / len(targets)).tolist()
    metrics = {"reconstruction": reconstruction, "kl": kl, "neg_elbo": reconstruction + kl}
    if importance_samples:
        metrics["neg_bound"] = -bound
    return metrics


@torch.no_grad()
def _warn_if_collapsed(model: VAE, targets: Tensor, best: Record) -> None:
    """Warn if the −ELBO is that of the mean image, which a decoder that ignores the latents reaches, within 1 %."""
    output = model.constant_output(targets)
    parts = map(to_float, targets.split(EVALUATION_BATCH))
    nll = [model.likelihood.nll(output.expand(len(part), -1), part) for part in parts]
    mean_image = torch.cat(nll).mean().item()
    if best["val/neg_elbo"] > mean_image - 0.01 * abs(mean_image):
        warnings.warn(
            f"the validation −ELBO, {best['val/neg_elbo']:.1f} nats per image, is no better than that of the data's "
            f"mean image, {mean_image:.1f}: the latents carry no information. Try a lower train.learning_rate (and "
            "train.muon_learning_rate), a larger train.kl_warmup_epochs, a lower train.beta, or more epochs",
            stacklevel=5,  # the caller of `fit`, behind its decorator
        )


def _check_finite_steps(sums: Tensor, epoch: int) -> None:
    bad_steps = (~sums.isfinite()).any(1).nonzero()
    if not len(bad_steps):
        return
    step = int(bad_steps[0])
    _, reconstruction, kl = sums[step].isfinite().tolist()
    terms = [name for name, finite in (("reconstruction", reconstruction), ("KL", kl)) if not finite]
    raise _diverged(f"epoch {epoch}, step {step + 1} of {len(sums)}: {' and '.join(terms) or 'the loss'}")


def _check_finite(record: Record, epoch: int) -> None:
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        raise _diverged(f"epoch {epoch}: {', '.join(bad)}")


def _diverged(what: str) -> DivergedError:
    return DivergedError(
        f"training diverged at {what} is not finite; try a lower train.learning_rate, train.max_grad_norm: 1, "
        "train.kl_warmup_epochs, or train.precision: fp32"
    )
