"""Batches of binarized images for training: from images in memory or in a memory-mapped file, or from a DataLoader."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vae.config import Binarization
from vae.data.binarization import binarize_once, check_binarization, sample_binary, to_float
from vae.data.datasets import Split
from vae.errors import ConfigError, DataError

Batch = tuple[Tensor, Tensor | None]  # images [B, D], and labels [B] where they are asked for

# Beside floats. Others, such as uint16 and complex numbers, have no range that is known to be black to white.
INTEGER_PIXELS = (torch.uint8, torch.bool, torch.int32, torch.int64)
MEMORY_SHARE = 0.5  # of the device's memory that training images may take
READERS = 4  # threads that read batches, and batches that they read ahead


def all_images(part: Split | DataLoader[Any], input_dim: int, labelled: bool = False) -> tuple[Tensor, Tensor | None]:
    """Return all images of a split or a loader, [N, D], and if `labelled` their labels, [N].

    Raises DataError if there are no images, or labels are missing.
    """
    images, labels = [], []
    for batch in [(part.images, part.labels)] if isinstance(part, Split) else part:
        images.append(image_batch(batch, input_dim))
        if labelled:
            labels.append(label_batch(batch))
    if not images:
        raise DataError("there are no images to train or validate on")
    # Not copied if they are one tensor: they may be more than the memory holds.
    return images[0] if len(images) == 1 else torch.cat(images), torch.cat(labels) if labelled else None


def first_images(
    loader: DataLoader[Any], input_dim: int, num_samples: int | None, *, labelled: bool | None
) -> tuple[Tensor, Tensor | None]:
    """The first `num_samples` images of a loader (None: all) as floats [N, D], and if `labelled` their labels [N].

    Both are on the CPU. With `labelled` None, labels are returned if there are any. Raises ConfigError for a
    `num_samples` below 1, and DataError where there are no images, or `image_batch` or `label_batch` refuses them.
    """
    check_num_samples(1 if num_samples is None else num_samples)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        images.append(to_float(image_batch(batch, input_dim)).cpu())
        if labelled or (labelled is None and has_labels(batch)):
            labels.append(label_batch(batch).cpu())
        if num_samples is not None and sum(map(len, images)) >= num_samples:
            break
    if not images:
        raise DataError("the DataLoader yields no images")
    return torch.cat(images)[:num_samples], torch.cat(labels)[:num_samples] if labels else None


def check_num_samples(num_samples: int) -> None:
    """Raise ConfigError for less than one image."""
    if num_samples < 1:
        raise ConfigError(f"num_samples is {num_samples}, allowed is 1 or more")


class ShuffledBatches:
    """Shuffled batches of images, and of labels if given.

    Images are moved to the device's memory if they fit: no step waits for the host then. Otherwise, threads read the
    next batches, from a memory-mapped file if the images are in one. The batches are the same.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        binarization: Binarization,
        generator: torch.Generator,
        labels: Tensor | None = None,
    ) -> None:
        self.labels = None if labels is None else labels.to(generator.device)
        self.dynamic = binarization == "dynamic"
        images = images if self.dynamic else binarize_once(images, binarization)
        self.in_memory = images.nbytes <= MEMORY_SHARE * _memory(generator.device)
        self.images = images.to(generator.device) if self.in_memory else images
        self.batch_size, self.generator = batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=self.generator, device=self.generator.device)
        batches = map(self._read, order.split(self.batch_size)) if self.in_memory else self._read_ahead(order.cpu())
        for images, index in zip(batches, order.split(self.batch_size), strict=True):
            images = to_float(sample_binary(images, self.generator) if self.dynamic else images)
            yield images, None if self.labels is None else self.labels[index]

    def _read(self, index: Tensor) -> Tensor:
        return self.images.index_select(0, index)  # on the CPU, ten times faster than self.images[index]

    def _read_ahead(self, order: Tensor) -> Iterator[Tensor]:
        device = self.generator.device

        def read(index: Tensor) -> Tensor:
            return self._read(index).pin_memory() if device.type == "cuda" else self._read(index)

        ahead: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(READERS) as pool:
            for index in order.split(self.batch_size):
                ahead.append(pool.submit(read, index))
                if len(ahead) > READERS:
                    yield ahead.popleft().result().to(device, non_blocking=True)
            for batch in ahead:
                yield batch.result().to(device, non_blocking=True)


