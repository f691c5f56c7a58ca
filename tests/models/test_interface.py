"""What a user of the library sees and may pass: signatures, `repr`, and kinds of images."""

import inspect

import numpy as np
import pytest
import torch

from vae import VAE, VAETrainer
from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.errors import ConfigError, DataError


@pytest.fixture
def model():
    return VAE(hidden_dims=[8], latent_dim=2, prior="standard")


@pytest.mark.parametrize(
    ("function", "section", "others"),
    [(VAE, ModelParams, set()), (VAETrainer, TrainParams, {"epochs", "nproc", "timeout"})],
)
def test_signatures_name_every_parameter_with_its_default(function, section, others):
    shown = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert section().model_dump(exclude=others).items() <= shown.items()
    assert not others & shown.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def test_a_subclass_shows_its_own_signature():
    class Wider(VAE):
        def __init__(self, width=3):
            super().__init__(hidden_dims=[width])

    assert list(inspect.signature(Wider).parameters) == ["width"]


def test_repr_says_what_an_object_is(model):
    assert "mlp 784-8, latent_dim=2, prior=standard, 13,396 parameters" in repr(model)
    split = Split(torch.zeros(30, 784, dtype=torch.uint8), torch.zeros(30, dtype=torch.int64))
    assert repr(split) == "Split(30 images (30, 784), torch.uint8, on cpu)"
    trainer = VAETrainer(model, "cpu", precision="fp32", compile=False)
    assert "not trained" in repr(trainer) and "cpu" in repr(trainer)
    trainer.train(split, split, epochs=1, progress=False)
    assert "best epoch 1 of 1" in repr(trainer)


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28), (5, 1, 28, 28)])
def test_images_may_be_uint8_float64_or_numpy_arrays(model, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = model.encode(torch.from_numpy(images).float() / 255).mu
    for x in (images, torch.from_numpy(images), images / 255):
        torch.testing.assert_close(model.encode(x).mu, expected)
        assert model.reconstruct(x).shape == (5, 784)


def test_wrong_arguments_are_named(model):
    with pytest.raises(ConfigError, match="hidden_dims is 512, allowed is a valid list"):
        VAE(hidden_dims=512)
    with pytest.raises(DataError, match=r"shapes \(2,\) and \(3,\), allowed is \(2,\) for both"):
        model.interpolate(torch.zeros(2), torch.zeros(3), 4)
