"""The mutual information gap, where it is known."""

import numpy as np
import pytest

from vae.evaluation.disentanglement import information_gaps

RANDOM = np.random.default_rng(0)
FACTORS = np.stack([RANDOM.integers(0, n, 20_000) for n in (3, 8, 20)], 1).astype(float)
NOISE = RANDOM.normal(size=(20_000, 1))


def test_a_dimension_for_each_factor_has_the_gap_1_whatever_its_scale_and_order():
    mu = np.concatenate([-2 * FACTORS[:, [2]], NOISE, FACTORS[:, [0]] + 5, 0.1 * FACTORS[:, [1]]], 1)
    assert information_gaps(mu, FACTORS) == pytest.approx([1, 1, 1], abs=0.01)


def test_a_factor_in_two_dimensions_or_in_none_has_the_gap_0():
    mu = np.concatenate([FACTORS[:, :2], 3 * FACTORS[:, :1], NOISE], 1)
    assert information_gaps(mu, FACTORS) == pytest.approx([0, 1, 0], abs=0.01)


def test_the_gap_of_a_noisy_copy_by_hand():
    """A bit that is kept with probability ¾ has ln 2 − H(¼) nats of information in one dimension, none in the other."""
    bit = RANDOM.integers(0, 2, (200_000, 1)).astype(float)
    kept = np.where(RANDOM.uniform(size=bit.shape) < 0.75, bit, 1 - bit)
    mu = np.concatenate([kept, RANDOM.integers(0, 2, bit.shape)], 1)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert information_gaps(mu, bit) == pytest.approx([1 - entropy / np.log(2)], abs=0.005)


def test_the_gap_of_a_continuous_factor_by_hand():
    """u + v, both uniform, has h(u + v) − h(v) = ½ − 0 nats of information on u; cut into bins, a little less."""
    u, v = RANDOM.uniform(size=(2, 200_000, 1))
    gap = information_gaps(np.concatenate([u + v, NOISE.repeat(10, 0)], 1), u)
    assert 0.85 * 0.5 < gap[0] * np.log(20) < 0.5
