"""A new prior, architecture or likelihood is registered from outside the library under a name."""

import pytest
import torch
from torch import nn
from torch.distributions import ContinuousBernoulli, Laplace

from vae import VAE
from vae.config import ARCHITECTURE_NAMES, LIKELIHOOD_NAMES, PRIOR_NAMES, EvaluateParams, Params, TrainParams
from vae.data.binarization import binarize_once
from vae.data.datasets import Split
from vae.device import resolve
from vae.evaluation.likelihood import evaluate
from vae.models.likelihoods import LIKELIHOODS, Likelihood
from vae.models.networks import DECODERS, ENCODERS, Decoder, Encoder
from vae.models.priors import PRIORS, Prior
from vae.training.loop import fit


class LaplacePrior(Prior):
    def log_density(self, z):
        return Laplace(0.0, 1.0).log_prob(z).sum(-1)

    def sample(self, n, generator, device):
        u = torch.rand(n, self.latent_dim, generator=generator, device=device).clamp(1e-6, 1 - 1e-6) - 0.5
        return -u.sign() * torch.log1p(-2 * u.abs())


class LinearEncoder(Encoder):
    def __init__(self, input_dim, params):
        super().__init__()
        self.head = nn.Linear(input_dim, 2 * params.latent_dim)

    def features(self, x):
        return x


class LinearDecoder(Decoder):
    def __init__(self, input_dim, params):
        super().__init__()
        self.weight = nn.Linear(params.latent_dim, input_dim, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(input_dim))

    def start(self, z):
        return z

    def finish(self, h, z):
        return self.weight(h) + self.output_bias


class ContinuousPixels(Likelihood):
    def nll(self, output, x):
        return -ContinuousBernoulli(logits=output).log_prob(x).sum(-1)

    def mean(self, output):
        return ContinuousBernoulli(logits=output).mean

    def inverse_mean(self, mean):
        return torch.logit(mean, eps=1e-3)


@pytest.fixture
def registered(monkeypatch):
    for names, name, registries in [
        (PRIOR_NAMES, "laplace", [(PRIORS, LaplacePrior)]),
        (ARCHITECTURE_NAMES, "linear", [(ENCODERS, LinearEncoder), (DECODERS, LinearDecoder)]),
        (LIKELIHOOD_NAMES, "continuous_bernoulli", [(LIKELIHOODS, ContinuousPixels)]),
    ]:
        names.append(name)
        for registry, part in registries:
            monkeypatch.setitem(registry, name, part)
    yield
    for names in (PRIOR_NAMES, ARCHITECTURE_NAMES, LIKELIHOOD_NAMES):
        names.pop()


@pytest.mark.parametrize(
    ("part", "binarization"),
    [
        ({"prior": "laplace"}, "dynamic"),
        ({"architecture": "linear"}, "dynamic"),
        ({"likelihood": "continuous_bernoulli"}, "none"),
    ],
)
def test_a_new_part_is_configured_trained_evaluated_sampled_and_saved(registered, tmp_path, part, binarization):
    params = Params(model={"hidden_dims": (16,), "latent_dim": 2} | part)
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
    assert VAE.load(tmp_path / "vae.safetensors").params == params.model
