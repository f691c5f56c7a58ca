"""Batches of binarized images for training: from images kept on the device, or from someone's DataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization
from vae.data.binarization import binarize_once, sample_binary, to_float
from vae.data.datasets import Split
from vae.errors import ConfigError, DataError


def all_images(part: Split | DataLoader[Any], input_dim: int) -> Tensor:
    """All images of a split or a loader, [N, D]. Raises DataError where there are none."""
    images = [part.images] if isinstance(part, Split) else [image_batch(batch, input_dim) for batch in part]
    if not sum(map(len, images)):
        raise DataError("there are no images to train or validate on")
    return torch.cat(images)


class Resident:
    """Images kept on the device, where they are shuffled and binarized: no step waits for the host."""

    def __init__(self, images: Tensor, batch_size: int, binarization: Binarization, generator: torch.Generator) -> None:
        self.dynamic = binarization == "dynamic"
        images = images if self.dynamic else binarize_once(images, binarization)
        self.images, self.batch_size, self.generator = images.to(generator.device), batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        for index in order.split(self.batch_size):
            images = self.images.index_select(0, index)  # on the CPU, ten times faster than self.images[index]
            yield to_float(sample_binary(images, self.generator) if self.dynamic else images)


class Streamed:
    """A DataLoader's batches, checked and moved to the device one by one."""

    def __init__(
        self, loader: DataLoader[Any], input_dim: int, binarization: Binarization, generator: torch.Generator
    ) -> None:
        self.loader, self.input_dim, self.binarization, self.generator = loader, input_dim, binarization, generator
        if binarization == "static":
            raise ConfigError("'static' binarizes a whole data set once, which a DataLoader's batches don't let it")
        try:
            steps = len(loader)
        except TypeError:
            raise DataError("the DataLoader must have a length: an IterableDataset needs __len__") from None
        if not steps:
            raise DataError("the DataLoader yields nothing to train on")

    @property
    def generators(self) -> list[torch.Generator]:
        """Those of the loader's own, from which it draws its order."""
        own = (self.loader.generator, getattr(self.loader.sampler, "generator", None))
        return [generator for generator in own if generator is not None]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.loader:
            images = image_batch(batch, self.input_dim).to(self.generator.device, non_blocking=True)
            if self.binarization == "dynamic":
                yield to_float(sample_binary(images, self.generator))
            else:
                yield to_float(binarize_once(images, self.binarization))


def image_batch(batch: Any, input_dim: int) -> Tensor:
    """The images of what a DataLoader yields, [B, D]: uint8, or floats in [0, 1].

    `batch` is a tensor [B, D], [B, 28, 28] or [B, 1, 28, 28], or a tuple or list that begins with one.
    Raises DataError where it is something else, or has floats out of that range.
    """
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor):
        raise DataError(f"a batch must be a tensor of images, or begin with one: this is {type(images).__name__}")
    if images.ndim < 2 or images[0].numel() != input_dim:
        raise DataError(f"images have shape {tuple(images.shape)}, allowed is (B, ...) with {input_dim} pixels each")
    if images.dtype == torch.uint8:
        return images.flatten(1)
    low, high = (images.min().item(), images.max().item()) if len(images) else (0.0, 0.0)
    if not 0 <= low <= high <= 1:  # false for NaN, too
        raise DataError(
            f"pixels are from {low:g} to {high:g}, allowed is 0 to 1: leave out Normalize, or divide by the maximum"
        )
    return images.flatten(1).float()


def label_batch(batch: Any) -> Tensor:
    """The labels of what a DataLoader yields, int64 [B]. Raises DataError where it yields images alone."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise DataError("labels are needed here: the DataLoader must yield (images, labels)")
    return torch.as_tensor(batch[1]).long()
