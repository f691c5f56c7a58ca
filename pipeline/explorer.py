"""Make the latent explorer: model and evaluation -> explorer/index.html."""

import json

import torch

from vae import tracking
from vae.config import Params
from vae.data.binarization import binarize_once
from vae.data.datasets import load
from vae.device import Hardware
from vae.evaluation.likelihood import Evaluation
from vae.files import sha256, write_atomically
from vae.plots.latents import has_tsne, tsne
from vae.serving.explorer.build import explorer_page
from vae.workflow.command_line import run_stage
from vae.workflow.stages import (
    EXPLORER,
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
    """Write the page, and add it to the MLflow run of the training."""
    model = load_model(params, "cpu")
    images = binarize_once(load(RAW, "test").images, params.data.binarization)
    result = Evaluation(*read_evaluation())
    metrics = read_output(METRICS / "evaluation.json", lambda path: json.loads(path.read_text()))
    tracking.connect()
    print(f"making the latent explorer{', with a t-SNE of the latents' if has_tsne(result.mu) else ''}")
    dataset = read_dataset()
    page = explorer_page(model, images, result, metrics, params, tsne(result.mu), dataset["classes"])
    write_atomically(EXPLORER, page)
    print(f"{EXPLORER}, {len(page) / 1e6:.1f} MB: `make explore` opens it")
    cpu = Hardware(torch.device("cpu"), "fp32", compile=False)
    with tracking.resume(params, cpu, dataset, sha256(MODEL), training_run(params)) as run:
        run.log_artifact(EXPLORER, "explorer")


if __name__ == "__main__":
    run_stage(main, __doc__)
