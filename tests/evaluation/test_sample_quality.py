"""The Fréchet distance and the classifier's metrics of generated images."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from vae.config import EvaluateParams, ModelParams
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split, load
from vae.evaluation import sample_quality as quality
from vae.models.vae import VAE


class Fixed(nn.Module):
    """A model whose samples are the given mean images [M, D], in turn or, of a conditional one, by their labels."""

    def __init__(self, images, image_shape=(1, 28, 28), classes=0):
        super().__init__()
        self.images, self.start, self.image_shape, self.classes = images, 0, image_shape, classes

    def sample(self, n, generator, labels=None):
        index = (self.start + torch.arange(n)) % len(self.images) if labels is None else labels
        self.start += n
        return self.images[index]


def features_with(mean, root, n=400, seed=0):
    """[n, F] with exactly this mean, and covariance root · rootᵀ."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x -= x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ root.T + mean


def test_the_frechet_distance_is_that_of_the_formula_with_scipys_matrix_root():
    roots = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    features = [features_with(torch.full((4,), float(i)).double(), root, 300, i) for i, root in enumerate(roots)]
    a, b = (np.cov(part.numpy().T) for part in features)
    expected = 4 + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert quality.frechet_distance(*features) == pytest.approx(expected, rel=1e-8)
    assert quality.frechet_distance(*reversed(features)) == pytest.approx(expected, rel=1e-8)


def test_the_same_features_have_no_distance_even_where_some_are_dead():
    features = features_with(torch.zeros(5).double(), torch.diag(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0]).double()))
    assert quality.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert quality.frechet_distance(features, features + 1) == pytest.approx(5)


def test_precision_and_recall_are_those_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(700, 2, generator=generator), 1.5 * torch.randn(600, 2, generator=generator)

    def share(points, others):
        within = 0
        for point in points.double().numpy():
            for other in others.double().numpy():
                distances = np.sort(np.linalg.norm(others.double().numpy() - other, axis=1))
                if np.linalg.norm(point - other) <= distances[3]:
                    within += 1
                    break
        return within / len(points)

    few_real, few_generated = real[:60], generated[:50]
    expected = share(few_generated, few_real), share(few_real, few_generated)
    assert quality.precision_and_recall(few_real, few_generated) == pytest.approx(expected)
    precision, recall = quality.precision_and_recall(real, generated)  # in more than one chunk
    assert precision < 0.95 < recall


def test_a_missing_mode_lowers_recall_and_a_wrong_one_precision():
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    a, b, c, d = (centre + torch.randn(100, 2, generator=torch.Generator().manual_seed(1)) for centre in centres)
    assert quality.precision_and_recall(torch.cat([a, b, c, d]), torch.cat([a, b])) == (1, 0.5)
    assert quality.precision_and_recall(torch.cat([a, b]), torch.cat([a, b, c, d])) == (0.5, 1)


def test_samples_are_black_and_white_with_the_probabilities_of_the_model():
    probabilities = torch.rand(1, 784, generator=torch.Generator().manual_seed(0)).expand(3, 784)
    generator = torch.Generator().manual_seed(1)
    samples = quality.sample_images(Fixed(probabilities), 2000, EvaluateParams(chunk_size=300), generator, binary=True)
    assert samples.shape == (2000, 784)
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    assert (samples.mean(0) - probabilities[0]).abs().max() < 5 * 0.5 / math.sqrt(2000)
    grey = quality.sample_images(Fixed(probabilities), 7, EvaluateParams(chunk_size=3), generator, binary=False)
    torch.testing.assert_close(grey, probabilities[:1].expand(7, 784))


def reader(scale):
    """A classifier of images that hold their label in the first ten pixels, one-hot."""
    features, logits = nn.Linear(784, 10, bias=False), nn.Linear(10, 10, bias=False)
    features.weight.data, logits.weight.data = torch.eye(10, 784), scale * torch.eye(10)
    return nn.Sequential(features, logits)


