"""`VAETrainer`: `fit()` for a model and DataLoaders of your own."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from vae.config import Binarization, OptimizerName, TrainParams, checked, takes_fields_of
from vae.data.binarization import check_binarization
from vae.data.datasets import Split
from vae.device import resolve
from vae.errors import ConfigError
from vae.models.vae import VAE
from vae.training.loop import Fitted, OnEpoch, fit

DEFAULTS = TrainParams()
NO_OPTIONS = {"epochs", "nproc", "timeout"}  # `train` gets the number of epochs; several processes are the pipeline's


class VAETrainer:
    """Trains a model and keeps the history.

    `options` are the fields of `TrainParams`: `lr_schedule`, `max_grad_norm`, `kl_warmup_epochs`, `free_bits`,
    `early_stopping_patience`, `weight_decay`, `precision`, … With `compile` "auto", only a GPU's steps are compiled,
    since the number of images is not known beforehand. An `optimizer` of PyTorch's replaces `learning_rate` and
    `lr_schedule`, too; a `scheduler` is stepped once per epoch. `binarization` is that of grey pixels:
    "dynamic" samples them anew for every batch; "none" keeps them, for a model with such a likelihood.

    Raises ConfigError for an option that is unknown, out of range, or not available on this machine.
    """

    @takes_fields_of(TrainParams, without=NO_OPTIONS)
    def __init__(
        self,
        model: VAE,
        device: torch.device | str = "auto",
        learning_rate: float = DEFAULTS.learning_rate,
        beta: float = DEFAULTS.beta,
        *,
        optimizer: Optimizer | OptimizerName = DEFAULTS.optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        binarization: Binarization = "dynamic",
        seed: int = 0,
        **options: Any,
    ) -> None:
        named: dict[str, Any] = {"device": str(device), "learning_rate": learning_rate, "beta": beta}
        named |= {"optimizer": optimizer} if isinstance(optimizer, str) else {}
        if given := sorted(NO_OPTIONS & options.keys()):
            raise ConfigError(
                f"VAETrainer takes no {', '.join(given)}: it trains in one process, for the epochs that train() gets"
            )
        named["epochs"] = 2**31 - 1  # a placeholder: `train` checks the options that depend on it
        self.params = checked(TrainParams, named | options)
        check_binarization(binarization)
        self.model, self.binarization, self.seed = model, binarization, seed
        self.optimizer, self.scheduler = None if isinstance(optimizer, str) else optimizer, scheduler
        self.hardware = resolve(self.params)
        self.history = pd.DataFrame()
        self._fitted: Fitted | None = None

    def __repr__(self) -> str:
        trained = f"best epoch {self._fitted.best_epoch} of {len(self.history)}" if self._fitted else "not trained"
        return f"{type(self).__name__}({self.hardware}; {trained})"

    def train(
        self,
        train_loader: DataLoader[Any] | Split,
        val_loader: DataLoader[Any] | Split,
        epochs: int = DEFAULTS.epochs,
        *,
        on_epoch: OnEpoch | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Train for `epochs` and return the history, one row per epoch. The model gets the weights of the best epoch.

        Loaders yield images [B, D] or [B, C, H, W] in [0, 1], alone or followed by their labels. The best epoch has
        the lowest −ELBO on `val_loader`, whose images must not be trained on.

        Called again, it trains on for further `epochs`: from the weights and optimizer state of the last epoch, with
        the best epoch chosen among all of them. Only the learning-rate schedule starts anew. Raises what `fit` raises.
        """
        self._fitted = fit(
            self.model,
            train_loader,
            val_loader,
            checked(TrainParams, self.params.model_dump() | {"epochs": epochs}),
            self.hardware,
            binarization=self.binarization,
            seed=self.seed,
            on_epoch=on_epoch,
            progress=progress,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            after=self._fitted,
        )
        self.history = pd.DataFrame(self._fitted.history)
        return self.history

    def plot_history(self) -> Figure:
        """−ELBO, reconstruction and KL by epoch."""
        from vae.plots.history import training_history  # the one upward import: training doesn't need matplotlib

        return training_history(self.history)

    def save(self, path: Path | str) -> None:
        """Write the model, for `VAE.load`."""
        self.model.save(path)
