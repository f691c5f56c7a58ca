"""What the pipeline's stages share: the paths of their files, and how they read and write them."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML
from torch import Tensor

from vae.config import DataParams, Params
from vae.data.binarization import binarize_once
from vae.data.datasets import load
from vae.data.download import IMAGE_SHAPE, class_names, fetch
from vae.device import Hardware
from vae.errors import ConfigError, DataError, WeightsError
from vae.files import fingerprint, project_root, sha256, write_json
from vae.models.vae import VAE

RAW = Path("data/raw")
DATASET = Path("data/dataset.json")
MODEL = Path("models/vae.safetensors")
RUN = Path("models/run.json")
METRICS = Path("metrics")
FIGURES = Path("figures")
EXPLORER = Path("explorer/index.html")


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
        if "classes" not in record:
            record["classes"] = class_names(record["name"])
        return {key: record[key] for key in ("name", "source", "image_shape", "classes", "counts", "sha256")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} can't be read ({error}): `dvc repro -f download` writes it") from None


def some_test_images(params: Params, count: int) -> Tensor:
    """`count` test images, evenly spaced, binarized as in the evaluation.

    Raises ConfigError where the model is conditional: what takes these images, gives it no labels.
    """
    if params.model.conditional:
        raise ConfigError("model.conditional is true, allowed here is false: the model is given no labels")
    images = load(RAW, "test").images
    return binarize_once(images, params.data.binarization)[evenly_spaced(len(images), count)]


def evenly_spaced(n: int, count: int) -> Tensor:
    """The indices of `count` of `n` images, or of all where they are fewer: [min(n, count)]."""
    count = min(n, count)
    return torch.arange(count) * n // count


def checkpoint_folder(stage: str, params: Params, hardware: Hardware) -> Path:
    """The folder of a stage's checkpoints: one for each combination of the parameters and deps that dvc.yaml lists.

    It is in the project's root, also under `dvc exp run --temp`, which deletes its own folder after an interruption.
    """
    declared = YAML(typ="safe").load(Path("dvc.yaml"))["stages"][stage]
    values = {
        name: value
        for name, value in params.flat().items()
        if any(name == listed or name.startswith(f"{listed}.") for listed in declared["params"])
    }
    # Not the number of threads and processes: resumed with another one, a training is as good, but differs in the last
    # bits.
    values = {name: value for name, value in values.items() if name not in ("train.nproc", "train.timeout")}
    values |= {"torch": torch.__version__, "device": hardware.device.type, "precision": hardware.precision}
    values |= {"compile": hardware.compile}
    return project_root() / ".ckpt" / stage / fingerprint(values, declared["deps"])


def load_model(params: Params, device: Any) -> VAE:
    """The trained model. Raises WeightsError where train.json or params.yaml describe another one."""
    model = VAE.load(MODEL, device)
    if not sha256(MODEL).startswith(_read_json(METRICS / "train.json").get("weights_sha256", "")):
        raise WeightsError(f"{MODEL} is damaged or from another training than {METRICS}: `dvc checkout` restores it")
    theirs, ours = model.params.model_dump(), params.resolved_model.model_dump()
    different = [f"{key}: {value} (params: {ours[key]})" for key, value in theirs.items() if value != ours[key]]
    if different:
        raise WeightsError(f"{MODEL} was trained with other params, {', '.join(different)}: `dvc repro` retrains it")
    return model


def read_evaluation() -> tuple[pd.DataFrame, Any, Any]:
    """What an `Evaluation` is made of: label (if any), ELBO and KL of each test image, and the posteriors [N, L]."""
    return (read_output(METRICS / "test_nll.npz", _bounds), *read_output(METRICS / "latents.npz", _posteriors))


def _bounds(path: Path) -> pd.DataFrame:
    with np.load(path) as images:
        labels = {"label": images["labels"]} if "labels" in images else {}
        return pd.DataFrame({**labels, "elbo": -images["neg_elbo"], "kl": images["kl"]})


def _posteriors(path: Path) -> tuple[Any, Any]:
    with np.load(path) as latents:
        return latents["mu"], latents["logvar"]


def read_output(path: Path, reader: Callable[[Path], Any]) -> Any:
    """Read the output of an earlier stage. Raises DataError, naming the file, where it can't be read."""
    try:
        return reader(path)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error}): `dvc repro` writes it again") from None


def training_run(params: Params) -> str:
    """The MLflow run that trained the weights with these params, as models/run.json records it; "" for another one."""
    run, facts = _read_json(RUN), run_facts(params)
    return str(run["run_id"]) if run.items() >= facts.items() else ""


def run_facts(params: Params) -> dict[str, str]:
    """What models/run.json records beside the run: the checksums of its weights and params."""
    return {"weights_sha256": sha256(MODEL), "params": fingerprint(params.flat())}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file can't be read."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
