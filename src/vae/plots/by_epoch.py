"""Pictures of a model in training, made in a tenth of a second, by which MLflow compares epochs and runs."""

import numpy as np
import torch
from PIL import Image

from vae.config import Binarization
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.models.vae import VAE
from vae.plots.figure import Array, class_colours
from vae.plots.image_grids import image_grid, shaped

SIDE = 560  # of the latent space's picture, in pixels
MAGNIFIED = 56  # the side up to which images are magnified
COLUMNS = 20  # reconstructions at most


@torch.no_grad()
def pictures(model: VAE, split: Split, binarization: Binarization, seed: int) -> dict[str, Image.Image]:
    """Samples, reconstructions below their inputs, and the latent space. Takes no random numbers from the training."""
    device = model.output_bias.device
    x = to_float(binarize_once(split.images[:300], binarization)).to(device)
    labels = None if split.labels is None else split.labels[:300].cpu().numpy()
    # Of each class; without labels, the first ten.
    first = np.arange(len(x))[:10] if labels is None else np.unique(labels, return_index=True)[1][:COLUMNS]
    pairs = torch.cat([x[first], model.reconstruct(x[first], None if labels is None else labels[first])])
    samples = model.sample(64, torch.Generator(device).manual_seed(seed))
    mu, images = model.encode(x, labels)[0].cpu().numpy(), shaped(x, model.image_shape)
    found = {
        "samples": _grid(shaped(samples, model.image_shape), 8),
        "reconstructions": _grid(shaped(pairs, model.image_shape), len(first)),
        "latent_space": _map(mu, labels, images, is_ink=binarization != "none" and images.shape[1] == 1),
    }
    return {name: Image.fromarray((picture * 255).astype(np.uint8)) for name, picture in found.items()}


def _grid(images: Array, columns: int) -> Array:
    """A grid in which small images are magnified."""
    zoom = max(1, MAGNIFIED // max(images.shape[2:]))
    magnified: Array = image_grid(images, columns).repeat(zoom, 0).repeat(zoom, 1)
    return magnified


def _map(mu: Array, labels: Array | None, images: Array, *, is_ink: bool) -> Array:
    """Images in the colours of their classes, placed by the first two principal components of posterior means.

    What is no ink keeps its own colours, and has a frame in the colour of its class.
    """
    step = -(-max(images.shape[2:]) // MAGNIFIED)
    images = images[:, :, ::step, ::step].transpose(0, 2, 3, 1)
    height, width = images.shape[1:3]
    centred = mu - mu.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    plane = centred @ (axes * np.sign(axes.max(1) + axes.min(1))[:, None]).T  # the sign is arbitrary
    corners = (plane / np.abs(plane).max(0).clip(1e-9) + 1) / 2 * (SIDE - np.array([width, height]))
    labels = np.zeros(len(mu), dtype=int) if labels is None else labels
    colours = class_colours(labels.max() + 1)[labels]
    canvas = np.ones((SIDE, SIDE, 3))
    for (left, top), colour, image in zip(corners.astype(int), colours, images, strict=True):
        place = canvas[top:, left:][:height, :width]
        if is_ink:
            place -= image * (1 - colour)
        else:
            place[:] = image
            place[[0, -1]] = place[:, [0, -1]] = colour
    return canvas.clip(0, 1)
