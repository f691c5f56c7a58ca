"""The second stochastic layer: its terms by hand, the NLL against numerical integration, and its samples."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate
from vae.models.distributions import importance_weighted_bound
from vae.models.vae import VAE

PIXELS = 9
SIDE = 8  # of the images of a convolutional network, which has 2×2 positions
NETWORKS = {
    "mlp": {"hidden_dims": (8, 6), "lower_latent_dim": 3, "prior": "standard"},
    "skip": {
        "hidden_dims": (8, 6),
        "lower_latent_dim": 3,
        "prior": "standard",
        "decoder_skip": True,
        "activation": "glu",
    },
    "vampprior": {"hidden_dims": (8,), "lower_latent_dim": 1, "prior": "vampprior", "prior_components": 4},
    "conv": {
        "architecture": "conv",
        "hidden_dims": (3, 4, 5),
        "dense_dims": (6,),
        "lower_latent_dim": 2,
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


def images_for(model, n, seed=0):
    return torch.rand(n, model.input_dim, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_importance_weighted_nll_is_the_integral_over_both_layers():
    """With one latent in each layer, the likelihood is a sum over a grid."""
    model = model_of({"hidden_dims": (6,), "latent_dim": 1, "lower_latent_dim": 1, "prior": "standard"}, scale=0.5)
    # Wider posteriors, for importance weights of less variance; and images that depend on y.
    model.encoder.head.bias[1] += 1.0
    model.hierarchy.posterior[-1].bias[1] += 1.0
    model.hierarchy.inject.weight.mul_(3)
    targets = (images_for(model, 6) < 0.5).to(torch.uint8) * 255
    z, unit = torch.linspace(-8, 8, 161)[:, None], torch.linspace(-8, 8, 161)
    h = model.decoder.start(z)
    mu, logvar = model.hierarchy.prior(h).chunk(2, 1)
    y = mu + torch.exp(0.5 * logvar) * unit  # for each z, a grid around p(y|z)
    features = h[:, None] + model.hierarchy.inject(y[..., None])
    logits = model.decoder.finish(features.flatten(0, 1), z.repeat_interleave(161, 0)).view(161, 161, PIXELS)
    log_weight = (Normal(0.0, 1.0).log_prob(z) + Normal(0.0, 1.0).log_prob(unit)).double() + 2 * math.log(0.1)
    assert log_weight.exp().sum().item() == pytest.approx(1, abs=1e-6)
    log_likelihood = Independent(Bernoulli(logits=logits), 1).log_prob(to_float(targets)[:, None, None]).double()
    exact = -torch.logsumexp((log_likelihood + log_weight).flatten(1), 1).numpy()

    params = EvaluateParams(importance_samples=40_000, chunk_size=120_000)
    found = evaluate(model, targets, torch.arange(6), params).images

    error = found["nll_sampling_error"].to_numpy()
    assert error.max() < 0.02, "the weights must not vary too much for an estimate"
    assert (np.abs(found["nll"] - exact) < 4.5 * error + 1e-3).all()
    assert (-found["elbo"] - exact).min() > 0.1, "the ELBO must be loose enough for the test to see a gap"


# Samples


@torch.no_grad()
@EVERY
def test_images_are_decoded_from_the_means_of_priors_and_reconstructed_from_those_of_posteriors(name):
    model = model_named(name)
    z, features = model.encode(x := images_for(model, 3)).mu, model.encode(x).features
    h = model.decoder.start(z)
    prior_mean = model.hierarchy.prior(h).chunk(2, 1)[0]
    posterior_mean = prior_mean + model.hierarchy.posterior(torch.cat([features, h], 1)).chunk(2, 1)[0]
    decoded, reconstructed = (
        model.decoder.finish(h + model.hierarchy.inject(y), z) for y in (prior_mean, posterior_mean)
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
    seen = []
    inject = model.hierarchy.inject.forward
    monkeypatch.setattr(model.hierarchy.inject, "forward", lambda y: seen.append(y) or inject(y))
    images = model.sample(n, torch.Generator().manual_seed(0))
    mu, logvar = model.hierarchy.prior(model.decoder.start(z)).chunk(2, 1)
    y, std = seen[0].flatten(1), torch.exp(0.5 * logvar).flatten()
    assert ((y.mean(0) - mu.flatten()).abs() < 4.5 * std / math.sqrt(n)).all()
    assert ((y.std(0) / std - 1).abs() < 4.5 / math.sqrt(2 * n)).all()
    assert images.std(0).max() > 0.02
    assert not torch.equal(images, model.sample(n, torch.Generator().manual_seed(1)))


# The terms of the bound


def terms_by_hand(model, x, noise):
    """−log p(x|z, y), log q − log p and the KL of both layers, by torch.distributions, a sample at a time: [B, K]."""
    posterior = model.encode(x)
    (mu, logvar), features = posterior, posterior.features
    q_z, samples = Normal(mu, torch.exp(0.5 * logvar)), []
    for z_noise, y_noise in ((each[:, :2], each[:, 2:]) for each in noise.unbind(1)):
        z = mu + torch.exp(0.5 * logvar) * z_noise
        h = model.decoder.start(z)
        p_mu, p_logvar = model.hierarchy.prior(h).chunk(2, 1)
        shift, log_scale = model.hierarchy.posterior(torch.cat([features, h], 1)).chunk(2, 1)
        p_y, q_y = Normal(p_mu, (0.5 * p_logvar).exp()), Normal(p_mu + shift, (0.5 * (p_logvar + log_scale)).exp())
        y = q_y.mean + q_y.stddev * y_noise.view_as(p_mu)
        logits = model.decoder.finish(h + model.hierarchy.inject(y), z)
        nll = -Independent(Bernoulli(logits=logits), 1).log_prob(x)
        log_p = model.prior.log_density(z)
        ratio = q_z.log_prob(z).sum(1) - log_p + (q_y.log_prob(y) - p_y.log_prob(y)).flatten(1).sum(1)
        kl = (
            kl_divergence(q_z, Normal(0.0, 1.0)).sum(1)
            if model.params.prior == "standard"
            else -q_z.entropy().sum(1) - log_p
        )
        samples.append((nll, ratio, kl + kl_divergence(q_y, p_y).flatten(1).sum(1)))
    return tuple(torch.stack(part, 1) for part in zip(*samples, strict=True))


@EVERY
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_gradients_are_those_by_hand_and_reach_every_weight(name, objective):
    model = model_named(name, scale=0.2)
    x, noise = images_for(model, 8).round(), normals(8, 3, model.noise_dim)
    terms = model(x, noise)
    by_hand, ratio, kl = terms_by_hand(model, x, noise)
    if objective == "elbo":
        loss, expected = terms.nll.mean() + terms.kl.sum(1).mean(), (by_hand + kl).mean()
    else:
        loss = -importance_weighted_bound(terms.log_weights).mean()
        expected = -(-by_hand - ratio).double().exp().mean(1).log().mean().float()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    names, weights = zip(*model.named_parameters(), strict=True)
    found, right = torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights)
    for weight, ours, theirs in zip(names, found, right, strict=True):
        assert theirs.norm() > 0, weight
        assert (ours - theirs).norm() < 1e-3 * theirs.norm() + 1e-6, weight
