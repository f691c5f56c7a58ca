"""Further stochastic layers: their terms by hand, the NLL against numerical integration, and its samples."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate
from vae.models.distributions import importance_weighted_bound
from vae.models.hierarchy import StochasticLayer
from vae.models.vae import VAE

PIXELS = 9
SIDE = 8  # of the images of a convolutional network, which has 2×2 positions
NETWORKS = {
    "mlp": {"hidden_dims": (8, 6), "lower_latent_dims": (3, 2), "prior": "standard"},
    "skip": {
        "hidden_dims": (8, 6),
        "lower_latent_dims": (3,),
        "prior": "standard",
        "decoder_skip": True,
        "activation": "glu",
    },
    "vampprior": {"hidden_dims": (8,), "lower_latent_dims": (1,), "prior": "vampprior", "prior_components": 4},
    "conv": {
        "architecture": "conv",
        "hidden_dims": (3, 4, 5),
        "dense_dims": (6,),
        "lower_latent_dims": (2, 1, 2),
        "prior": "gaussian_mixture",
        "prior_components": 3,
    },
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(params, pixels=PIXELS, scale=0.3):
    """A model whose distributions are all far from the standard normal one."""
    model = VAE.from_params(ModelParams(**params), 0, pixels).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(scale * normals(*parameter.shape, seed=100 + index))
    return model


def model_named(name, **options):
    return model_of(NETWORKS[name] | {"latent_dim": 2}, SIDE**2 if name == "conv" else PIXELS, **options)


@dataclass
class Layer:
    """A stochastic layer's distributions given the decoder's and the encoder's features, from its networks."""

    networks: StochasticLayer

    def prior(self, h):
        mu, logvar = self.networks.prior(h).chunk(2, 1)
        return Normal(mu, (0.5 * logvar).exp())

    def posterior(self, h, features):
        mu, logvar = self.networks.prior(h).chunk(2, 1)
        shift, log_scale = self.networks.posterior(torch.cat([features, h], 1)).chunk(2, 1)
        return Normal(mu + shift, (0.5 * (logvar + log_scale)).exp())

    def add(self, h, y):
        return h + self.networks.inject(y)


def by_hand(model):
    return [Layer(networks) for networks in model.hierarchy]


