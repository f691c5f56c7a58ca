"""The second stochastic layer: KL, bounds against an integral over both latents, and whose latents are whose."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import EvaluateParams, ModelParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import evaluate, importance_samples
from vae.models.distributions import importance_weighted_bound
from vae.models.hierarchy import LowerDraws
from vae.models.likelihoods import bernoulli_nll
from vae.models.vae import VAE

PIXELS = 9
SIDE = 8  # of the images that convolutions see: 2×2 positions
NETWORKS = {
    "mlp": {"hidden_dims": (8, 6), "latent_dim": 2, "lower_latent_dim": 3},
    "skip": {"hidden_dims": (8, 6), "latent_dim": 2, "lower_latent_dim": 3, "decoder_skip": True, "activation": "glu"},
    "vampprior": {
        "hidden_dims": (8,),
        "latent_dim": 2,
        "lower_latent_dim": 1,
        "prior": "vampprior",
        "prior_components": 4,
    },
    "conv": {"architecture": "conv", "hidden_dims": (3, 4), "latent_dim": 2, "lower_latent_dim": 2},
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
    model = model_of({"hidden_dims": (6,), "latent_dim": 1, "lower_latent_dim": 1}, scale=0.5)
    with torch.no_grad():
        # Wider posteriors: importance weights of less variance. And an image that hangs on y.
        model.encoder.head.bias[1] += 1.0
        model.lower.posterior[-1].bias[1] += 1.0
        model.lower.inject.weight.mul_(3)
        targets = (images_for(model, 6) < 0.5).to(torch.uint8) * 255
        z = torch.linspace(-8, 8, 161)[:, None]  # [P, 1]
        h = model.decoder.start(z)
        mu, logvar = model.lower.prior(h).chunk(2, 1)
        unit = torch.linspace(-8, 8, 161)
        y = mu + torch.exp(0.5 * logvar) * unit  # [P, Q]: a grid around each p(y|z)
        features = h[:, None] + model.lower.inject(y[..., None])
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
        likelihood, ratio = importance_samples(model, x, model.encoding(x), params, torch.Generator().manual_seed(1))
        weights = (likelihood - ratio + torch.from_numpy(exact)[:, None]).exp()
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
def test_without_a_posterior_of_its_own_the_layer_adds_nothing_to_the_kl(tiny):
    model, targets, _ = tiny
    noise = normals(6, 50, model.noise_dim)
    draws = model.draw(model.encoding(to_float(targets)), noise)
    lower = draws.lower._replace(mu=draws.lower.prior_mu, logvar=draws.lower.prior_logvar)
    assert draws.lower.kl().min() > 0
    assert not lower.kl().any()
    torch.testing.assert_close(lower.log_ratio(), torch.zeros(6, 50), atol=1e-6, rtol=0)
    expected = model.prior.kl(draws.mu, draws.logvar, draws.z).mean(1)
    torch.testing.assert_close(model.kl(draws._replace(lower=lower)), torch.cat([expected, torch.zeros(6, 1)], 1))


# The KL


def test_kl_and_log_ratio_are_those_of_torch_distributions():
    y, mu, logvar, prior_mu, prior_logvar = (normals(4, 5, 3, seed=seed) for seed in range(5))
    draws = LowerDraws(y, mu, logvar, prior_mu, prior_logvar)
    q, p = Normal(mu, torch.exp(0.5 * logvar)), Normal(prior_mu, torch.exp(0.5 * prior_logvar))
    torch.testing.assert_close(draws.kl(), kl_divergence(q, p).sum(-1))
    torch.testing.assert_close(draws.log_ratio(), (q.log_prob(y) - p.log_prob(y)).sum(-1))


@torch.no_grad()
@EVERY
def test_the_mean_log_ratio_is_the_kl(name):
    model = model_named(name)
    x, n = images_for(model, 4), 5000
    draws = model.draw(model.encoding(x), normals(4, n, model.noise_dim))
    kl = model.kl(draws)
    terms = (2 if model.params.prior == "standard" else 1) + 1
    assert kl.shape == (4, terms)
    per_draw = model.prior.kl(draws.mu, draws.logvar, draws.z).sum(-1) + draws.lower.kl()
    difference = (model.log_ratio(draws) - per_draw).double()
    assert difference.shape == (4, n)
    assert (difference.mean(1).abs() < 4.5 * difference.std(1) / math.sqrt(n)).all()
    torch.testing.assert_close(kl.sum(1), per_draw.mean(1), atol=1e-4, rtol=1e-4)
    assert kl[:, -1].min() > 0.05, "the layer must have a KL of its own for the test to see it"


# Whose latents are whose


@EVERY
def test_shapes_follow_the_positions(name):
    model = model_named(name)
    latents = model.params.lower_latent_dim * (4 if name in CONV else 1)
    assert model.lower.noise_dim == latents
    assert model.noise_dim == 2 + latents
    x = images_for(model, 3)
    draws = model.draw(model.encoding(x), normals(3, 5, model.noise_dim))
    assert draws.logits.shape == (3, 5, model.input_dim)
    assert draws.z.shape == (3, 5, 2)
    assert {part.shape for part in draws.lower} == {(3, 5, latents)}
    assert model.log_ratio(draws).shape == (3, 5)
    assert model.decode(normals(3, 5, 2)).shape == (3, 5, model.input_dim)
    assert VAE(64, [3, 4], 2, "conv", lower_latent_dim=3).noise_dim == 2 + 3 * 4
    assert VAE(784, [3, 4], 2, "conv", lower_latent_dim=3).noise_dim == 2 + 3 * 49


@torch.no_grad()
@EVERY
def test_every_sample_sees_its_own_images_features(name):
    """A batch's draws are those of each image alone, sample by sample."""
    model = model_named(name)
    x, noise = images_for(model, 3), normals(3, 4, model.noise_dim)
    together = model.draw(model.encoding(x), noise)
    for image in range(3):
        for sample in range(4):
            encoding = model.encoding(x[image : image + 1])
            alone = model.draw(encoding, noise[image : image + 1, sample : sample + 1])
            found = [together.logits, together.z, *together.lower]
            expected = [alone.logits, alone.z, *alone.lower]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours[image, sample], theirs[0, 0], atol=1e-4, rtol=1e-4)
    # The same z, and another image: the features alone make the difference.
    first = model.encoding(x)
    swapped = model.draw(first._replace(features=first.features.roll(1, 0)), noise)
    assert (swapped.z == together.z).all()
    assert (swapped.lower.mu - together.lower.mu).abs().flatten(1).max(1).values.min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", CONV)
