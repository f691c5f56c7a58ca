"""A training that is printed, saved and logged to MLflow epoch by epoch: that of the train stage and of `train-vae`."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout

from vae import tracking
from vae.checkpoints import Checkpoints
from vae.config import Params
from vae.data.datasets import Split, load, split_validation
from vae.device import Hardware, resolve
from vae.files import sha256, write_atomically, write_json
from vae.models.vae import VAE
from vae.plots.by_epoch import pictures
from vae.training.loop import Fitted, OnEpoch, Record, fit, new_model

RUN_ID = "run_id"  # the file in the folder of checkpoints that holds the ID of the training's MLflow run
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
    run: tracking.Run


@dataclass(frozen=True)
class _Setup:
    """What is trained, on what: the same in each process of a data-parallel training."""

    params: Params
    hardware: Hardware
    model: VAE
    train: Split
    validation: Split

    @classmethod
    def of(cls, params: Params, dataset: Mapping[str, Any], raw: Path) -> Self:
        train, validation = split_validation(load(raw, "train"), params.data.validation_size)
        hardware = resolve(params.train, dataset["counts"]["train"])
        return cls(params, hardware, new_model(params, dataset, train.images), train, validation)

    def fit(self, on_epoch: OnEpoch | None = None, checkpoints: Checkpoints | None = None) -> Fitted:
        return fit(
            self.model,
            self.train,
            self.validation,
            self.params.train,
            self.hardware,
            binarization=self.params.data.binarization,
            seed=self.params.seed,
            on_epoch=on_epoch,
            progress=True,
            checkpoints=checkpoints,
        )


def take_part(params: Params, dataset: Mapping[str, Any], raw: Path) -> None:
    """Compute this process's share of a training that the first process tracks; nothing is written or logged."""
    _Setup.of(params, dataset, raw).fit()


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

    Wall times are written to `timing.json` beside the history. The MLflow run is open until the block ends. With a
    folder for `checkpoints`, an interrupted training is resumed, in the same run; the folder is deleted at the end.
    """
    setup = _Setup.of(params, dataset, raw)
    hardware, model, train, validation = setup.hardware, setup.model, setup.train, setup.validation
    tracking.connect(experiment)
    print(f"{dataset['name']}: {len(train):,} to train on, {len(validation):,} to validate\n{hardware}", flush=True)
    with ExitStack() as stack:
        saved = _own_checkpoints(checkpoints, stack) if checkpoints else None
        run_id = _interrupted_run(saved) if saved else ""
        run = stack.enter_context(tracking.open_run(name or tracking.run_name(params), run_id, experiment))
        state = saved.load(hardware.device) if saved else None
        records: list[Record] = state["history"] if state else []
        # An interruption may come between an epoch's checkpoint and its logging, in either order.
        logged = run.last_step("val/neg_elbo") if saved else 0

        def log(record: Record) -> None:
            if record["epoch"] > logged:
                metrics = {name: value for name, value in record.items() if "/" in name}
                run.log_metrics(metrics, step=int(record["epoch"]))

        def on_epoch(record: Record) -> None:
            # Files first: however this process ends, the best weights so far and their history are on the disk.
            if record["improved"]:
                model.save(weights)
            records.append(record)
            _write_history(history, records)
            print(describe(record, params.train.epochs), flush=True)
            _log_pictures(run, model, validation, params, int(record["epoch"]), logged)
            log(record)

        if saved:
            write_atomically(saved.folder / RUN_ID, run.id)
        if records:
            print(f"resuming after epoch {len(records)} of {params.train.epochs}", flush=True)
        tracking.log_settings(run, params, hardware, dataset)
        run.log_dataset(dataset["name"], next(iter(dataset["sha256"].values()))[:8], raw.parent)
        for record in records:
            log(record)
        fitted = setup.fit(on_epoch, saved)
        _log_pictures(run, model, validation, params, len(fitted.history), at_end=True)
        model.save(weights)  # the best epoch may be from before an interruption, and its files may be lost
        _write_history(history, fitted.history)
        summary, seconds = _summary(model, fitted), _seconds(fitted.history)
        print(f"best epoch {fitted.best_epoch}: validation −ELBO {fitted.best['val/neg_elbo']:.2f} nats per image")
        yield Training(model, hardware, fitted, summary, seconds, run)
        metrics = {name: value for name, value in summary.items() if name.startswith("val/")}
        run.log_metrics(metrics | {"seconds": seconds}, prefix="summary/")
        run.log_tags({name: value for name, value in summary.items() if name not in metrics})
        run.log_tags({"model.sha256": sha256(weights)})
        for path in (weights, history):
            run.log_artifact(path)
        if saved:
            saved.delete()


def _log_pictures(
    run: tracking.Run, model: VAE, validation: Split, params: Params, epoch: int, logged: int = 0, at_end: bool = False
) -> None:
    """Log pictures of the model after epochs 1, 2, 4, 8, … and, with the weights of the best epoch, at the end.

    If the last epoch is one of these, there are no more at the end. Epochs up to `logged` have theirs.
    """
    if epoch > logged and math.log2(epoch).is_integer() != at_end:
        for name, picture in pictures(model, validation, params.data.binarization, params.seed).items():
            run.log_image(name, picture, epoch)


def _own_checkpoints(folder: Path, stack: ExitStack) -> Checkpoints | None:
    """The checkpoints in `folder`, for this process alone; None if another process uses them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(folder / ".lock", blocking=False))
        return Checkpoints(folder)
    except Timeout:
        print("warning: another process runs the same training: this one can't be resumed", file=sys.stderr)
        return None


def _interrupted_run(saved: Checkpoints) -> str:
    path = saved.folder / RUN_ID
    return path.read_text() if path.exists() else ""


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
    table = pd.DataFrame(records).drop(columns=[*WALL_TIMES])
    write_atomically(path, table.to_csv(index=False, float_format="%.6g"))
    epochs = [{name: record[name] for name in ("epoch", *WALL_TIMES)} for record in records]
    write_json(path.with_name("timing.json"), {"seconds": _seconds(records), "epochs": epochs})


def describe(record: Record, epochs: int) -> str:
    """One line on an epoch: the −ELBO in training, and in validation with its two terms."""
    speed = f"{record['train/images_per_second']:,.0f} images/s" if record["improved"] else "not better"
    return (
        f"epoch {record['epoch']:>3.0f}/{epochs}  −ELBO {record['train/neg_elbo']:6.2f}"
        f"  val {record['val/neg_elbo']:6.2f} = {record['val/reconstruction']:6.2f} + KL {record['val/kl']:5.2f}"
        f"  {speed}"
    )
