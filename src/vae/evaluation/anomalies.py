"""Anomaly detection: images of another distribution by the model's likelihood, and where that fails.

Shapes: N images of D = C·H·W pixel values, as the model gets them, uint8 [N, D]: 0 and 255 if they are binarized.
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
from vae.models.networks import ImageShape
from vae.models.vae import VAE


def altered_images(images: Tensor, image_shape: ImageShape, *, seed: int = 0) -> dict[str, Tensor]:
    """Anomalies made of images [N, D]: rotated, with a tenth of the pixels or all inverted, and half the size on black.

    They are rotated by 90°, or by 180° where that would change their sides.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.rand(images.shape, generator=generator) < 0.1).to(images)
    shaped = images.view(-1, *image_shape)
    _, height, width = image_shape
    rotated = shaped.rot90(1 if height == width else 2, dims=(2, 3))
    left, top = width - width // 2, height - height // 2  # of the border, in all
    border = (left // 2, left - left // 2, top // 2, top - top // 2)
    shrunk = F.pad(F.max_pool2d(shaped.float(), 2), border).to(images)
    rotated, shrunk = rotated.flatten(1), shrunk.flatten(1)
    return {"rotated": rotated, "noisy": images ^ 255 * noise, "inverted": 255 - images, "shrunk": shrunk}


def anomaly_scores(model: VAE, images: Tensor, params: EvaluateParams, *, seed: int = 0) -> pd.DataFrame:
    """Scores of each image, in nats, higher for anomalies: −ELBO, NLL, and the NLL minus the image's complexity.

    The last is the score of Serrà et al. 2020, −log p(x) − L(x), where L(x) is the length of the compressed image.
    """
    found = evaluate(model, images, None, params, seed=seed).images
    complexity = math.log(2) * np.array([8 * len(zlib.compress(image.tobytes(), 9)) for image in images.cpu().numpy()])
    return pd.DataFrame({"−ELBO": -found["elbo"], "NLL": found["nll"], "NLL − complexity": found["nll"] - complexity})


def auroc(normal: pd.DataFrame, anomalies: pd.DataFrame) -> dict[str, float]:
    """By score, the probability that an anomaly has a higher one than a normal image; 0.5 is chance."""
    from sklearn.metrics import roc_auc_score  # takes a second to import

    is_anomaly = [0] * len(normal) + [1] * len(anomalies)
    return {str(name): float(roc_auc_score(is_anomaly, [*normal[name], *anomalies[name]])) for name in normal}
