"""Binarization: how grey pixels become black and white."""

import torch
from torch import Tensor

from vae.config import Binarization

BINARIZATION_SEED = 0


def sample_binary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel white with the probability that it gives (Salakhutdinov & Murray 2008).

    uint8 give uint8 0 or 255, floats in [0, 1] give 0 or 1. Exact: a whole number below 255 is less than `value` with
    probability value / 255.
    """
    if images.is_floating_point():
        return torch.bernoulli(images, generator=generator)
    threshold = torch.randint(0, 255, images.shape, dtype=torch.uint8, device=images.device, generator=generator)
    return (threshold < images).to(torch.uint8) * 255


def binarize_once(images: Tensor, binarization: Binarization) -> Tensor:
    """The one fixed version of `images` that is evaluated on (and, with `static`, trained on), of the same type.

    `dynamic` and `static` are drawn from a fixed seed on the CPU, the same on every machine.
    """
    if binarization == "none":
        return images
    if binarization == "threshold":
        white = to_float(images) > 0.5
        return white.to(images.dtype) * (1 if images.is_floating_point() else 255)
    generator = torch.Generator().manual_seed(BINARIZATION_SEED)
    return sample_binary(images.cpu(), generator).to(images.device)


def to_float(images: Tensor) -> Tensor:
    """What the model sees: float32 in [0, 1], from uint8; floats are that already."""
    return images if images.is_floating_point() else images.float().div_(255)