def _memory(device: torch.device) -> int:
    """The size of the memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class LoaderBatches:
    """The batches of a DataLoader, each checked and moved to the device.

    Raises ConfigError for 'static' binarization, DataError for a loader without a length, or with a wrong one.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        input_dim: int,
        binarization: Binarization,
        generator: torch.Generator,
        labelled: bool = False,
    ) -> None:
        self.labelled = labelled
        check_binarization(binarization)
        if binarization == "static":
            raise ConfigError("binarization 'static' needs the whole data set: pass a Split instead of a DataLoader")
        self.loader, self.input_dim, self.binarization, self.generator = loader, input_dim, binarization, generator
        try:
            self.length = len(loader)
        except TypeError:
            raise DataError("the DataLoader must have a length: an IterableDataset needs __len__") from None
        if not self.length:
            raise DataError("the DataLoader yields nothing to train on")

    @property
    def generators(self) -> list[torch.Generator]:
        """The random generators that determine the order of the loader."""
        own = (self.loader.generator, getattr(self.loader.sampler, "generator", None))
        return [generator for generator in own if generator is not None]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        for number, batch in enumerate(self.loader, 1):
            if number > self.length:
                raise DataError(f"the DataLoader yields more than the {self.length} batches of its length: see __len__")
            images = image_batch(batch, self.input_dim).to(self.generator.device, non_blocking=True)
            if self.binarization == "dynamic":
                images = sample_binary(images, self.generator)
            else:
                images = binarize_once(images, self.binarization)
            yield to_float(images), label_batch(batch).to(images.device) if self.labelled else None
        if not number:
            raise DataError(f"the DataLoader yields no batches, although its length is {self.length}")


def image_batch(batch: Any, input_dim: int) -> Tensor:
    """Return the images of a DataLoader's batch, shape [B, D]: uint8, or float32 in [0, 1].

    `batch` is a tensor [B, D], [B, H, W] or [B, C, H, W], or a tuple or list that begins with one.
    Raises DataError for any other batch, an empty one, and values outside of that range.
    """
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor):
        raise DataError(f"a batch must be a tensor of images, or begin with one: this is {type(images).__name__}")
    if images.ndim < 2 or images.shape[1:].numel() != input_dim:
        raise DataError(f"images have shape {tuple(images.shape)}, allowed is (B, ...) with {input_dim} pixels each")
    if not len(images):
        raise DataError("there are no images in a batch, at least one is needed")
    if not images.is_floating_point() and images.dtype not in INTEGER_PIXELS:
        raise DataError(f"images are {images.dtype}, allowed are torch.uint8 and floats in [0, 1]")
    if images.dtype == torch.uint8:
        return images.flatten(1)
    low, high = images.min().item(), images.max().item()
    if not 0 <= low <= high <= 1:  # false for NaN, too
        raise DataError(
            f"pixels are from {low:g} to {high:g}, allowed is 0 to 1: leave out Normalize, or divide by the maximum"
        )
    return images.flatten(1).float()


def has_labels(batch: Any) -> bool:
    """Whether a DataLoader's batch has more than images."""
    return isinstance(batch, list | tuple) and len(batch) > 1


def label_batch(batch: Any) -> Tensor:
    """Return the labels of a DataLoader's batch, int64 [B].

    Raises DataError for a batch without labels, and for labels that aren't one integer per image, such as one-hot ones.
    """
    if not has_labels(batch):
        raise DataError("labels are needed here: the DataLoader must yield (images, labels)")
    images, labels = batch[:2]
    if not isinstance(labels, Tensor):
        raise DataError(f"labels must be a tensor of one integer per image: these are {type(labels).__name__}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, allowed is one integer for each of "
            f"{len(images)} images (for one-hot labels, labels.argmax(1))"
        )
    return labels.long()
