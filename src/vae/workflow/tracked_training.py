"""A training that is shown, saved and tracked in MLflow as it goes: that of the train stage and of `train-vae`."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data.datasets import load, split_validation
from vae.device import Hardware, resolve
from vae.files import sha256, write_atomically, write_json
from vae.models.vae import VAE
from vae.tracking import store as tracking
from vae.tracking.run import Run
from vae.training.loop import Fitted, Record, fit

RUN_ID = "run_id"  # the file with it, beside the checkpoints
WALL_TIMES = ("train/seconds", "train/images_per_second", "val/seconds")  # of an epoch's record


@dataclass(frozen=True)
class Training:
    """A finished training: the model has its best epoch's weights, and the run is still open in MLflow.

    `summary` is flat and holds no wall time: the same training gives the same summary.
    """

    model: VAE
    hardware: Hardware
    fitted: Fitted
    summary: dict[str, Any]
    seconds: float
    run: Run


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

    Wall times are in `timing.json` beside the history.

    Its run in MLflow's `experiment` is open until the block ends, so that what is logged there belongs to it. With a
    folder for `checkpoints`, an interrupted training goes on, in the same run, where it was stopped; the folder is
    deleted once the block has ended well.
    """
    hardware = resolve(params.train)
    train, validation = split_validation(load(raw, "train"), params.data.validation_size)
    model = VAE.from_params(params.model, params.seed)
    model.initialize_from_data(train.images)
    tracking.connect(experiment)
    print(f"{dataset['name']}: {len(train):,} to train on, {len(validation):,} to validate; {hardware}", flush=True)
    with (
        _checkpoints(checkpoints) as kept,
        tracking.run(name or tracking.run_name(params), run_id=_earlier_run(kept)) as run,
    ):
        earlier = kept.load(hardware.device) if kept else None
        records: list[Record] = earlier["history"] if earlier else []
        # An epoch may have been logged just before the interruption and not be in a checkpoint, or the other way round.
        logged = tracking.epochs_logged(run) if kept else 0

        def log() -> None:
            nonlocal logged
            for record in records[logged:]:
                run.log_metrics({key: value for key, value in record.items() if "/" in key}, step=int(record["epoch"]))
                logged += 1

        def on_epoch(record: Record) -> None:
            # Files first: whatever ends this process, the best weights so far and their curve are on the disk.
            if record["improved"]:
                model.save(weights)
            records.append(record)
            _write_history(history, records)
            print(describe(record, params.train.epochs), flush=True)
            log()

        if kept:
            write_atomically(kept.folder / RUN_ID, run.id)
        if records:
            print(f"going on after epoch {len(records)} of {params.train.epochs}", flush=True)
        tracking.log_params(run, params, hardware)
        tracking.log_dataset(run, dataset, raw.parent)
        log()
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
        summary = _summary(model, fitted)
        print(f"best epoch {fitted.best_epoch}: validation −ELBO {fitted.best['val/neg_elbo']:.2f} nats per image")
        seconds = _seconds(fitted.history)
        yield Training(model, hardware, fitted, summary, seconds, run)
        tracking.log_training(run, summary | {"seconds": seconds}, sha256(weights), [weights, history])
        if kept:
            kept.delete()


@contextmanager
def _checkpoints(folder: Path | None) -> Iterator[Checkpoints | None]:
    """The checkpoints in `folder`, for this process alone: None where there is no folder, or another process has it."""
    with ExitStack() as held:
        kept = Checkpoints(folder) if folder else None
        if folder:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(folder / ".lock", blocking=False))
            except Timeout:
                print("warning: another process is at the same training: this one can't be resumed", file=sys.stderr)
                kept = None
        yield kept


def _summary(model: VAE, fitted: Fitted) -> dict[str, Any]:
    return {
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.history),
        **{key: value for key, value in fitted.best.items() if key.startswith("val/") and key not in WALL_TIMES},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _seconds(records: list[Record]) -> float:
    return round(sum(record["train/seconds"] + record["val/seconds"] for record in records), 2)


def _write_history(path: Path, records: list[Record]) -> None:
    """Write metrics, which are functions of the inputs, to `path`, and wall times to `timing.json` beside it."""
    write_atomically(path, pd.DataFrame(records).drop(columns=[*WALL_TIMES]).to_csv(index=False))
    epochs = [{name: record[name] for name in ("epoch", *WALL_TIMES)} for record in records]
    write_json(path.with_name("timing.json"), {"seconds": _seconds(records), "epochs": epochs})


def _earlier_run(kept: Checkpoints | None) -> str | None:
    """The run of the training that left checkpoints."""
    try:
        return (kept.folder / RUN_ID).read_text() if kept else None
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
