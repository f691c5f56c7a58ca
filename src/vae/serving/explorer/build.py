"""The latent explorer, one HTML file: the page's code, and what it shows of one model, as a safetensors file in base64.

Shapes: N test images of D = C·H·W pixel values, L latent dimensions.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization, EvaluateParams, Params, resolved_likelihood
from vae.data.batches import first_images
from vae.data.binarization import binarize_once, to_float
from vae.evaluation.kl_decomposition import reference_normal
from vae.evaluation.likelihood import Evaluation, Floats, evaluate
from vae.files import write_atomically
from vae.models.distributions import gaussian_kl_between
from vae.models.vae import VAE

FOLDER = Path(__file__).parent
MAX_BYTES = 2**22  # of the test images: with more, the page has the first of them
# Each after those that it imports: in the page they are one script.
MODULES = [
    *("weights", "random", "network", "priors", "likelihoods", "model", "explored"),
    *("pictures", "digit", "map", "sliders", "drawing", "compare", "app"),
]


def explorer_page(
    model: VAE,
    images: Tensor,
    result: Evaluation,
    metrics: Mapping[str, Any],
    params: Params | None = None,
    embedding: Floats | None = None,
    classes: Sequence[str] = (),
) -> str:
    """The HTML of the explorer of `model` and its evaluation on test `images` [N, D] as the model got them.

    The `metrics` with their protocol are shown, and how the model was trained, from `params`. An `embedding` [n, 2] of
    the first n posterior means, such as a t-SNE, is a second map beside the principal components. `classes` are the
    names of labels; without labels, the page has no tools for classes. That of a conditional model has a choice of the
    class. Equal arguments give equal pages.

    The page computes what `model.params` describes. It does not know methods that a subclass overrides; of an
    architecture, prior or likelihood of your own it says that it can't compute it.
    """
    values = {} if params is None else params.flat()
    shown = {name: value for name, value in values.items() if name.startswith(("seed", "train."))}
    facts = json.dumps({"metrics": metrics, "params": shown, "classes": list(classes)}).encode()
    arrays = {"facts": torch.frombuffer(bytearray(facts), dtype=torch.uint8), **evaluated(model, images, result)}
    if embedding is not None:
        arrays["embedding"] = torch.from_numpy(embedding)[: len(arrays["means"])].float()
    weights = {name: tensor.detach().cpu().half() for name, tensor in model.state_dict().items()}
    contents = weights | {f"explorer.{name}": array.contiguous() for name, array in arrays.items()}
    # One entry of metadata: of several, the order would be random.
    payload = save(contents, metadata={"vae": json.dumps(model.config)})
    parts = {
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "payload": base64.b64encode(payload).decode(),
        "script": script(*MODULES),
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda part: parts[part[1]], page)


def evaluated(model: VAE, images: Tensor, result: Evaluation) -> dict[str, Tensor]:
    """What the page shows of the test images, in as few bytes as will do: posterior means are in fp16.

    Pixel values have one bit if all are black or white, else eight.
    """
    mu, logvar = torch.from_numpy(result.mu), torch.from_numpy(result.logvar)
    center, axes = principal_axes(mu)
    reference = reference_normal(model, mu, logvar)
    pixels = (to_float(images.cpu()) * 255).round().byte().numpy()
    if not (pixels % 255).any():
        pixels = np.packbits(pixels > 0, axis=1)
    count = MAX_BYTES // pixels.shape[1]
    arrays = {
        "images": torch.from_numpy(pixels[:count]),
        "neg_elbo": -torch.tensor(result.images["elbo"].to_numpy()[:count], dtype=torch.float32),
        "means": mu[:count].half(),
        "center": center,
        "axes": axes,
        "reference": torch.stack(reference),
        "kl": gaussian_kl_between(mu, logvar, *reference).mean(0),
    }
    if "label" in result.images:
        labels = result.images["label"].to_numpy()[:count]
        arrays["labels"] = torch.tensor(labels, dtype=torch.uint8 if labels.max() < 256 else torch.float32)
    return arrays


def script(*modules: str) -> str:
    """The modules as one script without imports and exports: a page that is one file can't import another."""
    texts = ((FOLDER / f"{module}.mjs").read_text(encoding="utf-8") for module in modules)
    return re.sub(r"^import .*\n|^export (?=\w)", "", "\n".join(texts), flags=re.MULTILINE)


def principal_axes(mu: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [L] and the first two principal axes [2, L] of posterior means [N, L]; two latents are their own axes.

    An axis's largest component is positive. The second axis of one latent is zero.
    """
    dim = mu.shape[1]
    if dim <= 2:
        return torch.zeros(dim), torch.eye(2, dim)
    center = mu.double().mean(0)
    _, vectors = torch.linalg.eigh(torch.cov(mu.double().T))
    axes = vectors.T[[-1, -2]]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return center.float(), (axes * largest.sign()).float()


def save_explorer(
    model: VAE,
    dataloader: DataLoader[Any],
    path: Path | str,
    num_samples: int = 10_000,
    binarization: Binarization = "dynamic",
    classes: Sequence[str] = (),
) -> None:
    """Write the explorer of `model` with the first `num_samples` images of the loader: one HTML file.

    `binarization` is that of grey pixels; `classes` are the names of labels, if there are any. Raises DataError where
    there are no images, or a conditional model's loader yields no labels, and ConfigError for a `num_samples` below 1
    and a `binarization` that doesn't fit the likelihood.
    """
    resolved_likelihood(model.params, binarization)
    images, labels = first_images(dataloader, model.input_dim, num_samples, labelled=bool(model.classes) or None)
    targets = binarize_once(images, binarization).to(model.output_bias.device)
    params = EvaluateParams(importance_samples=20)
    result = evaluate(model, targets, labels, params)
    protocol = {"binarization": binarization, "importance_samples": params.importance_samples}
    write_atomically(path, explorer_page(model, targets, result, {**result.metrics(), **protocol}, classes=classes))
