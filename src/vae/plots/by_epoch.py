"""Pictures of a model in training, made in a tenth of a second, by which MLflow compares epochs and runs."""

import numpy as np
import torch
from PIL import Image

from vae.config import Binarization
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.models.vae import VAE
from vae.plots.figure import Array
from vae.plots.image_grids import image_grid
from vae.plots.latents import CLASS_COLOURS


@torch.no_grad()
def pictures(model: VAE, split: Split, binarization: Binarization, seed: int) -> dict[str, Image.Image]:
    """Samples, reconstructions below their inputs, and the latent space. Takes no random numbers from the training."""
    device = model.output_bias.device
    x, labels = to_float(binarize_once(split.images[:300], binarization)).to(device), split.labels[:300].cpu().numpy()
    first = np.unique(labels, return_index=True)[1]  # of each class
    pairs = torch.cat([x[first], model.reconstruct(x[first])]).cpu().numpy()
    samples = model.sample(64, torch.Generator(device).manual_seed(seed)).cpu().numpy()
    double = np.ones((2, 2))  # a pixel becomes four
    found = {
        "samples": np.kron(image_grid(samples, 8), double),
        "reconstructions": np.kron(image_grid(pairs, len(first)), double),
        "latent_space": _map(model.encode(x)[0].cpu().numpy(), labels, x.cpu().numpy()),
    }
    return {name: Image.fromarray((picture * 255).astype(np.uint8)) for name, picture in found.items()}


def _map(mu: Array, labels: Array, x: Array, pixels: int = 560) -> Array:
    """Images in the colours of their classes, placed by the first two principal components of posterior means."""
    centred, side = mu - mu.mean(0), round(x.shape[1] ** 0.5)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    plane = centred @ (axes * np.sign(axes.max(1) + axes.min(1))[:, None]).T  # the sign is arbitrary
    corners = ((plane / np.abs(plane).max(0).clip(1e-9) + 1) / 2 * (pixels - side)).astype(int)
    canvas = np.ones((pixels, pixels, 3))
    for corner, label, image in zip(corners, labels, x.reshape(-1, side, side, 1), strict=True):
        ink = 1 - np.array(CLASS_COLOURS[int(label) % len(CLASS_COLOURS)])
        canvas[corner[-1] :, corner[0] :][:side, :side] -= image * ink
    return canvas.clip(0, 1)
