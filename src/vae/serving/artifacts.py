"""The files of a saved model, and whether they are as they were. Nothing here imports torch, which takes seconds."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model

from vae.errors import DataError, WeightsError, one_line
from vae.files import sha256

ARTIFACTS = ("weights", "evaluation")
IMAGE_SHAPE = "image_shape"  # in the metadata of a saved model


def read_evaluation(path: Path) -> dict[str, Any]:
    """The arrays and the protocol in a file that `Evaluation.write_bounds` wrote. Raises DataError."""
    try:
        with np.load(path) as content:
            return {name: content[name] if content[name].ndim else content[name].item() for name in content.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} can't be read ({error})") from None


def verified(weights: Path, evaluation: Path) -> dict[str, Any]:
    """Read a model's evaluation. Raises DataError, or WeightsError where the weights are not those that it is of."""
    facts = read_evaluation(evaluation)
    if not weights.exists() or sha256(weights) != facts["weights_sha256"]:
        raise WeightsError(f"{weights} is gone or damaged: its SHA-256 is not {facts['weights_sha256']}")
    return facts


def check_artifacts(folder: Path) -> None:
    """Raise DataError or WeightsError where the weights or the evaluation of a saved model are gone or damaged."""
    try:
        saved = Model.load(str(folder)).flavors["python_function"]["artifacts"]
        weights, evaluation = (folder / saved[name]["path"] for name in ARTIFACTS)
    except Exception as error:  # of MLflow, or of YAML's reader
        raise DataError(f"{folder} is not a model of this project, or damaged: {one_line(error)}") from None
    verified(weights, evaluation)


def image_shape(folder: Path) -> tuple[int, int, int]:
    """Channels, height and width of the images of a saved model; those of earlier versions are MNIST's."""
    channels, height, width = (Model.load(str(folder)).metadata or {}).get(IMAGE_SHAPE, (1, 28, 28))
    return channels, height, width
