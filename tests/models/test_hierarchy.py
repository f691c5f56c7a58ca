"""The second stochastic layer: KL, bounds against an integral over both latents, and whose latents are whose."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate, importance_samples
from vae.models.distributions import importance_weighted_bound
from vae.models.hierarchy import LayerSamples, TopDown
from vae.models.vae import VAE

PIXELS = 9
SIDE = 8  # of the images that convolutions see: 2×2 positions
STANDARD = {"latent_dim": 2, "prior": "standard"}
NETWORKS = {
    "mlp": {**STANDARD, "hidden_dims": (8, 6), "lower_latent_dim": 3},
    "skip": {**STANDARD, "hidden_dims": (8, 6), "lower_latent_dim": 3, "decoder_skip": True, "activation": "glu"},
    "vampprior": {
        "hidden_dims": (8,),
        "latent_dim": 2,
        "lower_latent_dim": 1,
        "prior": "vampprior",
        "prior_components": 4,
    },
    "conv": {
        "architecture": "conv",
        "hidden_dims": (3, 4),
        "latent_dim": 2,
        "lower_latent_dim": 2,
        "prior": "standard",
    },
    "conv mixture": {
        "architecture": "conv",
        "hidden_dims": (3, 4, 5),
        "dense_dims": (6,),
        "latent_dim": 2,
        "lower_latent_dim": 1,
        "prior": "gaussian_mixture",
        "prior_components": 3,
    },
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
CONV = [name for name in NETWORKS if name.startswith("conv")]


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(params, pixels=PIXELS, seed=0, scale=0.3):
    """A model whose weights are large enough for nothing to be near the standard normal distribution."""
    model = VAE.from_params(ModelParams(**params), seed, pixels).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(scale * normals(*parameter.shape, seed=100 + index))
    return model


def model_named(name, **options):
    return model_of(NETWORKS[name], SIDE**2 if name in CONV else PIXELS, **options)


def images_for(model, n, seed=0):
    return torch.rand(n, model.input_dim, generator=torch.Generator().manual_seed(seed))


# One latent in each layer: everything can be integrated


@pytest.fixture(scope="module")
def tiny():
    """A model with one latent in each layer, six images, and their −log p(x), a sum over a grid of (z, y)."""
    model = model_of({"hidden_dims": (6,), "latent_dim": 1, "lower_latent_dim": 1, "prior": "standard"}, scale=0.5)
    with torch.no_grad():
        # Wider posteriors: importance weights of less variance. And an image that hangs on y.
        model.encoder.head.bias[1] += 1.0
        model.hierarchy.posterior[-1].bias[1] += 1.0
        model.hierarchy.inject.weight.mul_(3)
        targets = (images_for(model, 6) < 0.5).to(torch.uint8) * 255
        z = torch.linspace(-8, 8, 161)[:, None]  # [P, 1]
        h = model.decoder.start(z)
        mu, logvar = model.hierarchy.prior(h).chunk(2, 1)
        unit = torch.linspace(-8, 8, 161)
        y = mu + torch.exp(0.5 * logvar) * unit  # [P, Q]: a grid around each p(y|z)
        features = h[:, None] + model.hierarchy.inject(y[..., None])
        latents = z[:, None].expand(-1, len(unit), -1).reshape(-1, 1)
        logits = model.decoder.finish(features.flatten(0, 1), latents).view(161, 161, PIXELS)
        log_weight = (Normal(0.0, 1.0).log_prob(z) + Normal(0.0, 1.0).log_prob(unit)).double() + 2 * math.log(0.1)
        x = to_float(targets)[:, None, None]
        log_likelihood = Independent(Bernoulli(logits=logits), 1).log_prob(x).double()
        exact = -torch.logsumexp((log_likelihood + log_weight).flatten(1), 1)
    assert log_weight.exp().sum().item() == pytest.approx(1, abs=1e-6)
    return model, targets, exact.numpy()


def test_the_importance_weighted_nll_is_the_integral_over_both_layers(tiny):
    model, targets, exact = tiny
    n = 40_000
    params = EvaluateParams(importance_samples=n, chunk_size=120_000)
    with torch.no_grad():
        x = to_float(targets)
        generator = torch.Generator().manual_seed(1)
        _, _, log_weights = importance_samples(model, x, model.encode(x), params, generator)
        weights = (log_weights + torch.from_numpy(exact)[:, None]).exp()
    error = (weights.std(1) / math.sqrt(n)).numpy()
    assert error.max() < 0.02, "the weights must not vary too much for an estimate"
    result = evaluate(model, targets, torch.arange(6), params).images
    assert (np.abs(result["nll"] - exact) < 4.5 * error + 1e-3).all()
    assert (-result["elbo"] > exact - 0.01).all()
    assert (-result["elbo"] - exact).min() > 0.1, "the ELBO must be loose enough for the test to see a gap"


@torch.no_grad()
def test_more_samples_tighten_the_bound(tiny):
    model, targets, exact = tiny
    many = targets.repeat(200, 1)
    nll = [
        evaluate(model, many, torch.arange(1200), EvaluateParams(importance_samples=k)).images["nll"].mean()
        for k in (1, 5, 100)
    ]
    assert nll[0] > nll[1] + 0.05 > nll[2] + 0.05 > exact.mean() + 0.04


@torch.no_grad()
def test_a_layer_whose_posterior_is_its_prior_adds_nothing_to_the_kl(tiny):
    model, targets, _ = tiny
    x, noise = to_float(targets), normals(6, 50, model.noise_dim)
    z, _, (layer,) = model.sample_posterior(model.encode(x), noise)
    equal = layer._replace(mu=layer.prior_mu, logvar=layer.prior_logvar)
    assert layer.kl().min() > 0
    assert not equal.kl().any()
    torch.testing.assert_close(equal.log_ratio(), torch.zeros(300), atol=1e-6, rtol=0)
    expected = model.prior.kl(*(part[:, None] for part in model.encode(x)), model.prior.log_density(z)).mean(1)
    torch.testing.assert_close(model(x, noise).kl[:, :-1], expected)


# The KL


def test_kl_and_log_ratio_are_those_of_torch_distributions():
    y, mu, logvar, prior_mu, prior_logvar = (normals(4, 5, 3, seed=seed) for seed in range(5))
    samples = LayerSamples(y, mu, logvar, prior_mu, prior_logvar)
    q, p = Normal(mu, torch.exp(0.5 * logvar)), Normal(prior_mu, torch.exp(0.5 * prior_logvar))
    torch.testing.assert_close(samples.kl(), kl_divergence(q, p).sum(-1))
    torch.testing.assert_close(samples.log_ratio(), (q.log_prob(y) - p.log_prob(y)).sum(-1))


@torch.no_grad()
@EVERY
def test_the_mean_log_ratio_is_the_kl(name):
    model = model_named(name)
    x, n = images_for(model, 4), 5000
    posterior, noise = model.encode(x), normals(4, n, model.noise_dim)
    z, _, (layer,) = model.sample_posterior(posterior, noise)
    terms = model(x, noise)
    assert terms.kl.shape == (4, (2 if model.params.prior == "standard" else 1) + 1)
    mu, logvar = (part[:, None] for part in posterior)
    per_sample = model.prior.kl(mu, logvar, model.prior.log_density(z)).sum(-1) + layer.kl().view(4, n)
    difference = (terms.log_ratio - per_sample).double()
    assert difference.shape == (4, n)
    assert (difference.mean(1).abs() < 4.5 * difference.std(1) / math.sqrt(n)).all()
    torch.testing.assert_close(terms.kl.sum(1), per_sample.mean(1), atol=1e-4, rtol=1e-4)
    assert terms.kl[:, -1].min() > 0.05, "the layer must have a KL of its own for the test to see it"


# Whose latents are whose


@EVERY
def test_shapes_follow_the_positions(name):
    model = model_named(name)
    latents = model.params.lower_latent_dim * (4 if name in CONV else 1)
    assert model.hierarchy.noise_dim == latents
    assert model.noise_dim == 2 + latents
    x = images_for(model, 3)
    noise = normals(3, 5, model.noise_dim)
    samples = model.sample_posterior(model.encode(x), noise)
    assert samples.output.shape == (3, 5, model.input_dim)
    assert samples.z.shape == (3, 5, 2)
    assert {part.shape for part in samples.layers[0]} == {(15, latents)}
    assert model(x, noise).log_ratio.shape == (3, 5)
    assert model.decode(normals(3, 5, 2)).shape == (3, 5, model.input_dim)
    assert VAE(64, [3, 4], 2, architecture="conv", lower_latent_dim=3).noise_dim == 2 + 3 * 4
    assert VAE(784, [3, 4], 2, architecture="conv", lower_latent_dim=3).noise_dim == 2 + 3 * 49


@torch.no_grad()
@EVERY
def test_every_sample_sees_its_own_images_features(name):
    """A batch's samples are those of each image alone, sample by sample."""
    model = model_named(name)
    x, noise = images_for(model, 3), normals(3, 4, model.noise_dim)

    def parts(posterior, noise):
        z, output, (layer,) = model.sample_posterior(posterior, noise)
        return [z, output, *(part.view(*z.shape[:2], -1) for part in layer)]

    together = parts(model.encode(x), noise)
    for image in range(3):
        posterior = model.encode(x[image : image + 1])
        for sample in range(4):
            alone = parts(posterior, noise[image : image + 1, sample : sample + 1])
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[image, sample], theirs[0, 0], atol=1e-4, rtol=1e-4)
    # The same z, and another image's features: they alone make the difference.
    posterior = model.encode(x)
    swapped = parts(replace(posterior, features=posterior.features.roll(1, 0)), noise)
    assert (swapped[0] == together[0]).all()
    assert (swapped[3] - together[3]).abs().flatten(1).max(1).values.min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", CONV)
