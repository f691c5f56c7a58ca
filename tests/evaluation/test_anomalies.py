"""Scores of anomalies, the altered digits, and the area under the curve by counting pairs."""

import math
import zlib

import numpy as np
import pandas as pd
import pytest
import torch

from vae.config import EvaluateParams, ModelParams
from vae.evaluation.anomalies import altered_images, anomaly_scores, auroc
from vae.evaluation.likelihood import evaluate
from vae.models.vae import VAE


def test_the_auroc_is_the_share_of_pairs_in_order_and_ties_count_half():
    rng = np.random.default_rng(0)
    normal, anomalies = rng.integers(0, 6, 50), rng.integers(2, 8, 40)
    pairs = (anomalies[:, None] > normal) + 0.5 * (anomalies[:, None] == normal)
    found = auroc(pd.DataFrame({"score": normal}), pd.DataFrame({"score": anomalies}))
    assert found == {"score": pytest.approx(pairs.mean())}


def test_digits_are_altered_as_their_names_say():
    digit = torch.zeros(28, 28, dtype=torch.uint8)
    digit[4:24, 10] = 255  # a stroke from the top to the bottom
    digit[4, 10:16] = 255  # and one from its upper end to the right
    images = digit.flatten().repeat(300, 1)
    found = {name: altered.view(-1, 28, 28) for name, altered in altered_images(images, (1, 28, 28), seed=1).items()}
    for altered in found.values():
        assert altered.dtype == torch.uint8 and set(altered.unique().tolist()) == {0, 255}
    turned = found["rotated"][0]  # to the left: the strokes lie, and stand at the lower left
    assert (turned[17, 4:24] == 255).all() and (turned[12:18, 4] == 255).all() and (turned > 0).sum() == 25
    assert torch.equal(found["inverted"][0] > 0, digit == 0)
    flipped = ((found["noisy"] > 0) != (digit > 0)).double()
    assert flipped.mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / flipped.numel()))
    assert flipped.mean(0).max() < 0.1 + 5 * math.sqrt(0.09 / 300)
    assert torch.nonzero(found["shrunk"][0]).tolist() == [
        *([9, column] for column in (12, 13, 14)),
        *([row, 12] for row in range(10, 19)),
    ]


def test_colour_images_of_odd_sides_are_altered_too():
    images = (torch.rand(4, 3 * 7 * 10, generator=torch.Generator().manual_seed(0)) * 255).byte()
    shaped = images.view(4, 3, 7, 10)
    found = {name: part.view(4, 3, 7, 10) for name, part in altered_images(images, (3, 7, 10)).items()}
    assert torch.equal(found["rotated"], shaped.flip(2, 3))
    assert torch.equal(found["inverted"], 255 - shaped)
    assert torch.equal(found["shrunk"][:, :, 2, 2], shaped[:, :, :2, :2].amax((2, 3)))
    assert found["shrunk"].count_nonzero() <= 4 * 3 * 3 * 5


def test_scores_are_the_bounds_and_the_nll_minus_the_nats_of_the_compressed_image():
    model = VAE.from_params(ModelParams(hidden_dims=(16,), latent_dim=2, prior="standard"), 0)
    images = (torch.rand(12, 784, generator=torch.Generator().manual_seed(0)) < 0.2).to(torch.uint8) * 255
    images[0] = 0
    params = EvaluateParams(importance_samples=5)
    found = anomaly_scores(model, images, params, seed=3)
    bounds = evaluate(model, images, torch.zeros(12, dtype=torch.int64), params, seed=3).images
    np.testing.assert_array_equal(found["−ELBO"], -bounds["elbo"])
    np.testing.assert_array_equal(found["NLL"], bounds["nll"])
    bits = (found["NLL"] - found["NLL − complexity"]) / math.log(2)
    assert bits[5] == pytest.approx(8 * len(zlib.compress(bytes(images[5].tolist()), 9)))
    assert bits[0] < 0.2 * bits[5], "a blank image is simple, noise is not"
