"""The conditional VAE: labels reach encoder and decoder in training, evaluation and sampling."""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.utils.data import DataLoader, TensorDataset

from vae import VAE, VAETrainer
from vae.checkpoints import Checkpoints
from vae.config import EvaluateParams, ModelParams, TrainParams
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split, load
from vae.device import Hardware
from vae.errors import ConfigError, DataError
from vae.evaluation.likelihood import evaluate
from vae.evaluation.sample_quality import train_classifier
from vae.training.loop import fit, validate

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
MLP = {"hidden_dims": [16, 16], "latent_dim": 3, "prior": "standard"}
MODELS = {
    "mlp": MLP,
    "skip": MLP | {"decoder_skip": True, "prior": "realnvp", "prior_couplings": 2, "prior_width": 8},
    "ladder": MLP | {"lower_latent_dims": [2]},
    "prior by class": MLP | {"lower_latent_dims": [2], "conditional_prior": True},
    "conv": {"architecture": "conv", "hidden_dims": [4, 6], "latent_dim": 3, "prior": "standard"},
    "conv ladder": {"architecture": "conv", "hidden_dims": [4, 6], "latent_dim": 3, "lower_latent_dims": [2]},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    torch.manual_seed(0)
    model = VAE(64, **request.param, conditional=True, classes=4)
    model.label_images.data.normal_()
    for parameter in model.prior_by_class.parameters() if model.prior_by_class else ():
        parameter.data.normal_()
    return model.eval()


def shades(n, seed=0):
    """Images of 64 pixels, each as dark as its class, 0 to 3, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    noise = torch.randint(0, 20, (n, 64), generator=generator)
    return Split((60 * labels[:, None] + noise).to(torch.uint8), labels)


def trained(params=None, data=None, **options):
    model = VAE.from_params(ModelParams(**MLP, conditional=True), 0, 64, classes=4)
    settings = TrainParams(**{"epochs": 3, "batch_size": 32, "optimizer": "adam"} | (params or {}))
    fitted = fit(model, data or shades(200), shades(60, seed=1), settings, options.pop("hardware", CPU), **options)
    return model, fitted


# The model


def test_the_label_changes_posterior_image_and_bound(model):
    x, z, noise = torch.rand(1, 64).expand(4, -1), torch.randn(1, 3).expand(4, -1), torch.zeros(4, 2, model.noise_dim)
    labels = torch.arange(4)
    for found in (model.encode(x, labels).mu, model.images(z, labels), model(x, noise, labels=labels).nll):
        assert len(found.unique(dim=0)) == 4


def test_labels_are_those_of_the_images_one_by_one(model):
    x, labels = torch.rand(5, 64), torch.tensor([3, 1, 0, 2, 3])
    noise = torch.randn(5, 2, model.noise_dim)
    together = model(x, noise, labels=labels)
    for index, label in enumerate(labels.tolist()):
        alone = model(x[[index]], noise[[index]], labels=label)
        torch.testing.assert_close(alone.log_weights[0], together.log_weights[index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.reconstruct(x[[index]], label)[0], model.reconstruct(x, labels)[index])


def test_a_latent_alone_is_decoded_as_in_a_batch(model):
    z = torch.randn(2, 3)
    for label in (2, torch.tensor(2)):
        torch.testing.assert_close(model.images(z[0], label), model.images(z, 2)[0])


def test_samples_are_of_one_class_of_given_classes_or_of_each_in_turn(model):
    in_turn, of_two = (
        model.sample(8, torch.Generator().manual_seed(1), labels=labels) for labels in (None, torch.full((8,), 2))
    )
    one = model.sample(8, torch.Generator().manual_seed(1), labels=2)
    torch.testing.assert_close(one, of_two)
    torch.testing.assert_close(in_turn[[2, 6]], one[[2, 6]])
    assert not torch.allclose(in_turn[:2], one[:2])


def test_an_interpolation_may_keep_its_class_or_change_it():
    model = VAE(64, **MLP, conditional=True, classes=4).eval()
    start, end = torch.randn(2, 3)
    line, changing = model.interpolate(start, end, 3, labels=1), model.interpolate(start, end, 3, labels=[1, 1, 2])
    torch.testing.assert_close(line[[0, 2]], model.images(torch.stack([start, end]), 1))
    torch.testing.assert_close(changing[:2], line[:2])
    assert not torch.allclose(changing[2], line[2])


def test_a_saved_model_keeps_its_classes(model, tmp_path):
    model.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert loaded.classes == 4 and "conditional on 4 classes" in repr(loaded)
    assert torch.equal(*(each.sample(5, torch.Generator().manual_seed(2)) for each in (model, loaded)))


@pytest.mark.parametrize("prior", ["standard", "gaussian_mixture"])
@torch.no_grad()
def test_bound_and_samples_with_a_prior_by_class_are_those_of_torch_distributions(prior):
    torch.manual_seed(0)
    params = {**MLP, "prior": prior, "prior_components": 5, "conditional": True, "conditional_prior": True}
    model = VAE(64, **params, classes=4).eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    shift, scale = model.prior_by_class.shift, model.prior_by_class.log_scale.exp()
    base = Independent(Normal(torch.zeros(3), 1.0), 1)
    if prior == "gaussian_mixture":
        mu, logvar, log_weight = model.prior.components()
        base = MixtureSameFamily(Categorical(logits=log_weight), Independent(Normal(mu, torch.exp(logvar / 2)), 1))
    decoded = []
    model.decoder.register_forward_hook(lambda decoder, inputs, output: decoded.append(inputs[0][:, :3]))
    x, noise = torch.rand(20, 64), torch.randn(20, 6, model.noise_dim)
    for label in (0, 3):
        p = TransformedDistribution(base, AffineTransform(shift[label], scale[label], event_dim=1))
        mu, logvar = model.encoder.posterior(model.encoder.features(x + model.label_images[label])[-1]).chunk(2, 1)
        q = Independent(Normal(mu[:, None], torch.exp(logvar / 2)[:, None]), 1)
        terms = model(x, noise, labels=label)
        z = decoded[-1].view(20, 6, 3)
        torch.testing.assert_close(terms.log_ratio, q.log_prob(z) - p.log_prob(z), atol=1e-4, rtol=1e-4)
        if prior == "standard":
            exact = kl_divergence(Normal(mu, torch.exp(logvar / 2)), Normal(shift[label], scale[label]))
            torch.testing.assert_close(terms.kl, exact)
        model.sample(20_000, torch.Generator().manual_seed(1), labels=label)
        for ours, theirs in zip(decoded[-1].T, p.sample((20_000,)).T, strict=True):
            assert ks_2samp(ours, theirs).pvalue > 0.001


def test_without_classes_to_condition_on_nothing_is_drawn_or_kept():
    plain, told = VAE.from_params(ModelParams(**MLP), 0, 64), VAE.from_params(ModelParams(**MLP), 0, 64, classes=10)
    assert told.classes == 0
    assert plain.state_dict().keys() == told.state_dict().keys()
    assert all(torch.equal(weight, told.state_dict()[name]) for name, weight in plain.state_dict().items())


def test_what_a_conditional_model_needs_is_said():
    with pytest.raises(ConfigError, match="conditional requires labelled images"):
        VAE(64, conditional=True)
    with pytest.raises(ConfigError, match="prior 'vampprior' requires conditional false"):
        VAE(64, conditional=True, classes=4, prior="vampprior")
    with pytest.raises(ConfigError, match="conditional_prior requires conditional true"):
        VAE(64, conditional_prior=True)
    with pytest.raises(DataError, match="isn't conditional"):
        VAE(64, **MLP).sample(3, labels=1)
    model, x = VAE(64, **MLP, conditional=True, classes=4), torch.rand(3, 64)
    with pytest.raises(DataError, match="it takes a label from 0 to 3 for each image"):
        model.encode(x)
    for wrong in (4, -1, 0.5, [0, 1], [[0], [1], [2]]):
        with pytest.raises(DataError, match=r"labels are .* allowed are integers from 0 to 3"):
            model.encode(x, wrong)


# Training and evaluation


def test_training_validation_and_evaluation_use_the_labels():
    model, fitted = trained({"epochs": 6})
    test = shades(50, seed=2)
    targets = binarize_once(test.images, "dynamic")
    right, wrong = (test.labels + turn for turn in (0, 2))
    params = EvaluateParams(importance_samples=4)
    nlls = [evaluate(model, targets, labels % 4, params).metrics()["nll"] for labels in (right, wrong)]
    assert nlls[0] < nlls[1] - 1
    bounds = [validate(model, targets, CPU, labels=labels % 4)["neg_elbo"] for labels in (right, wrong)]
    assert bounds[0] < bounds[1] - 1
    data = shades(200)
    shuffled = Split(data.images, data.labels.roll(1))
    assert fitted.best["val/neg_elbo"] < trained({"epochs": 6}, shuffled)[1].best["val/neg_elbo"] - 1


def test_the_nll_is_that_of_an_integral_over_the_latents():
    torch.manual_seed(0)
    model = VAE(9, [8], 1, prior="standard", conditional=True, classes=2).eval()
    model.label_images.data.normal_()
    x, labels = binarize_once(torch.randint(0, 255, (6, 9), dtype=torch.uint8), "dynamic"), torch.arange(6) % 2
    z = torch.linspace(-8, 8, 801)[:, None]
    log_prior = model.prior.log_density(z) + math.log(16 / 800)
    with torch.no_grad():
        decoded = torch.stack([model.decode(z, label) for label in labels])
        log_likelihood = -model.likelihood.nll(decoded, to_float(x)[:, None].expand_as(decoded))
    exact = -torch.logsumexp(log_likelihood + log_prior, 1)
    found = evaluate(model, x, labels, EvaluateParams(importance_samples=5000)).images["nll"]
    torch.testing.assert_close(torch.tensor(found.to_numpy()).float(), exact, atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", ["split", "loader"])
def test_images_are_shuffled_together_with_their_labels(kind, monkeypatch):
    seen, encode = [], VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, x, labels: seen.append((x, labels)) or encode(self, x, labels))
    data = shades(90)
    if kind == "loader":
        data = DataLoader(TensorDataset(data.images, data.labels), batch_size=25, shuffle=True)
    params = ModelParams(**MLP, conditional=True, likelihood="gaussian")
    model = VAE.from_params(params, 0, 64, classes=4)
    VAETrainer(model, "cpu", binarization="none", batch_size=25).train(data, data, 2, progress=False)
    assert sum(len(x) for x, _ in seen) >= 4 * 90  # in training and in validation
    for x, labels in seen:
        assert torch.equal((x * 255 / 60).mean(1).long(), labels)


def test_images_without_labels_are_refused():
    unlabelled = DataLoader(shades(40).images, batch_size=20)
    with pytest.raises(DataError, match="labels are needed here"):
        trained(data=unlabelled)


def test_an_interrupted_training_resumes_bit_for_bit(tmp_path):
    whole, _ = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoints=Checkpoints(tmp_path), on_epoch=lambda record: stop(record["epoch"] == 2))
    resumed, _ = trained(checkpoints=Checkpoints(tmp_path))
    assert all(torch.equal(weight, resumed.state_dict()[name]) for name, weight in whole.state_dict().items())


def stop(now):
    if now:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_compiled_training_is_the_same_within_rounding():
    hardware = (Hardware(torch.device("cpu"), "fp32", compile=compiled) for compiled in (False, True))
    eager, compiled = (trained({"epochs": 1}, hardware=each)[1] for each in hardware)
    assert compiled.best["val/neg_elbo"] == pytest.approx(eager.best["val/neg_elbo"], rel=1e-4)


@pytest.fixture(scope="module")
def digits_and_classifier(bundled):
    images = load(bundled[0], "train")
    some = Split(images.images[:4000], images.labels[:4000])
    everything = torch.arange(len(images.images))
    return some, train_classifier(images, everything, (1, 28, 28), torch.Generator().manual_seed(0), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [{}, {"architecture": "conv", "hidden_dims": (8, 16)}, {"lower_latent_dims": (8,)}, {"conditional_prior": True}],
)
def test_samples_are_of_the_class_that_is_asked_for(digits_and_classifier, params):
    digits, classifier = digits_and_classifier
    params = {"hidden_dims": (256, 256), "latent_dim": 12, "prior": "standard", "conditional": True} | params
    model = VAE.from_params(ModelParams(**params), 0, classes=10)
    model.initialize_from_data(digits.images)
    fit(model, digits, digits, TrainParams(epochs=20, batch_size=64), CPU)
    labels = torch.arange(1000) % 10
    predicted = classifier(model.sample(1000, torch.Generator().manual_seed(1), labels=labels)).argmax(1)
    assert (predicted == labels).double().mean() > 0.9
