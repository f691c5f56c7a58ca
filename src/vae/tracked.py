"""A training that is shown, saved and tracked in MLflow as it goes: that of the train stage and of `train-vae`."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vae import tracking
from vae.config import Params
from vae.data import load, split_validation
from vae.device import Hardware, resolve
from vae.files import sha256, write_atomically
from vae.model import VAE
from vae.training import Fitted, Record, fit


@dataclass(frozen=True)
class Training:
    """A finished training: the model has its best epoch's weights, `summary` is flat, the run is that of MLflow."""

    model: VAE
    hardware: Hardware
    fitted: Fitted
    summary: dict[str, Any]
    run_id: str


@contextmanager
def tracked_training(
    params: Params, dataset: Mapping[str, Any], raw: Path, weights: Path, history: Path
) -> Iterator[Training]:
    """Train on the images in `raw`, which `dataset` records, writing the best `weights` and the `history` each epoch.

    Its run is open until the block ends, so that what is logged there belongs to it.
    """
    hardware = resolve(params.train)
    train, validation = split_validation(load(raw, "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.start_from(train.images)
    tracking.connect()
    print(f"{dataset['name']}: {len(train):,} to train on, {len(validation):,} to validate; {hardware}")

    records: list[Record] = []

    def on_epoch(record: Record) -> None:
        # Files first: whatever ends this process, the best weights so far and their curve are on the disk.
        if record["improved"]:
            model.save(weights)
        records.append(record)
        write_atomically(history, pd.DataFrame(records).to_csv(index=False))
        print(describe(record, params.train.epochs), flush=True)
        with tracking.tolerant():
            curves = {name: value for name, value in record.items() if "/" in name}
            tracking.log_metrics(curves, step=int(record["epoch"]))

    with tracking.run(tracking.run_name(params)) as run_id:
        with tracking.tolerant():
            tracking.log_params(params, hardware)
            tracking.log_dataset(dataset, raw.parent)
        started = time.perf_counter()
        fitted = fit(
            model,
            train,
            validation,
            params.train,
            hardware,
            binarization=params.data.binarization,
            seed=params.seed,
            on_epoch=on_epoch,
            progress=True,
        )
        summary = {
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            **{key: value for key, value in fitted.best.items() if key.startswith("val/")},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(time.perf_counter() - started, 2),
        }
        print(f"best epoch {fitted.best_epoch}: validation −ELBO {fitted.best['val/neg_elbo']:.2f} nats per image")
        yield Training(model, hardware, fitted, summary, run_id)
        with tracking.tolerant():
            tracking.log_training(summary, sha256(weights), [weights, history])


def describe(record: Record, epochs: int) -> str:
    """One line on an epoch."""
    return (
        f"epoch {record['epoch']:>3.0f}/{epochs}  −ELBO {record['train/neg_elbo']:7.2f}"
        f"  validation {record['val/neg_elbo']:7.2f} = reconstruction {record['val/reconstruction']:6.2f}"
        f" + KL {record['val/kl']:5.2f}  {record['train/images_per_second']:,.0f} images/s"
        + ("" if record["improved"] else "  (not better)")
    )