def test_confidence_and_diversity_are_those_of_the_sampled_digits(monkeypatch):
    monkeypatch.setattr(quality, "train_classifier", lambda *_: reader(5.0))
    labels = torch.arange(100) % 10
    one_hot = torch.eye(10, 784)
    part = Split((255 * one_hot[labels]).to(torch.uint8), labels)
    train = Split(part.images.repeat(3, 1), part.labels.repeat(3))

    def figures(digits):
        return quality.sample_quality(Fixed(one_hot[digits]), train, part, EvaluateParams())

    likeliest = math.exp(5) / (math.exp(5) + 9)
    other = (1 - likeliest) / 9
    all_digits, two, one = figures(list(range(10))), figures([3, 8]), figures([4])
    for found in (all_digits, two, one):
        assert found["sample_confidence"] == pytest.approx(likeliest)
        assert (found["classifier_accuracy"], found["classifier_images"]) == (1, 200)
        assert found["sample_precision"] == 1
    assert [found["sample_recall"] for found in (all_digits, two, one)] == [1, 0.2, 0.1]
    assert all_digits["sample_label_entropy"] == pytest.approx(math.log(10))
    marginal = [(likeliest + other) / 2] * 2 + [other] * 8
    assert two["sample_label_entropy"] == pytest.approx(-sum(p * math.log(p) for p in marginal))
    assert one["sample_label_entropy"] < two["sample_label_entropy"]
    assert all_digits["sample_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert one["sample_frechet_distance"] > two["sample_frechet_distance"] > 0.1


def test_a_conditional_model_is_asked_for_the_classes_of_the_test_images(monkeypatch):
    monkeypatch.setattr(quality, "train_classifier", lambda *_: reader(5.0))
    one_hot, labels = torch.eye(10, 784), torch.tensor([0] * 60 + [7] * 40)
    test = Split((255 * one_hot[labels]).to(torch.uint8), labels)
    train = Split(test.images.repeat(3, 1), labels.repeat(3))
    found = quality.sample_quality(Fixed(one_hot, classes=10), train, test, EvaluateParams(chunk_size=30))
    assert found["sample_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["sample_precision"] == found["sample_recall"] == 1


@pytest.fixture
def digits(bundled, monkeypatch):
    """Bundled training and test images; and a short training of the classifier."""
    monkeypatch.setattr(quality, "STEPS", 200)
    monkeypatch.setattr(quality, "CLASSIFIERS", 2)
    parts = (load(bundled[0], part) for part in ("train", "test"))
    return [Split(binarize_once(part.images, "dynamic"), part.labels) for part in parts]


def test_real_digits_are_as_near_as_the_floor_and_noise_is_far(digits):
    train, test = digits
    found = {
        name: quality.sample_quality(Fixed(images), train, test, EvaluateParams())
        for name, images in {"real": to_float(test.images.roll(1, 0)), "noise": torch.full((1, 784), 0.13)}.items()
    }
    assert found["real"]["classifier_images"] == 3000
    assert 0.8 < found["real"]["classifier_accuracy"] < 1
    assert found["real"]["sample_frechet_distance"] < 1e-4 < found["real"]["train_frechet_distance"]
    assert found["noise"]["sample_frechet_distance"] > 5 * found["noise"]["train_frechet_distance"]
    assert found["noise"]["sample_precision"] + 0.3 < found["noise"]["train_precision"] < 1
    assert found["noise"]["sample_recall"] + 0.3 < found["noise"]["train_recall"] < 1
    assert found["real"]["sample_precision"] == found["real"]["sample_recall"] == 1
    assert found["noise"]["train_frechet_distance"] == found["real"]["train_frechet_distance"]
    assert found["noise"]["sample_label_entropy"] < found["real"]["sample_label_entropy"] <= math.log(10)


def test_the_seed_determines_the_metrics_and_the_global_random_state_is_unchanged(digits, monkeypatch):
    monkeypatch.setattr(quality, "STEPS", 5)
    model = VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=1, prior="standard"), 0)
    state = torch.get_rng_state()
    first, again, other = (quality.sample_quality(model, *digits, EvaluateParams(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other
    every = [
        quality.metrics_of_one_classifier(model, *digits, EvaluateParams(), binary=True, seed=seed) for seed in (4, 5)
    ]
    for name in ("sample_frechet_distance", "sample_precision"):
        values = [metrics[name] for metrics in every]
        assert [other[name], other[f"{name}_sd"]] == pytest.approx([np.mean(values), np.std(values, ddof=1)])
    assert all(math.isfinite(value) for value in first.values())


@pytest.mark.parametrize("image_shape", [(3, 9, 17), (3, 21, 14), (1, 1, 5)])
def test_the_classifier_learns_classes_of_images_of_any_shape(image_shape, monkeypatch):
    monkeypatch.setattr(quality, "STEPS", 60)
    monkeypatch.setattr(quality, "CLASSIFIERS", 2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (400,), generator=generator)
    images = torch.randint(0, 40, (400, math.prod(image_shape)), generator=generator, dtype=torch.uint8)
    images += (100 * labels).byte()[:, None]  # classes differ in brightness
    train, test = Split(images[:300], labels[:300]), Split(images[300:], labels[300:])
    model = Fixed(to_float(test.images), image_shape)
    found = quality.sample_quality(model, train, test, EvaluateParams(), binary=False)
    assert found["classifier_accuracy"] > 0.95
    assert found["sample_frechet_distance"] < 1e-4
    assert found["sample_precision"] == found["sample_recall"] == 1
    assert found["sample_label_entropy"] <= math.log(3) + 1e-6


def test_too_few_images_have_no_metrics():
    few = Split(torch.zeros(200, 784, dtype=torch.uint8), torch.arange(200) % 10)
    half, three = Split(few.images[:100], few.labels[:100]), Split(few.images[:3], few.labels[:3])
    for test in (half, three):
        assert quality.sample_quality(Fixed(to_float(few.images)), few, test, EvaluateParams()) == {}
