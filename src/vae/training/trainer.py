"""`VAETrainer`: `fit()` for those who come with a model and DataLoaders of their own."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from vae.config import Binarization, TrainParams, checked
from vae.data.binarization import check_binarization
from vae.data.datasets import Split
from vae.device import resolve
from vae.models.vae import VAE
from vae.training.loop import Fitted, OnEpoch, fit

DEFAULTS = TrainParams()


class VAETrainer:
    """Trains a model, and keeps its history.

    `options` are those of `TrainParams`: `lr_schedule`, `max_grad_norm`, `kl_warmup_epochs`, `free_bits`,
    `early_stopping_patience`, `weight_decay`, `precision`, … An `optimizer` of yours replaces Adam, and with it
    `learning_rate` and `lr_schedule`; a `scheduler` of yours moves once an epoch. `binarization` says how grey pixels
    become black and white: "dynamic" draws them anew for every batch; with "none" the figures are no likelihoods.

    Raises ConfigError for an option that isn't there, is out of range, or that this machine can't do.
    """

    def __init__(
        self,
        model: VAE,
        device: torch.device | str = "auto",
        learning_rate: float = DEFAULTS.learning_rate,
        beta: float = DEFAULTS.beta,
        *,
        optimizer: Optimizer | None = None,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        binarization: Binarization = "dynamic",
        seed: int = 0,
        **options: Any,
    ) -> None:
        named = {"device": str(device), "learning_rate": learning_rate, "beta": beta}
        self.params = checked(TrainParams, named | options)
        check_binarization(binarization)
        self.model, self.binarization, self.seed = model, binarization, seed
        self.optimizer, self.scheduler = optimizer, scheduler
        self.hardware = resolve(self.params)
        self.history = pd.DataFrame()

    def train(
        self,
        train_loader: DataLoader[Any] | Split,
        val_loader: DataLoader[Any] | Split,
        epochs: int = DEFAULTS.epochs,
        *,
        on_epoch: OnEpoch | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Train for `epochs`, and leave the model with its best one's weights; returns the history, a row an epoch.

        Loaders yield images [B, 784] or [B, 1, 28, 28] in [0, 1], alone or before their labels. The best epoch is
        that with the lowest −ELBO on `val_loader`, which must not hold images that are trained on. Called again, it
        trains on. Raises what `fit()` raises.
        """
        params = checked(TrainParams, self.params.model_dump() | {"epochs": epochs})
        fitted = fit(
            self.model,
            train_loader,
            val_loader,
            params,
            self.hardware,
            binarization=self.binarization,
            seed=self.seed + len(self.history),  # trained on, it shouldn't see the same noise again
            on_epoch=on_epoch,
            progress=progress,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
        )
        self.history = pd.concat([self.history, self._numbered(fitted)], ignore_index=True)
        return self.history

    def _numbered(self, fitted: Fitted) -> pd.DataFrame:
        history = pd.DataFrame(fitted.history)
        history["epoch"] += len(self.history)
        return history

    def plot_history(self) -> Figure:
        """−ELBO, reconstruction and KL by epoch."""
        from vae.plots.history import training_history  # the one upward import: training doesn't need matplotlib

        return training_history(self.history)

    def save(self, path: Path | str) -> None:
        """Write the model, for `VAE.load`."""
        self.model.save(path)
