"""Anomaly detection: images of another distribution by the model's likelihood, and where that fails.

Shapes: N images, D = 784 pixels. Images are binarized, uint8 [N, D]: 0 and 255.
"""

import math
import zlib

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from vae.config import EvaluateParams
from vae.evaluation.likelihood import evaluate
from vae.models.vae import VAE


def altered_digits(images: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Anomalies made of digits [N, D]: rotated by 90°, with a tenth of the pixels or all inverted, half the size."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.rand(images.shape, generator=generator) < 0.1).to(images)
    square = images.view(-1, 28, 28)
    shrunk = F.pad(F.max_pool2d(square.float(), 2), (7, 7, 7, 7)).to(images)
    rotated, shrunk = square.rot90(dims=(1, 2)).flatten(1), shrunk.flatten(1)
    return {"rotated": rotated, "noisy": images ^ 255 * noise, "inverted": 255 - images, "shrunk": shrunk}


def anomaly_scores(model: VAE, images: Tensor, params: EvaluateParams, *, seed: int = 0) -> pd.DataFrame:
    """Scores of each image, in nats, higher for anomalies: −ELBO, NLL, and the NLL minus the image's complexity.

    The last is the score of Serrà et al. 2020, −log p(x) − L(x), where L(x) is the length of the compressed image.
    """
    found = evaluate(model, images, torch.zeros(len(images), dtype=torch.int64), params, seed=seed).images
    complexity = math.log(2) * np.array([8 * len(zlib.compress(image.tobytes(), 9)) for image in images.cpu().numpy()])
    return pd.DataFrame({"−ELBO": -found["elbo"], "NLL": found["nll"], "NLL − complexity": found["nll"] - complexity})


def auroc(normal: pd.DataFrame, anomalies: pd.DataFrame) -> dict[str, float]:
    """By score, the probability that an anomaly has a higher one than a normal image; 0.5 is chance."""
    from sklearn.metrics import roc_auc_score  # takes a second to import

    is_anomaly = [0] * len(normal) + [1] * len(anomalies)
    return {str(name): float(roc_auc_score(is_anomaly, [*normal[name], *anomalies[name]])) for name in normal}
