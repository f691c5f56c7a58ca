"""The comparison of two models on the same test images."""

import math
from typing import NamedTuple

import numpy as np

from vae.evaluation.likelihood import Floats


class PairedDifference(NamedTuple):
    """A mean over images of per-image differences, and its standard error, in nats per image."""

    mean: float
    standard_error: float


def paired_difference(first: Floats, second: Floats) -> PairedDifference:
    """The mean of first − second, a metric of two models on the same images in the same order: [N] each, N ≥ 2.

    Some images are harder than others for both models. This cancels here, but not in the difference of two means with
    their own standard errors. The mean divided by its standard error is the statistic of the paired t-test.
    """
    difference = first.astype(np.float64) - second
    return PairedDifference(float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference)))
