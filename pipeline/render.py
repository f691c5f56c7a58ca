"""Plot the figures: model, history and evaluation -> figures/*.png."""

from pathlib import Path

import pandas as pd
import torch

from vae import tracking
from vae.config import Params
from vae.data.datasets import load
from vae.device import Hardware
from vae.evaluation.likelihood import Evaluation
from vae.files import sha256
from vae.plots.report import save_figures
from vae.workflow.command_line import run_stage
from vae.workflow.stages import (
    FIGURES,
    METRICS,
    MODEL,
    RAW,
    load_model,
    read_dataset,
    read_evaluation,
    read_output,
    training_run,
)


def main(params: Params) -> None:
    """Plot and save every figure, and add them to the MLflow run of the training."""
    model = load_model(params, "cpu")  # a few hundred images need no accelerator
    result = Evaluation(*read_evaluation())
    history = read_output(METRICS / "history.csv", epochs)
    tracking.connect()
    dataset = read_dataset()
    parts = (load(RAW, "train"), load(RAW, "test"))
    figures = save_figures(model, *parts, result, history, params, FIGURES, dataset["classes"])
    print(f"{len(figures)} figures in {FIGURES}/")
    cpu = Hardware(torch.device("cpu"), "fp32", compile=False)
    with tracking.resume(params, cpu, dataset, sha256(MODEL), training_run(params)) as run:
        for path in figures:
            run.log_artifact(path, "figures")


def epochs(path: Path) -> pd.DataFrame:
    """The history of the training, one row per epoch."""
    return pd.read_csv(path, dtype=float).dropna(subset="improved")


if __name__ == "__main__":
    run_stage(main, __doc__)
