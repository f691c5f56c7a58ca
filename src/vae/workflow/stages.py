"""What the pipeline's stages share: the paths of their files, and how they read and write them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from vae.config import DataParams, Params
from vae.data.download import IMAGE_SHAPE, class_names, fetch
from vae.device import Hardware
from vae.errors import DataError, WeightsError
from vae.files import project_root, sha256, write_json
from vae.models.vae import VAE

RAW = Path("data/raw")
DATASET = Path("data/dataset.json")
MODEL = Path("models/vae.safetensors")
RUN = Path("models/run.json")
METRICS = Path("metrics")
FIGURES = Path("figures")


def mnist_dir() -> Path | None:
    """Return the folder in the environment variable MNIST_DIR, relative to the project's root, or None."""
    value = os.environ.get("MNIST_DIR")
    return Path(os.environ.get("DVC_ROOT", ".")) / os.path.expanduser(value) if value else None  # noqa: PTH111


def fetch_dataset(params: DataParams, raw: Path = RAW, dataset: Path = DATASET) -> dict[str, Any]:
    """Download the data set to `raw` unless it is there already, and describe it in `dataset`."""
    try:
        earlier = read_dataset(dataset)
    except DataError:
        earlier = None
    raw.mkdir(parents=True, exist_ok=True)
    record = fetch(params, mnist_dir(), raw, earlier)
    write_json(dataset, record)
    counts = ", ".join(f"{count:,} {part}" for part, count in record["counts"].items())
    print(f"{record['name']}: {counts} images, verified")
    return record


def read_dataset(path: Path = DATASET) -> dict[str, Any]:
    """Read data/dataset.json; one without image shape and classes, from an earlier version, is completed."""
    try:
        record = {"image_shape": IMAGE_SHAPE, **json.loads(path.read_text())}
        record["classes"] = record.get("classes") or class_names(record["name"])
        return {key: record[key] for key in ("name", "source", "image_shape", "classes", "counts", "sha256")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
