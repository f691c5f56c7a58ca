"""Train the VAE: data/raw -> models/vae.safetensors, models/run.json, metrics/train.json, metrics/history.csv."""

import time

import pandas as pd

from vae import tracking
from vae.config import Params
from vae.data import load, split_validation, to_float
from vae.device import resolve
from vae.files import sha256, write_atomically, write_json
from vae.model import VAE
from vae.stages import DATASET, METRICS, MODEL, RAW, RUN, read_dataset, run_stage
from vae.training import Record, fit


def main(params: Params) -> None:
    """Train, keep the best epoch's weights, and open the run that the later stages add to."""
    hardware = resolve(params.train)
    dataset = read_dataset()
    train, validation = split_validation(load(RAW, "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.set_output_bias(to_float(train.images).mean(0))
    tracking.connect()
    print(f"{dataset['name']}: {len(train):,} to train on, {len(validation):,} to validate; {hardware}")

    history: list[Record] = []

    def on_epoch(record: Record) -> None:
        # Files first: whatever ends this process, the best weights so far and their curve are on the disk.
        if record["improved"]:
            model.save(MODEL)
        history.append(record)
        write_atomically(METRICS / "history.csv", pd.DataFrame(history).to_csv(index=False))
        print(describe(record, params.train.epochs), flush=True)
        with tracking.tolerant():
            curves = {name: value for name, value in record.items() if "/" in name}
            tracking.log_metrics(curves, step=int(record["epoch"]))

    with tracking.run(tracking.run_name(params)) as run_id:
        with tracking.tolerant():
            tracking.log_params(params, hardware)
            tracking.log_dataset(dataset, DATASET.parent)
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
        write_json(METRICS / "train.json", summary)
        write_json(RUN, {"experiment": tracking.EXPERIMENT, "run_id": run_id})
        with tracking.tolerant():
            tracking.log_training(summary, sha256(MODEL), [MODEL, METRICS / "history.csv"])
    print(f"best epoch {fitted.best_epoch}: validation −ELBO {fitted.best['val/neg_elbo']:.2f} nats per image")


def describe(record: Record, epochs: int) -> str:
    """One line on an epoch."""
    return (
        f"epoch {record['epoch']:>3.0f}/{epochs}  −ELBO {record['train/neg_elbo']:7.2f}"
        f"  validation {record['val/neg_elbo']:7.2f} = reconstruction {record['val/reconstruction']:6.2f}"
        f" + KL {record['val/kl']:5.2f}  {record['train/images_per_second']:,.0f} images/s"
        + ("" if record["improved"] else "  (not better)")
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
