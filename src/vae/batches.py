"""Batches of binarized images for training: from images kept on the device, or from someone's DataLoader."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization
from vae.data import Split, binarize_once, image_batch, sample_binary, to_float
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