def test_each_position_has_latents_of_its_own(name):
    """Noise is laid out as channels, rows, columns; at a position it moves y there alone, and the image around it."""
    model = model_named(name)
    channels = model.params.lower_latent_dim
    z = normals(1, 2)
    h = model.decoder.start(z)
    noise = torch.zeros(1, channels, 2, 2)
    _, draws = model.lower(h, noise.flatten(1), h)
    noise[0, -1, 0, 1] = 3.0
    _, moved = model.lower(h, noise.flatten(1), h)
    change = (moved.y - draws.y).view(channels, 2, 2)
    assert change.nonzero().tolist() == [[channels - 1, 0, 1]]
    scale = torch.exp(0.5 * draws.logvar.view(channels, 2, 2)[-1, 0, 1])
    torch.testing.assert_close(change[-1, 0, 1], 3 * scale)
    torch.testing.assert_close(moved.prior_mu, model.lower.prior(h)[:, :channels].flatten(1))


# What is decoded, sampled and reconstructed


@torch.no_grad()
@EVERY
def test_images_are_decoded_from_the_mean_of_p_of_y_given_z(name):
    model = model_named(name)
    z = normals(3, 2)
    h = model.decoder.start(z)
    mean = model.lower.prior(h).chunk(2, 1)[0]
    expected = model.decoder.finish(h + model.lower.inject(mean), z)
    torch.testing.assert_close(model.decode(z), expected)
    assert torch.equal(model.decode(z), model.decode(z))


@torch.no_grad()
@EVERY
def test_reconstructions_are_from_both_posteriors_means(name):
    model = model_named(name)
    x = images_for(model, 3)
    encoding = model.encoding(x)
    h = model.decoder.start(encoding.mu)
    shift = model.lower.posterior(torch.cat([encoding.features, h], 1)).chunk(2, 1)[0]
    mean = model.lower.prior(h).chunk(2, 1)[0] + shift
    expected = model.decoder.finish(h + model.lower.inject(mean), encoding.mu).sigmoid()
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
    inject = model.lower.inject.forward
    monkeypatch.setattr(model.lower.inject, "forward", lambda y: seen.append(y) or inject(y))
    images = model.sample(n, torch.Generator().manual_seed(0))
    mu, logvar = model.lower.prior(model.decoder.start(z)).chunk(2, 1)
    y, std = seen[0].flatten(1), torch.exp(0.5 * logvar).flatten()
    assert ((y.mean(0) - mu.flatten()).abs() < 4.5 * std / math.sqrt(n)).all()
    assert ((y.std(0) / std - 1).abs() < 4.5 / math.sqrt(2 * n)).all()
    assert images.std(0).max() > 0.02
    assert torch.equal(images, model.sample(n, torch.Generator().manual_seed(0)))
    assert not torch.equal(images, model.sample(n, torch.Generator().manual_seed(1)))


# Training and files


def terms_by_hand(model, x, noise):
    """−log p(x|z, y), log q − log p and the KL of both layers, by torch.distributions, a sample at a time: [B, K]."""
    mu, logvar, features = model.encoding(x)
    q_z, samples = Normal(mu, torch.exp(0.5 * logvar)), []
    for z_noise, y_noise in ((each[:, :2], each[:, 2:]) for each in noise.unbind(1)):
        z = mu + torch.exp(0.5 * logvar) * z_noise
        h = model.decoder.start(z)
        p_mu, p_logvar = model.lower.prior(h).chunk(2, 1)
        shift, log_scale = model.lower.posterior(torch.cat([features, h], 1)).chunk(2, 1)
        p_y, q_y = Normal(p_mu, (0.5 * p_logvar).exp()), Normal(p_mu + shift, (0.5 * (p_logvar + log_scale)).exp())
        y = q_y.mean + q_y.stddev * y_noise.view_as(p_mu)
        logits = model.decoder.finish(h + model.lower.inject(y), z)
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
    draws = model.draw(model.encoding(x), noise)
    nll = bernoulli_nll(draws.logits, x[:, None])
    by_hand, ratio, kl = terms_by_hand(model, x, noise)
    if objective == "elbo":
        loss, expected = nll.mean() + model.kl(draws).sum(1).mean(), (by_hand + kl).mean()
    else:
        loss = -importance_weighted_bound(-nll - model.log_ratio(draws)).mean()
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
    ours, theirs = (each.draw(each.encoding(x), noise) for each in (model, loaded))
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(*parts) for parts in zip(ours.lower, theirs.lower, strict=True))
    first, second = (each.sample(3, torch.Generator().manual_seed(1)) for each in (model, loaded))
    assert torch.equal(first, second)
