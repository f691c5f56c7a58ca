"""Evaluate on the test set: model -> metrics/evaluate.json, metrics/per_digit.csv, metrics/latents.npz."""

import io

import numpy as np

from vae import tracking
from vae.config import Params
from vae.data import binarize_once, load
from vae.device import resolve
from vae.evaluation import describe, evaluate
from vae.files import write_atomically, write_json
from vae.stages import METRICS, RAW, load_model, read_dataset, read_run_id, run_stage


def main(params: Params) -> None:
    """Measure, write the metric files, and add them to the training's run."""
    hardware = resolve(params.train)
    model = load_model(params, hardware.device)
    dataset = read_dataset()["name"]
    test = load(RAW, "test")
    targets = binarize_once(test.images, params.data.binarization).to(hardware.device)
    tracking.connect()
    result = evaluate(model, targets, test.labels, params.evaluate, seed=params.seed, progress=True)
    metrics = result.metrics()
    by_digit = result.by_digit()

    latents = io.BytesIO()
    np.savez(latents, mu=result.mu, logvar=result.logvar, labels=test.labels.numpy())
    write_atomically(METRICS / "latents.npz", latents.getvalue())
    write_atomically(METRICS / "per_digit.csv", by_digit.to_csv(index=False, float_format="%.4f"))
    write_json(
        METRICS / "evaluate.json",
        {
            **metrics,
            "importance_samples": params.evaluate.importance_samples,
            "binarization": params.data.binarization,
            "dataset": dataset,
        },
    )
    print(describe(metrics, params))
    with tracking.tolerant(), tracking.resume(params, hardware, read_run_id()):
        tracking.log_metrics(metrics, prefix="test/")
        tracking.log_artifact(METRICS / "per_digit.csv")


if __name__ == "__main__":
    run_stage(main, __doc__)