def test_each_position_has_latents_of_its_own(name):
    """Noise is laid out as channels, rows, columns; at a position it moves y there alone, and the image around it."""
    model = model_named(name)
    channels = model.params.lower_latent_dim
    z = normals(1, 2)
    h = model.decoder.start(z)
    noise = torch.zeros(2, channels, 2, 2)
    noise[1, -1, 0, 1] = 3.0
    top_down = TopDown(noise, h)
    for each in noise:
        top_down.noise = each
        model.hierarchy(h, top_down)
    samples, moved = top_down.samples
    change = (moved.y - samples.y).view(channels, 2, 2)
    assert change.nonzero().tolist() == [[channels - 1, 0, 1]]
    scale = torch.exp(0.5 * samples.logvar.view(channels, 2, 2)[-1, 0, 1])
    torch.testing.assert_close(change[-1, 0, 1], 3 * scale)
    torch.testing.assert_close(moved.prior_mu, model.hierarchy.prior(h)[:, :channels].flatten(1))


# What is decoded, sampled and reconstructed


@torch.no_grad()
@EVERY
def test_images_are_decoded_from_the_mean_of_p_of_y_given_z(name):
    model = model_named(name)
    z = normals(3, 2)
    h = model.decoder.start(z)
    mean = model.hierarchy.prior(h).chunk(2, 1)[0]
    expected = model.decoder.finish(h + model.hierarchy.inject(mean), z)
    torch.testing.assert_close(model.decode(z), expected)
    assert torch.equal(model.decode(z), model.decode(z))


