"""Binarization of grey images."""

from typing import get_args

import torch
from torch import Tensor

from vae.config import Binarization
from vae.errors import ConfigError

BINARIZATION_SEED = 0


def check_binarization(binarization: str) -> None:
    """Raise ConfigError for an unknown binarization."""
    if binarization not in get_args(Binarization):
        raise ConfigError(f"binarization is {binarization!r}, allowed are {', '.join(get_args(Binarization))}")


def check_colour(binarization: Binarization, channels: int) -> None:
    """Raise ConfigError for binarized images in colour."""
    if channels > 1 and binarization != "none":
        raise ConfigError(
            f"data.binarization is '{binarization}', which is for grey images, and these are in colour: "
            "set data.binarization: none (or data.channels: 1)"
        )


def sample_binary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Sample each pixel from a Bernoulli distribution whose mean is its grey value (Salakhutdinov & Murray 2008).

    Values are 0 and 255 for uint8 images, 0 and 1 for floats in [0, 1]. Exact for uint8: a uniform integer in 0..254
    is less than `value` with probability value / 255.
    """
    if images.is_floating_point():
        return torch.bernoulli(images, generator=generator)
    threshold = torch.randint(0, 255, images.shape, dtype=torch.uint8, device=images.device, generator=generator)
    return (threshold < images).to(torch.uint8) * 255


def binarize_once(images: Tensor, binarization: Binarization) -> Tensor:
    """Return the fixed binarization of `images` for evaluation (with `static`, for training too), in the same dtype.

    `dynamic` and `static` sample with a fixed seed on the CPU, so that the result is the same on every machine.
    Raises ConfigError for an unknown binarization.
    """
    check_binarization(binarization)
    if binarization == "none":
        return images
    if binarization == "threshold":
        white = to_float(images) > 0.5
        return white.to(images.dtype) * (1 if images.is_floating_point() else 255)
    generator = torch.Generator().manual_seed(BINARIZATION_SEED)
    return sample_binary(images.cpu(), generator).to(images.device)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 in [0, 1]; floats are returned unchanged, other types (0 and 1) as float32."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images if images.is_floating_point() else images.float()