def images_for(model, n, seed=0):
    return torch.rand(n, model.input_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_importance_weighted_nll_is_the_integral_over_both_layers():
    """With one latent in each layer, the likelihood is a sum over a grid."""
    model = model_of({"hidden_dims": (6,), "latent_dim": 1, "lower_latent_dims": (1,), "prior": "standard"}, scale=0.5)
    # Wider posteriors, for importance weights of less variance; and images that depend on y.
    model.encoder.head.bias[1] += 1.0
    layer = model.hierarchy[0]
    layer.posterior[-1].bias[1] += 1.0
    layer.inject.weight.mul_(3)
    targets = (images_for(model, 6) < 0.5).to(torch.uint8) * 255
    z, unit = torch.linspace(-8, 8, 161)[:, None], torch.linspace(-8, 8, 161)

    def on_grid(h):
        """For each z, the features with y at each point of a grid around p(y|z)."""
        mu, logvar = layer.prior(h).chunk(2, 1)
        y = mu + torch.exp(0.5 * logvar) * unit
        return (h[:, None] + layer.inject(y[..., None])).flatten(0, 1)

    logits = model.decoder(z, [on_grid]).view(161, 161, PIXELS)
    log_weight = (Normal(0.0, 1.0).log_prob(z) + Normal(0.0, 1.0).log_prob(unit)).double() + 2 * math.log(0.1)
    assert log_weight.exp().sum().item() == pytest.approx(1, abs=1e-6)
    log_likelihood = Independent(Bernoulli(logits=logits), 1).log_prob(to_float(targets)[:, None, None]).double()
    exact = -torch.logsumexp((log_likelihood + log_weight).flatten(1), 1).numpy()

    params = EvaluateParams(importance_samples=40_000, chunk_size=120_000)
    found = evaluate(model, targets, torch.arange(6), params).images

    error = np.sqrt(1 / found["effective_samples"] - 1 / 40_000).to_numpy()  # by the delta method
    assert error.max() < 0.02, "the weights must not vary too much for an estimate"
    assert (np.abs(found["nll"] - exact) < 4.5 * error + 1e-3).all()
    assert (-found["elbo"] - exact).min() > 0.1, "the ELBO must be loose enough for the test to see a gap"


# Samples


@torch.no_grad()
@EVERY
def test_images_are_decoded_from_the_means_of_priors_and_reconstructed_from_those_of_posteriors(name):
    model = model_named(name)
    posterior = model.encode(x := images_for(model, 3))
    z = posterior.mu
    decoded = model.decoder(z, [lambda h, d=d: d.add(h, d.prior(h).mean) for d in by_hand(model)])
    reconstructed = model.decoder(
        z,
        [
            lambda h, d=d, e=e: d.add(h, d.posterior(h, e).mean)
            for d, e in zip(by_hand(model), reversed(posterior.features), strict=False)
        ],
    )
    torch.testing.assert_close(model.decode(z), decoded)
    torch.testing.assert_close(model.reconstruct(x), reconstructed.sigmoid())
    assert (decoded - reconstructed).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_sampling_draws_y_from_its_prior(name, monkeypatch):
    model, n = model_named(name), 4000
    z = normals(1, 2)
    monkeypatch.setattr(model.prior, "sample", lambda n, generator, device: z.expand(n, -1))
    layer, seen = model.hierarchy[0], []
    inject = layer.inject.forward
    monkeypatch.setattr(layer.inject, "forward", lambda y: seen.append(y) or inject(y))
    images = model.sample(n, torch.Generator().manual_seed(0))
    priors = []
    model.decoder(z, [lambda h: priors.append(by_hand(model)[0].prior(h)) or h])
    mu, std = priors[0].mean.flatten(), priors[0].stddev.flatten()
    y = seen[0].flatten(1)
    assert ((y.mean(0) - mu).abs() < 4.5 * std / math.sqrt(n)).all()
    assert ((y.std(0) / std - 1).abs() < 4.5 / math.sqrt(2 * n)).all()
    assert images.std(0).max() > 0.02
    assert not torch.equal(images, model.sample(n, torch.Generator().manual_seed(1)))


# The terms of the bound


def terms_by_hand(model, x, noise):
    """−log p(x|z, y), log q − log p and the KL of all layers, by torch.distributions, a sample at a time: [B, K]."""
    return tuple(torch.stack(part, 1) for part in zip(*(one_sample(model, x, e) for e in noise.unbind(1)), strict=True))


def one_sample(model, x, noise):
    """−log p(x|z, y) and log q − log p, [B] each, and the KL of each layer, [B, layers], with `noise` [B, N]."""
    posterior = model.encode(x)
    q_z = Normal(posterior.mu, torch.exp(0.5 * posterior.logvar))
    z, rest, ratios, kls = q_z.mean + q_z.stddev * noise[:, :2], noise[:, 2:], [], []

    def stochastic(h, layer, features):
        nonlocal rest
        p_y, q_y = layer.prior(h), layer.posterior(h, features)
        used = p_y.mean[0].numel()
        y = q_y.mean + q_y.stddev * rest[:, :used].view_as(p_y.mean)
        rest = rest[:, used:]
        ratios.append((q_y.log_prob(y) - p_y.log_prob(y)).flatten(1).sum(1))
        kls.append(kl_divergence(q_y, p_y).flatten(1).sum(1))
        return layer.add(h, y)

    layers = zip(by_hand(model), reversed(posterior.features), strict=False)
    logits = model.decoder(z, [partial(stochastic, layer=layer, features=f) for layer, f in layers])
    assert not rest.numel()
    log_p = model.prior.log_density(z)
    exact = kl_divergence(q_z, Normal(0.0, 1.0)).sum(1)
    kl = exact if model.params.prior == "standard" else -q_z.entropy().sum(1) - log_p
    nll = -Independent(Bernoulli(logits=logits), 1).log_prob(x)
    return nll, q_z.log_prob(z).sum(1) - log_p + sum(ratios), torch.stack([kl, *kls], 1)


@EVERY
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_gradients_are_those_by_hand_and_reach_every_weight(name, objective):
    model = model_named(name, scale=0.2)
    x, noise = images_for(model, 8).round(), normals(8, 3, model.noise_dim)
    terms = model(x, noise)
    nll, ratio, kl = terms_by_hand(model, x, noise)
    layers = len(model.hierarchy)
    torch.testing.assert_close(terms.kl[:, -layers:], kl.mean(1)[:, -layers:], atol=1e-4, rtol=1e-5)
    if objective == "elbo":
        loss, expected = terms.nll.mean() + terms.kl.sum(1).mean(), (nll + kl.sum(2)).mean()
    else:
        loss = -importance_weighted_bound(terms.log_weights).mean()
        expected = -(-nll - ratio).double().exp().mean(1).log().mean().float()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    names, weights = zip(*model.named_parameters(), strict=True)
    found, right = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    for weight, ours, theirs in zip(names, found, right, strict=True):
        assert theirs.norm() > 0, weight
        assert (ours - theirs).norm() < 1e-3 * theirs.norm() + 1e-6, weight


@torch.no_grad()
@EVERY
def test_the_kl_of_each_layer_is_that_by_monte_carlo(name):
    model = model_named(name, scale=0.1)
    x = images_for(model, 4).round()
    result = evaluate(model, (x * 255).byte(), torch.arange(4), EvaluateParams(importance_samples=3000))
    _, _, kl = terms_by_hand(model, x, normals(4, 3000, model.noise_dim, seed=1))
    columns = ["kl_top", *(f"kl_lower_{number}" for number in range(1, kl.shape[-1]))]
    found = torch.tensor(result.images[columns].to_numpy()).float()
    error = kl.std(1) * math.sqrt(2 / 3000)  # of both: each is a mean over its own samples
    assert ((found - kl.mean(1)).abs() < 4.5 * error + 1e-4).all()
    assert result.images[columns].sum(axis=1).to_numpy() == pytest.approx(result.images["kl"].to_numpy(), rel=1e-5)
    metrics = result.metrics()
    assert [metrics[column] for column in columns] == pytest.approx(found.mean(0).tolist(), rel=1e-5)
