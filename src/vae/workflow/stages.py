"""What the pipeline's stages share: where files lie, flags over params.yaml, and one clear line on failure."""

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from vae.config import DataParams, Params, load_params
from vae.data.download import fetch
from vae.device import Hardware
from vae.errors import DataError, VAEError, WeightsError
from vae.files import project_root, sha256, write_json
from vae.models.vae import VAE

RAW = Path("data/raw")
DATASET = Path("data/dataset.json")
MODEL = Path("models/vae.safetensors")
RUN = Path("models/run.json")
METRICS = Path("metrics")
FIGURES = Path("figures")

INTERRUPTED = "`dvc repro` runs this stage again"
RESUMED = "the same command goes on from where it was stopped"
Flags = Mapping[str, Callable[[str], Any]]
FLAGS: Flags = {
    "train.epochs": int,
    "train.batch_size": int,
    "model.latent_dim": int,
    "train.beta": float,
    "train.learning_rate": float,
}


def run_stage(
    main: Callable[..., None],
    description: str | None,
    flags: Flags = FLAGS,
    interrupted: str = INTERRUPTED,
    **switches: str,
) -> None:
    """Run a stage's `main` with params.yaml, as overridden by the command line's flags.

    `interrupted` says, after Ctrl-C, what there is to do. `switches` are flags without a value, by name and help;
    `main` gets them as keyword arguments.
    """
    with errors_in_one_line(interrupted):
        arguments = _parse_flags(description, flags, switches)
        chosen = {name: arguments.pop(name) for name in switches}
        main(load_params(overrides=arguments), **chosen)


@contextmanager
def errors_in_one_line(interrupted: str) -> Iterator[None]:
    """A mistake of the user's ends in one line and exit code 1, Ctrl-C in 130, a termination in 143.

    Never in 0, or DVC would commit what is there by then. `interrupted` says, after Ctrl-C, what there is to do.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except VAEError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interruption:
        print(f"interrupted: {interruption if interruption.args else interrupted}", file=sys.stderr)
        sys.exit(130)


def _parse_flags(description: str | None, flags: Flags, switches: Mapping[str, str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name, convert in flags.items():
        flag = name.split(".")[1]
        spellings = dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}"))
        kind = getattr(convert, "__name__", "value").strip("<>")
        parser.add_argument(*spellings, dest=name, type=convert, metavar=kind.upper(), help=f"{name} for this run")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def mnist_dir() -> Path | None:
    """The folder that the environment variable MNIST_DIR names, relative to the project's root."""
    value = os.environ.get("MNIST_DIR")
    return Path(os.environ.get("DVC_ROOT", ".")) / os.path.expanduser(value) if value else None  # noqa: PTH111


def fetch_dataset(params: DataParams, raw: Path = RAW, dataset: Path = DATASET) -> dict[str, Any]:
    """Keep the images in `raw` when they are right, fetch them otherwise; `dataset` records what they are."""
    try:
        earlier = read_dataset(dataset)
    except DataError:
        earlier = None
    raw.mkdir(parents=True, exist_ok=True)
    record = fetch(params, mnist_dir(), raw, earlier)
    write_json(dataset, record)
    counts = ", ".join(f"{count:,} {part}" for part, count in record["counts"].items())
    print(f"{record['name']}: {counts} images, verified (source: {record['source']})")
    return record


def read_dataset(path: Path = DATASET) -> dict[str, Any]:
    """What was recorded of the data set when it was fetched."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        return {key: record[key] for key in ("name", "source", "counts", "sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read ({error}): `dvc repro -f download` writes it") from None


def checkpoint_folder(stage: str, params: Params, hardware: Hardware) -> Path:
    """Where a stage keeps what it needs to go on: one folder for the parameters, data and code that dvc.yaml lists.

    In the project's folder, also under `dvc exp run --temp`, whose own folder doesn't outlive an interruption.
    """
    declared = YAML(typ="safe").load(Path("dvc.yaml"))["stages"][stage]
    values = {
        name: value
        for name, value in params.flat().items()
        if any(name == listed or name.startswith(f"{listed}.") for listed in declared["params"])
    }
    files = {
        str(file): sha256(file)
        for path in map(Path, declared["deps"])
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    }
    # Not the number of threads: a training that goes on with another one is as good, if not the same to the last bit.
    facts = [values, files, torch.__version__, hardware.device.type, hardware.precision, hardware.compile]
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return project_root() / ".ckpt" / stage / fingerprint


def load_model(params: Params, device: Any) -> VAE:
    """The trained model. Raises WeightsError where it isn't what the training wrote, or what params.yaml describes."""
    model = VAE.load(MODEL, device)
    recorded = _read_run().get("weights_sha256")
    if recorded and recorded != sha256(MODEL):
        raise WeightsError(f"{MODEL} is damaged, or not of the training in {RUN}: `dvc checkout` brings it back")
    theirs, ours = model.params.model_dump(), params.model.model_dump()
    different = [f"{key}: {value} (params: {ours[key]})" for key, value in theirs.items() if value != ours[key]]
    if different:
        raise WeightsError(f"{MODEL} was trained with other params, {', '.join(different)}: `dvc repro` retrains it")
    return model


def write_run(experiment: str, run_id: str) -> None:
    """Record the MLflow run that trained the model, and which weights are its."""
    write_json(RUN, {"experiment": experiment, "run_id": run_id, "weights_sha256": sha256(MODEL)})


def read_run_id() -> str | None:
    """The MLflow run that trained the model; None where that isn't known."""
    run_id = _read_run().get("run_id")
    return str(run_id) if run_id else None


def _read_run() -> dict[str, Any]:
    try:
        content = json.loads(RUN.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
