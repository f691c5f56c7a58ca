"""The MLflow Model of a VAE: reconstructs, encodes, decodes, samples, and scores images.

Shapes: B images, latents or samples of D = C·H·W pixel values, L latent dimensions.
"""

import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

from vae.config import EvaluateParams
from vae.data.binarization import binarize_once, sample_binary
from vae.errors import DataError, VAEError, one_line
from vae.evaluation.likelihood import importance_samples
from vae.files import PACKAGE
from vae.models.distributions import importance_weighted_bound
from vae.models.networks import ImageShape
from vae.models.vae import VAE
from vae.serving.artifacts import ARTIFACTS, IMAGE_SHAPE, read_evaluation, verified

TASKS = ("reconstruct", "encode", "decode", "sample", "score")
NO_LABEL = -1
MAX_BATCH = 1000  # images, latents or samples of one call
MAX_DECODED = 500_000  # latents that scoring one batch may decode: some ten seconds of a core
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pydantic", "ruamel.yaml", "safetensors", "tqdm", "lazy-loader")

Array = npt.NDArray[Any]


class VAEModel(PythonModel):
    """The model that MLflow loads and calls. Answers are the same for the same input, params and seed.

    Each `task` takes an array, and `sample` ignores it. Images are [B, D], channels first, or [B, H, W, C] as NumPy and
    Pillow have them, grey ones also [B, H, W]; in a batch either from 0 to 1 or from 0 to 255: the latter if they are
    uint8, or if one of them has a pixel above 1. Latents are [B, L]. Mean images, which it answers with, are [B, D] if
    they are grey and [B, H, W, C] in colour.

    - `reconstruct`: images -> mean images, decoded from the posterior means
    - `encode`: images -> `mu` and `logvar` of their posteriors, [B, L] each
    - `decode`: latents -> mean images
    - `sample`: `n` mean images of latents from the prior
    - `score`: images -> `neg_elbo` and `nll` of each in nats, and its `percentile`: the percentage of test images whose
      NLL is at most as high. The NLL is the importance-weighted bound (Burda et al. 2016); with fewer
      `importance_samples` than the default, the evaluation's, it and the percentile tend to be higher.

    A conditional model has a param `label`, the class of all images or latents of the call. Without it, `sample` makes
    images of each class in turn, and the other tasks are refused.

    `score` binarizes images as the model's evaluation does. A score depends on the image and `seed` alone, not on the
    others of the batch.
    """

    vae: VAE
    binarization: Any
    test_nll: Array  # sorted

    def load_context(self, context: Any) -> None:
        """Load the weights and the evaluation. Raises DataError or WeightsError where they are gone or damaged."""
        weights, evaluation = (Path(context.artifacts[name]) for name in ARTIFACTS)
        facts = verified(weights, evaluation)
        self.vae = VAE.load(weights)
        self.binarization, self.test_nll = facts["binarization"], np.sort(facts["nll"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """The answer to `params`, which MLflow has completed. Raises MlflowException for bad input."""
        try:
            with torch.no_grad():
                return self._answer(model_input, **(params or {}))
        except VAEError as error:
            raise MlflowException.invalid_parameter_value(one_line(error)) from None

    def _answer(
        self, array: Array, task: str, n: int, importance_samples: int, seed: int, label: int = NO_LABEL
    ) -> Any:
        given = None if label == NO_LABEL else label
        match task:
            case "reconstruct":
                return self._shown(self.vae.reconstruct(self._images(array), given))
            case "encode":
                mu, logvar = self.vae.encode(self._images(array), given)
                return {"mu": mu.numpy(), "logvar": logvar.numpy()}
            case "decode":
                return self._shown(self.vae.images(self._latents(array), given))
            case "sample":
                _check("n", n, MAX_BATCH)
                return self._shown(self.vae.sample(n, torch.Generator().manual_seed(seed), labels=given))
            case "score":
                images = self._images(array)
                _check("importance_samples", importance_samples, MAX_DECODED // len(images))
                return self._score(images, importance_samples, seed, given)
        raise DataError(f"task is {task!r}, allowed are {', '.join(TASKS)}")

    def _images(self, array: Array) -> Tensor:
        """Images of a request as float32 [B, D] in [0, 1]."""
        pixels = _numbers(array, "images")
        allowed = image_forms(self.vae.image_shape)
        if pixels.shape[1:] not in allowed:
            forms = " and ".join(f"(B, {', '.join(map(str, form))})" for form in allowed)
            raise DataError(f"images have shape {pixels.shape}, allowed are {forms}")
        low, high = pixels.min(), pixels.max()
        if low < 0 or high > 255:
            raise DataError(f"pixels are from {low:g} to {high:g}, allowed are 0 to 1 and 0 to 255")
        scale = 255 if high > 1 or array.dtype == np.uint8 else 1
        pixels = pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels
        return torch.from_numpy(pixels.reshape(len(pixels), -1) / scale).float()

    def _shown(self, images: Tensor) -> Array:
        return shown(images.numpy(), self.vae.image_shape)

    def _latents(self, array: Array) -> Tensor:
        return torch.from_numpy(_numbers(array, "latents")).float()  # VAE.decode checks the shape

    def _score(self, images: Tensor, samples: int, seed: int, label: int | None) -> pd.DataFrame:
        params, bounds = EvaluateParams(importance_samples=samples), []
        for image in images.split(1):  # one by one, so that a score depends on no other image
            # Not the seed itself: with the same noise for all images, errors would not average out over them.
            pixels = (255 * image).round().byte().numpy().tobytes()
            generator = torch.Generator().manual_seed(zlib.crc32(pixels, seed % 2**32))
            binary = self._binarized(image, generator)
            posterior = self.vae.encode(binary, label)
            nll, kl, log_weights = importance_samples(self.vae, binary, posterior, params, generator)
            bounds.append(torch.cat([nll.mean(-1) + kl.sum(1), -importance_weighted_bound(log_weights)]))
        neg_elbo, nlls = torch.stack(bounds, 1).double().numpy()
        percentile = 100 * np.searchsorted(self.test_nll, nlls, side="right") / len(self.test_nll)
        return pd.DataFrame({"neg_elbo": neg_elbo, "nll": nlls, "percentile": percentile})

    def _binarized(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.binarization in ("dynamic", "static"):
            return sample_binary(images, generator)
        return binarize_once(images, self.binarization)


def image_forms(image_shape: ImageShape) -> list[tuple[int, ...]]:
    """The shapes that an image may have in a request."""
    channels, height, width = image_shape
    flat, grey, colour = (channels * height * width,), (height, width), (height, width, channels)
    return [flat, grey, colour] if channels == 1 else [flat, colour]


def shown(images: Array, image_shape: ImageShape) -> Array:
    """Images [B, D] as answers have them: grey ones as they are, [B, H, W, C] in colour."""
    return images if image_shape[0] == 1 else images.reshape(-1, *image_shape).transpose(0, 2, 3, 1)


def _numbers(array: Any, what: str) -> npt.NDArray[np.float64]:
    """A request's array as finite numbers. Raises DataError where it isn't such an array, empty, or too large."""
    try:
        numbers = np.asarray(array).astype(np.float64)
    except (ValueError, TypeError):
        raise DataError(f"{what} are not an array of numbers with rows of equal length") from None
    if numbers.ndim < 2:
        raise DataError(f"{what} have shape {numbers.shape}, allowed is one row for each of them")
    _check(f"number of {what}", len(numbers), MAX_BATCH)
    if not np.isfinite(numbers).all():
        raise DataError(f"{what} contain NaN or infinity")
    return numbers


def _check(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise DataError(f"{name} is {value:,}, allowed here is 1 to {largest:,}")


def save_model(path: Path, weights: Path, evaluation: Path, example: Array, image_shape: ImageShape) -> None:
    """Write an MLflow Model to the folder `path`: weights, the evaluation's test_nll.npz, and this package's code.

    `example` is a batch of images [B, D], which MLflow shows as the input example.
    """
    forms = [f"[B, {', '.join(map(str, form))}]" for form in image_forms(image_shape)]
    samples = read_evaluation(evaluation)["importance_samples"]
    params = [
        ParamSpec("task", DataType.string, "reconstruct"),
        ParamSpec("n", DataType.long, 16),
        ParamSpec("importance_samples", DataType.long, samples),
        ParamSpec("seed", DataType.long, 0),
    ]
    example_params: dict[str, Any] = {"task": "reconstruct"}
    if VAE.load(weights).classes:
        params += [ParamSpec("label", DataType.long, NO_LABEL)]
        example_params["label"] = 0
    anything = Schema([TensorSpec(np.dtype(object), (-1,))])  # MLflow has no schema for two shapes: the model checks
    pyfunc.save_model(
        path=str(path),
        python_model=str(PACKAGE / "serving" / "model_code.py"),
        code_paths=[str(PACKAGE)],
        artifacts=dict(zip(ARTIFACTS, map(str, (weights, evaluation)), strict=True)),
        signature=ModelSignature(anything, params=ParamSchema(params)),
        input_example=(shown(example, image_shape), example_params),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        metadata={
            "tasks": ", ".join(TASKS),
            "images": f"{', '.join(forms)}; from 0 to 1 or from 0 to 255",
            IMAGE_SHAPE: list(image_shape),
        },
    )
