"""Quality of generated images, measured in the features of a small classifier.

The metrics are those of the FID and the Inception Score (Heusel et al. 2017, Salimans et al. 2016), and precision and
recall (Kynkäänniemi et al. 2019), but the classifiers are trained here on the data set itself: compare them between
models of one data set and binarization, never with an FID.

Shapes: N images of D = C·H·W pixel values, uint8 [N, D], binarized unless `binary` is False; F features.
"""

import math
import statistics
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.config import EvaluateParams
from vae.data.binarization import to_float
from vae.data.datasets import Split
from vae.models.networks import ImageShape
from vae.models.vae import VAE

FEATURES = 64  # few enough for a covariance from 1,000 images
STEPS = 600
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
CLASSIFIERS = 3
NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
NEIGHBOUR_IMAGES = 5000  # of each kind: the time for the neighbours is quadratic
ROWS_AT_ONCE = 500  # of a matrix of distances


def sample_quality(
    model: VAE, train: Split, test: Split, params: EvaluateParams, *, binary: bool = True, seed: int = 0
) -> dict[str, float]:
    """Means over `CLASSIFIERS` of `metrics_of_one_classifier`, and standard deviations, `…_sd`, of those of samples.

    There are none (the result is empty) with too few images to train the classifiers beside as many images as are in
    the test, or for the nearest neighbours among these.
    """
    if len(train) - len(test) < BATCH_SIZE or len(test) <= NEIGHBOURS:
        return {}
    seeds = range(seed * CLASSIFIERS, (seed + 1) * CLASSIFIERS)
    found = [metrics_of_one_classifier(model, train, test, params, binary=binary, seed=seed) for seed in seeds]
    columns = {name: [metrics[name] for metrics in found] for name in found[0]}
    varying = ("sample_frechet_distance", "sample_precision", "sample_recall")
    spread = {f"{name}_sd": statistics.stdev(columns[name]) for name in varying}
    return {name: statistics.mean(values) for name, values in columns.items()} | spread


def metrics_of_one_classifier(
    model: VAE, train: Split, test: Split, params: EvaluateParams, *, binary: bool, seed: int
) -> dict[str, float]:
    """Compare as many samples of the model as there are `test` images with these; splits are on the model's device.

    `sample_frechet_distance` (squared, as the FID) has a floor, `train_frechet_distance`: that of as many training
    images, which are held out from the classifier's training. `sample_confidence` is the mean probability of the
    most probable class, `sample_label_entropy` the entropy of the samples' class distribution in nats, at most the
    logarithm of the number of classes, ln 10 for MNIST. `sample_precision` and `sample_recall` are those of
    `precision_and_recall`, `train_…` those of the training images. Unless `binary`, samples are mean images. Those of a
    conditional model are of the test images' classes.
    """
    generator = torch.Generator(test.images.device).manual_seed(seed)
    order = torch.randperm(len(train), generator=generator, device=test.images.device)
    held, used = order[: len(test)], order[len(test) :]
    classifier = train_classifier(train, used, model.image_shape, generator, seed)
    labels = test.require_labels() if model.classes else None
    samples = sample_images(model, len(test), params, generator, binary=binary, labels=labels)
    with torch.no_grad():
        features = {
            name: classifier[:-1](to_float(images))
            for name, images in {"test": test.images, "train": train.images[held], "sample": samples}.items()
        }
        predicted = classifier[-1](features["test"]).argmax(1)
        probabilities = classifier[-1](features["sample"]).double().softmax(1)
    # Unit lengths: noise has short features, and with them a precision of 0.93, within the balls of outliers.
    every = math.ceil(len(test) / NEIGHBOUR_IMAGES)
    unit = {name: F.normalize(part[::every]) for name, part in features.items()}
    precision, recall = precision_and_recall(unit["test"], unit["sample"])
    of_train = precision_and_recall(unit["test"], unit["train"])
    return {
        "classifier_accuracy": (predicted == test.labels).double().mean().item(),
        "classifier_images": len(used),
        "sample_frechet_distance": frechet_distance(features["sample"], features["test"]),
        "train_frechet_distance": frechet_distance(features["train"], features["test"]),
        "sample_precision": precision,
        "train_precision": of_train[0],
        "sample_recall": recall,
        "train_recall": of_train[1],
        "sample_confidence": probabilities.amax(1).mean().item(),
        "sample_label_entropy": torch.special.entr(probabilities.mean(0)).sum().item(),
    }


