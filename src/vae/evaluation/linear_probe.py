"""A linear probe: how well a linear classifier of the posterior means predicts the class."""

import torch
from torch import Tensor

from vae.config import EvaluateParams
from vae.data.binarization import to_float
from vae.evaluation.likelihood import Floats
from vae.models.vae import VAE


@torch.no_grad()
def posterior_means(model: VAE, images: Tensor, params: EvaluateParams, labels: Tensor | None = None) -> Tensor:
    """The means of q(z|x), [N, L], of `images` [N, D] as the model gets them, uint8 or floats in [0, 1].

    `labels` [N] are those that a conditional model takes.
    """
    model.eval()
    parts = (slice(start, start + params.chunk_size) for start in range(0, len(images), params.chunk_size))
    if labels is None or not model.classes:
        return torch.cat([model.encode(to_float(images[part]))[0] for part in parts])
    return torch.cat([model.encode(to_float(images[part]), labels[part])[0] for part in parts])


def linear_probe_accuracy(train_mu: Floats, train_labels: Tensor, test_mu: Floats, test_labels: Tensor) -> float:
    """The test accuracy of a linear classifier fitted on the posterior means [N, L] of training images.

    Multinomial logistic regression on standardized means with scikit-learn's defaults, which is deterministic.
    """
    from sklearn.linear_model import LogisticRegression  # imported here: it takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_mu, train_labels.numpy())
    return float(probe.score(test_mu, test_labels.numpy()))
