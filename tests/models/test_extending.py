"""The code of docs/extending.md runs; its prior, architecture and likelihood work like those of the library."""

import re

import pytest
import torch

from support import ROOT
from vae import VAE
from vae.config import ARCHITECTURE_NAMES, LIKELIHOOD_NAMES, PRIOR_NAMES, EvaluateParams, Params, TrainParams
from vae.data.binarization import binarize_once
from vae.data.datasets import Split
from vae.device import resolve
from vae.evaluation.likelihood import evaluate
from vae.models.likelihoods import LIKELIHOODS
from vae.models.networks import DECODERS, ENCODERS
from vae.models.priors import PRIORS
from vae.training.loop import fit


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Run the code of the page; its parts are registered until the tests of this file end."""
    names = PRIOR_NAMES, ARCHITECTURE_NAMES, LIKELIHOOD_NAMES
    registries = PRIORS, ENCODERS, DECODERS, LIKELIHOODS
    before = [each.copy() for each in (*names, *registries)]
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text("utf-8"), re.M | re.S)
    exec("\n".join(blocks), {"__name__": "extending"})
    yield
    for each, saved in zip((*names, *registries), before, strict=True):
        each.clear()
        each.extend(saved) if isinstance(each, list) else each.update(saved)


@pytest.mark.parametrize(
    ("part", "binarization"),
    [
        ({"prior": "laplace"}, "dynamic"),
        ({"architecture": "linear"}, "dynamic"),
        ({"likelihood": "continuous_bernoulli"}, "none"),
    ],
)
def test_a_new_part_is_configured_trained_evaluated_sampled_and_saved(tmp_path, part, binarization):
    params = Params(model={"hidden_dims": (16,), "latent_dim": 2} | part, data={"binarization": binarization})
    images = torch.randint(0, 256, (200, 784), dtype=torch.uint8)
    split = Split(images, torch.arange(200) % 10)
    model = VAE.from_params(params.model, seed=0)
    model.initialize_from_data(images)
    train = TrainParams(epochs=3, batch_size=50, device="cpu", precision="fp32", compile=False)
    history = fit(model, split, split, train, resolve(train), binarization=binarization).history
    assert history[-1]["val/neg_elbo"] < history[0]["val/neg_elbo"]
    targets = binarize_once(images, binarization)
    metrics = evaluate(model, targets, split.labels, EvaluateParams(importance_samples=5)).metrics()
    assert metrics["nll"] < -metrics["elbo"]
    assert model.sample(3).shape == (3, 784)
    model.save(tmp_path / "vae.safetensors")
    assert VAE.load(tmp_path / "vae.safetensors").params == model.params
