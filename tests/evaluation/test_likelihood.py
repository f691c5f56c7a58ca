"""Likelihood bounds of test images, their errors, the linear probe, and interrupted evaluations."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.checkpoints import Checkpoints
from vae.config import EvaluateParams, ModelParams, Params, TrainParams
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split, load
from vae.device import resolve
from vae.evaluation import likelihood as evaluation
from vae.evaluation.likelihood import Evaluation, active_units, describe, evaluate, has_collapsed, summary
from vae.evaluation.linear_probe import linear_probe_accuracy, posterior_means
from vae.models.vae import VAE
from vae.training.loop import fit


def model_of(latents=2, seed=0):
    return VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=latents, prior="standard"), seed)


def binary_images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 784, generator=generator) < 0.2).to(torch.uint8) * 255


LABELS = torch.arange(23) % 10
TARGETS = binary_images(23)


def test_the_same_weights_give_the_same_metrics_and_more_samples_a_tighter_bound():
    model = model_of(8)
    one, few, many = (
        evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=k)).metrics() for k in (1, 10, 1000)
    )
    assert many == evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=1000)).metrics()
    assert many["nll"] < few["nll"] < one["nll"]
    assert one["nll"] == pytest.approx(-one["elbo"], abs=0.5)


def test_each_image_is_encoded_once_and_at_most_a_chunk_of_latents_is_decoded_at_a_time(monkeypatch):
    encoded, decoded = [], []
    encode, decode = VAE.encode, VAE.decode
    monkeypatch.setattr(VAE, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    monkeypatch.setattr(VAE, "decode", lambda self, z: decoded.append(z[..., 0].numel()) or decode(self, z))
    evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=50, chunk_size=128))
    assert sum(encoded) == 23
    assert max(decoded) <= 128
    assert sum(decoded) == 23 * 50


def exact_bounds(model, x, samples, chunk):
    """Reconstruction, KL and NLL of one image in float64, from the same noise as in `evaluate`."""
    generator = torch.Generator().manual_seed(0)
    model = copy.deepcopy(model).double()
    with torch.no_grad():
        mu, logvar = (moment.double() for moment in model.encode(x.double()))
        posterior, prior = Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)
        noise = [torch.randn(1, chunk, 8, generator=generator)[0].double() for _ in range(samples // chunk)]
        z = posterior.mean + posterior.stddev * torch.cat(noise)
        log_likelihood = Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x.double())
        log_weights = log_likelihood + (prior.log_prob(z) - posterior.log_prob(z)).sum(1)
    nll = math.log(samples) - torch.logsumexp(log_weights, 0)
    return [-log_likelihood.mean().item(), kl_divergence(posterior, prior).sum().item(), nll.item()]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_bounds_are_exact_to_a_ten_thousandth_of_a_nat(scale):
    model = model_of(8)
    with torch.no_grad():
        model.decoder.head.weight.mul_(scale)  # 30: logits as large as those of a trained decoder
    for number in range(3):
        image = TARGETS[number : number + 1]
        params = EvaluateParams(importance_samples=1000, chunk_size=250)
        found = evaluate(model, image, LABELS[:1], params).images.iloc[0]
        expected = exact_bounds(model, to_float(image), 1000, 250)
        tolerance = 1e-4 * max(1, scale / 10)
        assert found[["reconstruction", "kl", "nll"]].tolist() == pytest.approx(expected, abs=tolerance)
        assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"])


def test_bf16_is_used_in_the_decoder_only():
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


def test_metrics_are_means_over_images_and_those_of_classes_add_up_to_them():
    result = evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=20, chunk_size=100))
    metrics, classes = result.metrics(), result.by_class()
    images = classes["images"]
    assert metrics["n_test"] == 23
    assert images.tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    for name in ("reconstruction", "kl", "elbo", "nll"):
        assert metrics[name] == pytest.approx(result.images[name].mean())
    for name in ("reconstruction", "kl", "elbo", "nll", "nll_tenth", "effective_samples", "elbo_gap"):
        assert np.average(classes[name], weights=images) == pytest.approx(metrics[name])
    assert classes["active_units"].tolist() == [active_units(result.mu[label == LABELS]) for label in range(10)]


def test_classes_have_their_names_and_images_without_labels_are_one_class():
    params = EvaluateParams(importance_samples=2)
    named = evaluate(model_of(), TARGETS, 2 * (LABELS % 2), params).by_class(["odd", "none", "even"])
    assert named["class"].tolist() == ["odd", "even"]
    result = evaluate(model_of(), TARGETS, None, params)
    (row,) = result.by_class(["a"]).itertuples()
    assert (row[1], row.images) == ("all", 23) and row.nll == pytest.approx(result.metrics()["nll"])


def test_bits_per_dimension_are_those_of_a_discretized_likelihood_only():
    metrics = {}
    for likelihood in ("bernoulli", "gaussian", "discretized_logistic"):
        model = VAE(64, [16], 2, likelihood=likelihood)
        metrics[likelihood] = evaluate(model, TARGETS[:, :64], LABELS, EvaluateParams(importance_samples=2)).metrics()
    bits = metrics["discretized_logistic"].pop("bits_per_dimension")
    assert bits == pytest.approx(metrics["discretized_logistic"]["nll"] / math.log(2) / 64)
    assert metrics["bernoulli"].keys() == metrics["gaussian"].keys() == metrics["discretized_logistic"].keys()


def test_active_units_are_those_whose_mean_varies():
    generator = np.random.default_rng(0)
    mu = generator.normal(size=(5000, 4)) * np.sqrt([1.0, 0.02, 0.005, 0.0])
    assert active_units(mu.astype(np.float32)) == 2


@pytest.fixture(scope="module")
def trained(bundled):
    """A model whose importance weights vary a lot, trained on digits for a second; and other digits."""
    images = binarize_once(load(bundled[0], "train").images, "dynamic")
    train, test = (
        Split(part, torch.zeros(len(part), dtype=torch.int64)) for part in (images[:2000], images[2000:2200])
    )
    model = VAE.from_params(ModelParams(hidden_dims=(64,), latent_dim=20, prior="standard"), 0)
    params = TrainParams(
        epochs=20, batch_size=50, optimizer="adam", kl_warmup_epochs=10, precision="fp32", device="cpu"
    )
    fit(model, train, test, params, resolve(params))
    return model, test


def test_the_sampling_error_is_the_spread_of_repeated_evaluations(trained):
    model, test = trained
    params = EvaluateParams(importance_samples=100)
    repeated = [evaluate(model, test.images, test.labels, params, seed=seed) for seed in range(30)]
    nll = np.stack([result.images["nll"] for result in repeated])
    spread = math.sqrt(nll.var(0, ddof=1).sum()) / len(test)  # of the mean, from variances by image: known to 2 %
    assert np.mean([result.metrics()["nll_sampling_error"] for result in repeated]) == pytest.approx(spread, rel=0.1)
    delta = np.mean([1 / result.images["effective_samples"] - 1 / 100 for result in repeated])
    assert math.sqrt(delta / len(test)) < 0.75 * spread, "weights must vary so much that the usual estimate is too low"


def test_a_tenth_of_the_samples_shows_the_bias(trained):
    """It is the NLL of an evaluation with a tenth of the samples: on average, as they are other samples there."""
    model, test = trained
    few, many = (
        evaluate(model, test.images, test.labels, EvaluateParams(importance_samples=samples), seed=seed).metrics()
        for seed, samples in ((1, 10), (2, 100))
    )
    error = math.hypot(few["nll_sampling_error"], math.sqrt(10) * many["nll_sampling_error"])
    assert many["nll_tenth"] == pytest.approx(few["nll"], abs=4 * error)
    assert many["nll"] < many["nll_tenth"] - 4 * error
    assert 1 < few["effective_samples"] < many["effective_samples"] < 100


def test_the_errors_of_a_mean():
    columns = {"elbo": -5.0, "nll": [1.0, 2.0, 3.0, 4.0], "nll_tenth": 3.0, "effective_samples": [1.0, 3.0, 2.0, 2.0]}
    variances = {"variance_of_halves": [4.0, 0.0, 8.0, 0.0], "variance_of_quarters": [9.0, 9.0, 0.0, 0.0]}
    found = summary(pd.DataFrame({"reconstruction": 0.0, "kl": 0.0} | columns | variances))
    assert found["nll_standard_error"] == pytest.approx(math.sqrt(5 / 3 / 4))
    assert found["nll_sampling_error"] == pytest.approx(math.sqrt(3 * 3 / 4.5 / 4))
    assert found["elbo_gap"] == 5 - 2.5
    assert (found["nll_tenth"], found["effective_samples"]) == (3, 2)


def test_the_variance_between_parts_and_the_effective_samples_are_those_of_the_weights():
    weights = torch.tensor([[1.0, 3.0, 2.0, 2.0, 4.0, 6.0, 1.0, 1.0, 50.0]], dtype=torch.float64)
    halves, quarters = np.log([2, 3]), np.log([2, 2, 5, 1])  # without the ninth, which is in no part
    found = [evaluation.variance_between_parts(weights.log(), parts).item() for parts in (2, 4)]
    assert found == pytest.approx([halves.var(ddof=1), quarters.var(ddof=1)])
    assert evaluation.effective_samples(weights.log()).item() == pytest.approx(70**2 / (2500 + 72))
    assert evaluation.variance_between_parts(weights.log()[:, :3], 4).isnan().all()


@pytest.mark.filterwarnings("ignore:Degrees of freedom:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_undefined_errors_are_left_out():
    of_one_sample = evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=1)).metrics()
    of_one_image = evaluate(model_of(), TARGETS[:1], LABELS[:1], EvaluateParams(importance_samples=4)).metrics()
    errors = {"nll_sampling_error", "nll_standard_error"}
    assert errors & of_one_sample.keys() == {"nll_standard_error"}
    assert errors & of_one_image.keys() == {"nll_sampling_error"}


def evaluation_of(variances, kl):
    mu = np.random.default_rng(0).normal(size=(1000, len(variances))) * np.sqrt(variances)
    bounds = {"reconstruction": 100.0, "kl": kl, "elbo": -100 - kl}
    columns = dict.fromkeys(evaluation.COLUMNS, 1.0) | {"label": 0} | bounds
    images = pd.DataFrame(columns, index=range(1000))
    return Evaluation(images, mu.astype(np.float32), np.zeros_like(mu, np.float32))


@pytest.mark.parametrize(
    ("variances", "kl", "collapsed"),
    [
        ([1.0] * 5 + [0.005] * 35, 9.0, False),
        ([1.0] * 4 + [0.005] * 36, 9.0, True),
        ([1.0, 0.0], 3.0, False),
        ([1.0, 1.0], 0.05, True),
    ],
)
def test_a_collapse_is_reported_where_hardly_a_dimension_is_active_or_the_kl_is_near_0(variances, kl, collapsed):
    metrics = evaluation_of(variances, kl).metrics()
    assert metrics["active_units"] + metrics["collapsed_units"] == len(variances)
    assert metrics["collapsed_units"] == sum(variance < 0.01 for variance in variances)
    assert has_collapsed(metrics) == collapsed
    lines = describe(metrics, Params().replaced({"model.latent_dim": len(variances)})).splitlines()
    assert len(lines) == 3 + 2 * collapsed
    assert [line for line in lines if line.startswith("warning: posterior collapse")] == lines[3:4]


def test_with_several_layers_the_kl_tells_of_a_collapse():
    metrics = evaluation_of([0.0] * 8, 25.0).metrics()
    assert has_collapsed(metrics) and not has_collapsed(metrics | {"kl_top": 0.0, "kl_lower_1": 25.0})
    assert has_collapsed(metrics | {"kl": 0.05, "kl_top": 0.0, "kl_lower_1": 0.05})


def test_posterior_means_are_the_evaluations_whatever_the_chunks():
    model = model_of(4)
    result = evaluate(model, TARGETS, LABELS, EvaluateParams(importance_samples=2))
    for chunk_size in (1, 7, 100):
        means = posterior_means(model, TARGETS, EvaluateParams(chunk_size=chunk_size))
        np.testing.assert_allclose(means.numpy(), result.mu, atol=1e-5)


def test_a_linear_probe_finds_linear_structure_only():
    mu = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    positive = torch.from_numpy(mu > 0).long()
    sides, crossed = positive[:, 0] + 2 * positive[:, 1], positive[:, 0] ^ positive[:, 1]

    def accuracy(labels, of_test):
        return linear_probe_accuracy(mu[:1000], labels[:1000], mu[1000:], of_test[1000:])

    assert accuracy(sides, sides) > 0.97
    assert accuracy(crossed, crossed) < 0.6
    assert accuracy(sides, 3 - sides) < 0.03, "it must be scored on the labels of the test images"


def test_a_linear_probe_of_a_constant_guesses():
    mu, labels = np.zeros((600, 1), np.float32), torch.arange(600) % 2
    assert linear_probe_accuracy(mu, labels, mu, labels) == pytest.approx(0.5, abs=0.05)


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_an_interrupted_evaluation_resumes_to_the_same_metrics(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    model, params = model_of(), EvaluateParams(importance_samples=10, chunk_size=40)  # six batches
    expected = evaluate(model, TARGETS, LABELS, params)
    calls, evaluate_batch = [], evaluation._evaluate_batch

    def interrupted_once(*arguments):
        calls.append(arguments)
        if len(calls) == batch + 1:
            raise InterruptError
        return evaluate_batch(*arguments)

    monkeypatch.setattr(evaluation, "_evaluate_batch", interrupted_once)
    with pytest.raises(InterruptError):
        evaluate(model, TARGETS, LABELS, params, checkpoints=Checkpoints(tmp_path))
    again = evaluate(model, TARGETS, LABELS, params, checkpoints=Checkpoints(tmp_path))
    assert len(calls) == 6 + 1
    pd.testing.assert_frame_equal(again.images, expected.images, check_exact=True)
    np.testing.assert_array_equal(again.mu, expected.mu)
    np.testing.assert_array_equal(again.logvar, expected.logvar)


def test_a_short_evaluation_leaves_no_checkpoints(tmp_path):
    evaluate(model_of(), TARGETS, LABELS, EvaluateParams(importance_samples=1), checkpoints=Checkpoints(tmp_path))
    assert not list(tmp_path.iterdir())
