"""Plot the figures: model, history and evaluation -> figures/*.png."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch

from vae import tracking
from vae.config import Params
from vae.data.datasets import load
from vae.device import Hardware
from vae.errors import DataError
from vae.evaluation.likelihood import Evaluation
from vae.files import sha256
from vae.plots.report import save_figures
from vae.workflow.command_line import run_stage
from vae.workflow.stages import FIGURES, METRICS, MODEL, RAW, load_model, read_dataset, training_run


def main(params: Params) -> None:
    """Plot and save every figure, and add them to the MLflow run of the training."""
    model = load_model(params, "cpu")  # a few hundred images need no accelerator
    result = Evaluation(read(METRICS / "test_nll.npz", bounds), *read(METRICS / "latents.npz", posteriors))
    history = read(METRICS / "history.csv", lambda path: pd.read_csv(path, dtype=float).dropna(subset="improved"))
    tracking.connect()
    figures = save_figures(model, load(RAW, "train"), load(RAW, "test"), result, history, params, FIGURES)
    print(f"{len(figures)} figures in {FIGURES}/")
    cpu = Hardware(torch.device("cpu"), "fp32", compile=False)
    with tracking.resume(params, cpu, read_dataset(), sha256(MODEL), training_run(params)) as run:
        for path in figures:
            run.log_artifact(path, "figures")


def posteriors(path: Path) -> tuple[Any, Any]:
    """The posterior means and log-variances of the test images, [N, L] each."""
    with np.load(path) as latents:
        return latents["mu"], latents["logvar"]


def bounds(path: Path) -> pd.DataFrame:
    """The ELBO and KL of the test images, in the columns that `Evaluation` has them in."""
    with np.load(path) as images:
        return pd.DataFrame({"elbo": -images["neg_elbo"], "kl": images["kl"]})


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Read the output of an earlier stage. Raises DataError, naming the file, where it can't be read."""
    try:
        return reader(path)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}): `dvc repro` writes it again") from None


if __name__ == "__main__":
    run_stage(main, __doc__)
