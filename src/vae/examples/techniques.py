"""Sizes of the studies, their baseline, the techniques that study 5 compares, and the verdict on each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

NOISE_FACTOR = 3.0  # standard errors that a difference must exceed: among 16 differences, one exceeds two by chance
BASELINE = "baseline"

Changes = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """The size of a study. `width` is that of the two hidden layers of the baseline."""

    train_images: int = 20_000
    validation_images: int = 2_000
    epochs: int = 10
    batch_size: int = 128
    seeds: int = 3
    width: int = 256
    nll_images: int = 2_000
    importance_samples: int = 100
    betas: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    latent_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


FULL = Scale()
QUICK = Scale(
    train_images=2_000,
    validation_images=200,
    epochs=2,
    batch_size=64,
    seeds=2,
    width=48,
    nll_images=100,
    importance_samples=10,
    betas=(0.1, 1.0, 8.0),
    latent_dims=(1, 2, 16),
)


def baseline(scale: Scale) -> Changes:
    """The baseline of all studies, where it differs from the defaults of `ModelParams` and `TrainParams`."""
    network = {"hidden_dims": (scale.width, scale.width), "latent_dim": 20, "prior": "standard"}
    return {
        **network,
        "optimizer": "adam",
        "epochs": scale.epochs,
        "batch_size": scale.batch_size,
        "lr_schedule": "constant",
    }


def techniques(scale: Scale) -> dict[str, dict[str, Changes]]:
    """The changes to compare, by group, as fields of `ModelParams` and `TrainParams`; the baseline comes first."""
    width = scale.width
    return {
        BASELINE: {BASELINE: {}},
        "architecture": {
            "shallow: 1 hidden layer": {"hidden_dims": (width,)},
            "deep: 5 hidden layers": {"hidden_dims": (width,) * 5},
            "deep, not residual": {"hidden_dims": (width,) * 5, "residual": False},
            "wide: twice the units": {"hidden_dims": (2 * width,) * 2},
            "decoder skips": {"decoder_skip": True},
        },
        "learning rate": {f"{name} schedule": {"lr_schedule": name} for name in ("step", "cosine", "one_cycle")},
        "stability": {
            "gradient norm ≤ 1": {"max_grad_norm": 1.0},
            "4 × epochs, early stopping": {"epochs": 4 * scale.epochs, "early_stopping_patience": 3},
        },
        "objective": {
            "KL annealing": {"kl_warmup_epochs": max(2, scale.epochs // 2)},
            "free bits: 0.25 nats": {"free_bits": 0.25},
            "MMD × 1,000": {"mmd": 1000.0},
        },
        "initialization": {name: {"initialization": name} for name in ("xavier", "kaiming", "orthogonal")},
    }


def compared(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of study 5, one row per change, and the runs with their differences to the baseline."""
    baseline = runs[runs["change"] == BASELINE].set_index("seed")["neg_elbo"]
    runs = runs.assign(difference=runs["neg_elbo"] - runs["seed"].map(baseline))
    groups = runs.drop(columns="seed").groupby(["group", "change"], sort=False)
    table = groups.mean()
    table.insert(1, "difference", table.pop("difference"))
    table.insert(2, "spread", groups["difference"].std())
    # The median, so that one change with which training fails for some seeds does not hide the effect of the others.
    noise = NOISE_FACTOR * table["spread"].drop(BASELINE).median() / np.sqrt(runs["seed"].nunique())
    bound = table["spread"].clip(lower=noise)
    verdicts = np.select(
        [table["difference"] < -bound, table["difference"] > bound], ["better", "worse"], "within noise"
    )
    table.insert(3, "noise", noise)
    table.insert(4, "verdict", verdicts)
    table.loc[BASELINE, "verdict"] = BASELINE
    return table.reset_index(), runs
