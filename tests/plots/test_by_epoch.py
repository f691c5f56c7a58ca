"""Pictures of a model in training: they show what they should, and change nothing in the training."""

from functools import partial

import numpy as np
import pytest
import torch

from vae.data.datasets import load
from vae.models.vae import VAE
from vae.plots.by_epoch import pictures
from vae.plots.latents import CLASS_COLOURS


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_pictures_have_a_grid_of_samples_pairs_of_images_and_digits_in_colour(bundled, latent_dim):
    images = load(bundled[0], "test")
    model = VAE(input_dim=784, hidden_dims=[16], latent_dim=latent_dim)
    draw = partial(pictures, model, images, "dynamic", seed=0)
    before = torch.random.get_rng_state()
    found, again = ({name: np.array(image) for name, image in drawn.items()} for drawn in (draw(), draw()))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    sizes = {"samples": (462, 462), "reconstructions": (114, 578), "latent_space": (560, 560, 3)}
    assert {name: picture.shape for name, picture in found.items()} == sizes
    inputs, reconstructions = np.split(found["reconstructions"][:-2], [58])
    assert set(np.unique(inputs[:56, :56])) == {0, 255} and len(np.unique(reconstructions[:, :56])) > 2
    colours = {tuple(colour) for colour in found["latent_space"].reshape(-1, 3).tolist()}
    assert len(colours & {tuple(int(255 * part) for part in colour) for colour in CLASS_COLOURS}) >= 5
