"""The paired comparison, against SciPy's paired t-test."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from vae.evaluation.paired import paired_difference


def test_it_is_the_statistic_of_the_paired_t_test_and_antisymmetric():
    rng = np.random.default_rng(0)
    images = rng.normal(85, 22, 1000)  # how hard they are, for both models
    first, second = (images + shift + rng.normal(0, 1, 1000) for shift in (-0.1, 0.0))
    mean, error = paired_difference(first, second)
    assert mean / error == pytest.approx(ttest_rel(first, second).statistic)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert error < 0.1 * first.std() / np.sqrt(1000)
    assert paired_difference(second, first) == pytest.approx((-mean, error))


def test_differences_of_float32_are_summed_in_double_precision():
    first = np.full(10_000, 80.1, np.float32)
    second = first.copy()
    second[0] += 1
    mean, error = paired_difference(second, first)
    assert (mean, error) == pytest.approx((1e-4, 1e-4), rel=1e-5)