def train_classifier(
    train: Split, used: Tensor, image_shape: ImageShape, generator: torch.Generator, seed: int
) -> nn.Sequential:
    """Train two convolutions and two linear layers for a fixed number of steps; all but the last layer give features.

    `used` [N] are the indices of the images to train on, `seed` determines the initial weights, `generator` the
    batches.
    """
    images, labels = train.images, train.require_labels()
    channels, *sides = image_shape
    padding = 0 if min(sides) >= 13 else 2  # with smaller sides, nothing is left after two convolutions without
    for _ in range(2):
        sides = [(side + 2 * padding - 5) // 2 + 1 for side in sides]
    convolution = partial(nn.Conv2d, kernel_size=5, stride=2, padding=padding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [convolution(channels, 8), nn.ReLU(), convolution(8, 16), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(16 * math.prod(sides), FEATURES), nn.ReLU()]
        layers += [nn.Linear(FEATURES, int(labels.max()) + 1)]
        classifier = nn.Sequential(nn.Unflatten(1, image_shape), *layers)
    classifier.to(images.device)
    optimizer = torch.optim.Adam(classifier.parameters(), LEARNING_RATE)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for _ in range(STEPS):
            batch = used[torch.randint(len(used), (BATCH_SIZE,), generator=generator, device=images.device)]
            loss = F.cross_entropy(classifier(to_float(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier


@torch.no_grad()
def sample_images(
    model: VAE,
    n: int,
    params: EvaluateParams,
    generator: torch.Generator,
    *,
    binary: bool,
    labels: Tensor | None = None,
) -> Tensor:
    """`n` samples of the model, floats [n, D]: 0 or 1, or mean images unless `binary`.

    `labels` [n] are the classes that a conditional model is asked for.
    """
    model.eval()
    parts = torch.arange(n).split(params.chunk_size)
    images = torch.cat(
        [model.sample(len(part), generator, labels=None if labels is None else labels[part]) for part in parts]
    )
    return torch.bernoulli(images, generator=generator) if binary else images


def precision_and_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """The shares of generated images that look real, and of real ones that the model could have generated.

    An image counts if it is as near to any image of the other kind as the third nearest neighbour of that kind is to
    that image (Kynkäänniemi et al. 2019, eqs. 1 to 3), in features [N, F] and [M, F].
    """
    return _share_within(generated, real), _share_within(real, generated)


def _share_within(features: Tensor, others: Tensor) -> float:
    """The share of `features` [M, F] that are nearer to one of `others` [N, F] than its third nearest neighbour is."""
    nearest = [torch.cdist(part, others).topk(NEIGHBOURS + 1, largest=False) for part in others.split(ROWS_AT_ONCE)]
    radius = torch.cat([distances[:, -1] for distances, _ in nearest])  # the first is that to itself
    within = [(torch.cdist(part, others) <= radius).any(1) for part in features.split(ROWS_AT_ONCE)]
    return torch.cat(within).double().mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance of normal distributions fitted to features, [N, F] and [M, F], ≥ 0.

    ‖m_a − m_b‖² + tr(S_a + S_b − 2 (S_a S_b)^½) (Dowson & Landau 1982). With S = R Rᵀ, the last trace is the sum of
    the singular values of R_aᵀ R_b, whose squares are the eigenvalues of S_a S_b.
    """
    (mean_a, root_a), (mean_b, root_b) = (_moments(features.cpu().double()) for features in (a, b))
    traces = root_a.square().sum() + root_b.square().sum() - 2 * torch.linalg.matrix_norm(root_a.T @ root_b, "nuc")
    return max(0.0, float((mean_a - mean_b).square().sum() + traces))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and a root R [F, F] of the covariance R Rᵀ; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    return features.mean(0), vectors * values.clamp(min=0).sqrt()