@torch.no_grad()
@EVERY
def test_reconstructions_are_from_both_posteriors_means(name):
    model = model_named(name)
    x = images_for(model, 3)
    encoding = model.encode(x)
    h = model.decoder.start(encoding.mu)
    shift = model.hierarchy.posterior(torch.cat([encoding.features, h], 1)).chunk(2, 1)[0]
    mean = model.hierarchy.prior(h).chunk(2, 1)[0] + shift
    expected = model.decoder.finish(h + model.hierarchy.inject(mean), encoding.mu).sigmoid()
    torch.testing.assert_close(model.reconstruct(x), expected)
    assert (model.reconstruct(x) - model.images(encoding.mu)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_samples_spread_as_y_does_around_its_mean(name, monkeypatch):
    """At a fixed z, samples differ by y alone: their features' moments are those of p(y|z)."""
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
    assert torch.equal(images, model.sample(n, torch.Generator().manual_seed(0)))
    assert not torch.equal(images, model.sample(n, torch.Generator().manual_seed(1)))


# Training and files


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


@torch.no_grad()
@EVERY
def test_save_and_load_bring_back_both_layers(name, tmp_path):
    model = model_named(name)
    model.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert loaded.params == model.params
    x, noise = images_for(model, 3), normals(3, 2, model.noise_dim)
    assert all(torch.equal(*parts) for parts in zip(model(x, noise), loaded(x, noise), strict=True))
    first, second = (each.sample(3, torch.Generator().manual_seed(1)) for each in (model, loaded))
    assert torch.equal(first, second)
