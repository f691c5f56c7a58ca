"""Batches of images that are more than the memory holds; invalid ones are refused by every function that takes them."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from vae import VAE, VAETrainer, visualize_latent_space, visualize_reconstruction
from vae.checkpoints import Checkpoints
from vae.config import TrainParams
from vae.data import batches
from vae.data.batches import ShuffledBatches, image_batch
from vae.data.binarization import binarize_once
from vae.data.datasets import Split, load
from vae.data.image_files import image_file, write_images
from vae.device import Hardware
from vae.errors import ConfigError, DataError
from vae.training.loop import fit

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
IMAGES, LABELS = torch.rand(40, 784), torch.arange(40) % 2


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), **({"batch_size": 8} | options))


def small():
    return VAE(784, [8], 2)


def train(images, validation=None, **options):
    return fit(small(), images, validation or loader(IMAGES), TrainParams(epochs=1), CPU, **options)


ALL_FUNCTIONS = pytest.mark.parametrize(
    "function",
    [
        train,
        lambda images: train(loader(IMAGES), images),
        lambda images: visualize_reconstruction(small(), images),
        lambda images: visualize_latent_space(small(), images),
    ],
    ids=["training", "validation", "visualize_reconstruction", "visualize_latent_space"],
)


@ALL_FUNCTIONS
@pytest.mark.parametrize(
    "images, reason",
    [
        (IMAGES.to(torch.complex64), "images are torch.complex64, allowed are torch.uint8 and floats"),
        ((IMAGES * 255).to(torch.uint16), "images are torch.uint16, allowed are torch.uint8 and floats"),
    ],
    ids=["complex", "uint16"],
)
def test_images_of_the_wrong_kind_are_refused(function, images, reason):
    with pytest.raises(DataError, match=reason):
        function(loader(images, LABELS))


@ALL_FUNCTIONS
def test_an_empty_first_batch_is_refused(function):
    empty = [torch.empty(0, 784), torch.empty(0).long()]
    with pytest.raises(DataError, match="there are no images in a batch"):
        function(DataLoader([empty], batch_size=None))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float64, torch.bfloat16])
def test_black_and_white_images_are_accepted_in_common_types(dtype):
    batch = image_batch([(IMAGES > 0.5).to(dtype).reshape(40, 1, 28, 28), LABELS], 784)
    assert batch.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert torch.equal(batch.float(), (IMAGES > 0.5).float())


@pytest.mark.parametrize(
    "labels, reason",
    [
        (torch.eye(10)[LABELS], r"torch.float32 of shape \(40, 10\), allowed is .* labels.argmax\(1\)"),
        (LABELS.float(), r"torch.float32 of shape \(40,\)"),
        (np.array(["a"] * 40), "a tensor of one integer per image: these are ndarray"),
    ],
    ids=["one-hot", "floats", "text"],
)
def test_labels_must_be_one_integer_per_image(labels, reason):
    with pytest.raises(DataError, match=reason):
        visualize_latent_space(small(), [[IMAGES, labels]])


class TooShort(BatchSampler):
    def __len__(self):
        return super().__len__() - 1


class Exhausted(BatchSampler):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "sampler, reason",
    [(TooShort, "more than the 4 batches of its length"), (Exhausted, "no batches, although its length is 5")],
)
def test_a_loader_with_a_wrong_length_is_refused(sampler, reason):
    wrong = DataLoader(TensorDataset(IMAGES), batch_sampler=sampler(SequentialSampler(IMAGES), 8, False))
    with pytest.raises(DataError, match=reason):
        train(wrong)


@pytest.mark.parametrize(
    "call",
    [
        lambda: train(loader(IMAGES), binarization="treshold"),
        lambda: VAETrainer(small(), "cpu", binarization="treshold"),
        lambda: binarize_once(IMAGES, "treshold"),
    ],
    ids=["fit", "VAETrainer", "binarize_once"],
)
def test_an_unknown_binarization_is_refused(call):
    with pytest.raises(ConfigError, match="binarization is 'treshold', allowed are dynamic, static, threshold, none"):
        call()


@pytest.mark.parametrize("binarization", ["dynamic", "static", "none"])
def test_batches_that_are_read_ahead_are_those_of_images_in_memory(monkeypatch, binarization):
    images, labels = torch.randint(0, 256, (1000, 12), dtype=torch.uint8), torch.arange(1000)

    def two_epochs():
        made = ShuffledBatches(images, 64, binarization, torch.Generator().manual_seed(3), labels)
        return made.in_memory, [part for _ in range(2) for batch in made for part in batch]

    in_memory, expected = two_epochs()
    monkeypatch.setattr(batches, "MEMORY_SHARE", 0)
    streamed, read = two_epochs()
    assert (in_memory, streamed, len(read)) == (True, False, 64)
    assert all(torch.equal(*pair) for pair in zip(expected, read, strict=True))


def test_only_a_few_batches_are_read_ahead(monkeypatch):
    monkeypatch.setattr(batches, "MEMORY_SHARE", 0)
    made = ShuffledBatches(torch.zeros(1000, 4, dtype=torch.uint8), 10, "none", torch.Generator())
    read, original = [], made._read
    monkeypatch.setattr(made, "_read", lambda index: (read.append(1), original(index))[1])
    for number, _ in enumerate(made, 1):
        assert len(read) <= number + batches.READERS
    assert (number, len(read)) == (100, 100)


def test_a_training_on_a_file_has_the_weights_of_one_in_memory_also_when_it_is_resumed(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 1, 4, 6), dtype=np.uint8)
    with (tmp_path / image_file("train")).open("wb") as file:
        write_images(file, pixels.shape, [pixels[:256], pixels[256:]], None)
    validation = Split(torch.tensor(pixels[:50]).flatten(1))

    def weights(split, epochs=(3,)):
        for stop in epochs:

            def interrupt(record, stop=stop):
                if record["epoch"] == stop < 3:
                    raise KeyboardInterrupt

            torch.manual_seed(0)
            model, params = VAE(24, [8], 2, image_shape=(1, 4, 6)), TrainParams(epochs=3, batch_size=50)
            saved = Checkpoints(tmp_path / "checkpoints") if len(epochs) > 1 else None
            with suppress(KeyboardInterrupt):
                fit(model, split, validation, params, CPU, checkpoints=saved, on_epoch=interrupt)
        return torch.cat([weight.flatten() for weight in model.state_dict().values()])

    expected = weights(Split(torch.tensor(pixels).flatten(1)))
    monkeypatch.setattr(batches, "MEMORY_SHARE", 0)
    assert torch.equal(weights(load(tmp_path, "train")), expected)
    assert torch.equal(weights(load(tmp_path, "train"), epochs=(2, 3)), expected)


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold"])
def test_a_model_of_colour_images_is_not_trained_on_binarized_ones(binarization):
    colours = Split(torch.zeros(20, 72, dtype=torch.uint8))
    model = VAE(72, [8], 2, image_shape=(3, 4, 6))
    with pytest.raises(ConfigError, match=rf"'{binarization}', which is for grey images.*set data\.binarization: none"):
        fit(model, colours, colours, TrainParams(epochs=1), CPU, binarization=binarization)
