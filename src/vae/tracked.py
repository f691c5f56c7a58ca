"""A training that is shown, saved and tracked in MLflow as it goes: that of the train stage and of `train-vae`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vae import tracking
from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data import load, split_validation
from vae.device import Hardware, resolve
from vae.files import sha256, write_atomically
from vae.model import VAE
from vae.training import Fitted, Record, fit

RUN_ID = "run_id"  # the file with it, beside the checkpoints


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
    params: Params,
    dataset: Mapping[str, Any],
    raw: Path,
    weights: Path,
    history: Path,
    *,
    experiment: str = tracking.EXPERIMENT,
    name: str | None = None,
    checkpoints: Path | None = None,
) -> Iterator[Training]:
    """Train on the images in `raw`, which `dataset` records, writing the best `weights` and the `history` each epoch.

    Its run in MLflow's `experiment` is open until the block ends, so that what is logged there belongs to it. With a
    folder for `checkpoints`, an interrupted training goes on, in the same run, where it was stopped; the folder is
    deleted once the block has ended well.
    """
    hardware = resolve(params.train)
    train, validation = split_validation(load(raw, "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.start_from(train.images)
    tracking.connect(experiment)
    print(f"{dataset['name']}: {len(train):,} to train on, {len(validation):,} to validate; {hardware}")

    kept = Checkpoints(checkpoints) if checkpoints else None
    earlier = kept.load(hardware.device) if kept else None
    records: list[Record] = earlier["history"] if earlier else []
    if records:
        print(f"going on after epoch {len(records)} of {params.train.epochs}")

    def on_epoch(record: Record) -> None:
        # Files first: whatever ends this process, the best weights so far and their curve are on the disk.
        if record["improved"]:
            model.save(weights)
        records.append(record)
        _write_history(history, records)
        print(describe(record, params.train.epochs), flush=True)
        with tracking.tolerant():
            curves = {name: value for name, value in record.items() if "/" in name}
            tracking.log_metrics(curves, step=int(record["epoch"]))

    with tracking.run(name or tracking.run_name(params), run_id=_earlier_run(checkpoints)) as run_id:
        if checkpoints:
            write_atomically(checkpoints / RUN_ID, run_id)
        with tracking.tolerant():
            tracking.log_params(params, hardware)
            tracking.log_dataset(dataset, raw.parent)
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
            checkpoints=kept,
        )
        model.save(weights)  # after an interruption, the best epoch may lie before it, and its files may be gone
        _write_history(history, fitted.history)
        summary = {
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
            **{key: value for key, value in fitted.best.items() if key.startswith("val/")},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(sum(record["train/seconds"] + record["val/seconds"] for record in fitted.history), 2),
        }
        print(f"best epoch {fitted.best_epoch}: validation −ELBO {fitted.best['val/neg_elbo']:.2f} nats per image")
        yield Training(model, hardware, fitted, summary, run_id)
        with tracking.tolerant():
            tracking.log_training(summary, sha256(weights), [weights, history])
    if kept:
        kept.delete()


def _write_history(path: Path, records: list[Record]) -> None:
    write_atomically(path, pd.DataFrame(records).to_csv(index=False))


def _earlier_run(checkpoints: Path | None) -> str | None:
    """The run of the training that left `checkpoints`."""
    try:
        return (checkpoints / RUN_ID).read_text() if checkpoints else None
    except OSError:
        return None


def describe(record: Record, epochs: int) -> str:
    """One line on an epoch."""
    return (
        f"epoch {record['epoch']:>3.0f}/{epochs}  −ELBO {record['train/neg_elbo']:7.2f}"
        f"  validation {record['val/neg_elbo']:7.2f} = reconstruction {record['val/reconstruction']:6.2f}"
        f" + KL {record['val/kl']:5.2f}  {record['train/images_per_second']:,.0f} images/s"
        + ("" if record["improved"] else "  (not better)")
    )
