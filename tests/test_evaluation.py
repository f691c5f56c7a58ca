import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import EvaluateParams, ModelParams
from vae.data import to_float
from vae.evaluation import active_units, evaluate
from vae.model import VAE


def model_of(latents=2, seed=0):
    return VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=latents), seed)


def binary_images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 784, generator=generator) < 0.2).to(torch.uint8) * 255


LABELS = torch.arange(23) % 10
TARGETS = binary_images(23)


def exact_nll(model, x, points=81, reach=5.0):
    """−log p(x) by numerical integration over a grid of a 2-D latent space."""
    line = torch.linspace(-reach, reach, points)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        log_likelihood = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x[:, None])
    log_prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    cell = 2 * math.log(2 * reach / (points - 1))
    return -torch.logsumexp(log_likelihood + log_prior + cell, 1)


def test_nll_is_the_integral_over_the_latent_space():
    model = model_of()
    few = TARGETS[:5]
    result = evaluate(model, few, LABELS[:5], EvaluateParams(importance_samples=100_000))
    exact = exact_nll(model, to_float(few)).double().numpy()
    assert (-result.images["elbo"] - exact).min() > 0.1, "the bound must be loose enough for the test to see a gap"
    np.testing.assert_allclose(result.images["nll"], exact, atol=0.02, rtol=0)
    assert (result.images["nll"] <= -result.images["elbo"] + 1e-3).all()


def test_reconstruction_and_kl_are_those_of_torch_distributions():
    model = model_of(4)
    result = evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=3000))
    x = to_float(TARGETS)
    with torch.no_grad():
        mu, logvar = model.encode(x)
        posterior = Normal(mu, torch.exp(0.5 * logvar))
        torch.manual_seed(1)
        log_likelihood = Independent(Bernoulli(logits=model.decode(posterior.sample((3000,)))), 1).log_prob(x)
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    error = 5 * log_likelihood.std(0) * math.sqrt(2 / 3000)
    assert (torch.tensor(result.images["reconstruction"].to_numpy()) + log_likelihood.mean(0)).abs().lt(error).all()
    np.testing.assert_allclose(result.images["kl"], kl.double().numpy(), rtol=1e-4)
    np.testing.assert_allclose(result.images["elbo"], -(result.images["reconstruction"] + result.images["kl"]))


def test_the_same_weights_give_the_same_figures_and_more_samples_a_tighter_bound():
    model = model_of(8)
    one, few, many = (
        evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=k)).metrics() for k in (1, 10, 1000)
    )
    assert many == evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=1000)).metrics()
    assert many["nll"] < few["nll"] < one["nll"]
    assert one["nll"] == pytest.approx(-one["elbo"], abs=0.5)


def test_chunks_smaller_than_an_images_samples_give_the_same_estimate():
    model = model_of()
    whole = evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=1000, chunk_size=23_000)).metrics()
    for chunk_size in (1, 7, 300):
        samples = 1000 if chunk_size > 100 else 50
        params = EvaluateParams(importance_samples=samples, chunk_size=chunk_size)
        chunked = evaluate(model, TARGETS, LABELS, params).metrics()
        assert chunked["nll"] == pytest.approx(whole["nll"], abs=0.05)
        assert chunked["kl"] == pytest.approx(whole["kl"], rel=1e-6)


def test_at_most_a_chunk_of_latents_is_decoded_at_a_time(monkeypatch):
    sizes = []
    draw = VAE.draw
    monkeypatch.setattr(VAE, "draw", lambda self, x, noise: sizes.append(noise[..., 0].numel()) or draw(self, x, noise))
    evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=50, chunk_size=128))
    assert max(sizes) <= 128
    assert sum(sizes) == 23 * 50


def test_each_image_is_encoded_once(monkeypatch):
    sizes = []
    encoding = VAE.encoding
    monkeypatch.setattr(VAE, "encoding", lambda self, x: sizes.append(len(x)) or encoding(self, x))
    evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=50, chunk_size=128))
    assert sum(sizes) == 23


def exact_importance_weighted_nll(model, x, samples, chunk):
    """The NLL from the draws that `evaluate` takes of one image, all in float64."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).double()
    log_weights = []
    with torch.no_grad():
        mu, logvar = (moment.double() for moment in model.encode(x.double()))
        posterior = Normal(mu, torch.exp(0.5 * logvar))
        for n in [chunk] * (samples // chunk):
            noise = torch.randn(1, n, model.noise_dim, generator=generator)[0].double()
            z = posterior.mean + posterior.stddev * noise
            likelihood = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x.double())
            log_weights.append(likelihood + (Normal(0.0, 1.0).log_prob(z) - posterior.log_prob(z)).sum(1))
    return math.log(samples) - torch.logsumexp(torch.cat(log_weights), 0).item()


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nll_is_exact_to_a_ten_thousandth_of_a_nat(scale):
    model = model_of(8)
    with torch.no_grad():
        model.decoder.head.weight.mul_(scale)  # 30: logits as large as those of a trained decoder
    for number in range(3):
        image = TARGETS[number : number + 1]
        result = evaluate(model, image, LABELS[:1], EvaluateParams(importance_samples=1000, chunk_size=250))
        expected = exact_importance_weighted_nll(model, to_float(image), 1000, 250)
        assert result.images["nll"][0] == pytest.approx(expected, abs=1e-4 * max(1, scale / 10))


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_pixels_that_are_surely_wrong_cost_their_logit(logit):
    model = model_of()
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.output_bias.fill_(logit)
    result = evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=20))
    white = to_float(TARGETS).sum(1)
    wrong = white if logit < 0 else 784 - white
    np.testing.assert_allclose(result.images["reconstruction"], 100 * wrong.double().numpy(), rtol=1e-5)
    assert np.isfinite(result.images["nll"]).all()


def test_bf16_is_for_the_decoders_products_only():
    model, types = model_of(8), {}
    model.encoder.head.register_forward_hook(lambda _, inputs, output: types.update(encoder=output.dtype))
    model.decoder.head.register_forward_hook(lambda _, inputs, output: types.update(decoder=output.dtype))
    exact, rounded = (
        evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=200, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert types == {"encoder": torch.float32, "decoder": torch.bfloat16}
    np.testing.assert_array_equal(exact.mu, rounded.mu)
    np.testing.assert_array_equal(exact.images["kl"], rounded.images["kl"])
    np.testing.assert_allclose(exact.images["nll"], rounded.images["nll"], atol=0.5, rtol=0)
    assert (exact.images["nll"] != rounded.images["nll"]).any()


def test_means_weigh_every_image_alike_and_digits_add_up_to_the_whole():
    result = evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=20, chunk_size=100))
    metrics, digits = result.metrics(), result.by_digit()
    assert metrics["n_test"] == 23
    assert digits["images"].tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    for name in ("reconstruction", "kl", "elbo", "nll"):
        assert metrics[name] == pytest.approx(result.images[name].mean())
        assert np.average(digits[name], weights=digits["images"]) == pytest.approx(metrics[name])


def test_active_units_are_those_whose_mean_varies():
    generator = np.random.default_rng(0)
    mu = generator.normal(size=(5000, 4)) * np.sqrt([1.0, 0.02, 0.005, 0.0])
    assert active_units(mu.astype(np.float32)) == 2


def test_active_units_of_a_digit_are_counted_among_its_own_images():
    result = evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=2))
    expected = [active_units(result.mu[(pd.Series(LABELS) == digit).to_numpy()]) for digit in range(10)]
    assert result.by_digit()["active_units"].tolist() == expected
