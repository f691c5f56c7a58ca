"""Pictures of a model in training: they show what they should, and change nothing in the training."""

from functools import partial

import numpy as np
import pytest
import torch

from vae.data.datasets import Split, load
from vae.models.vae import VAE
from vae.plots.by_epoch import pictures
from vae.plots.figure import class_colours


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
    assert len(colours & {tuple(int(255 * part) for part in colour) for colour in class_colours(10)}) >= 5


@pytest.mark.parametrize("labelled", [True, False])
def test_colour_images_keep_their_colours_in_the_map_and_have_frames(labelled):
    images = torch.full((30, 3, 12, 20), 77, dtype=torch.uint8)
    split = Split(images.flatten(1), torch.arange(30) % 25 if labelled else None)
    model = VAE(image_shape=(3, 12, 20), hidden_dims=[16], latent_dim=3, prior="standard")
    found = {name: np.array(picture) for name, picture in pictures(model, split, "none", seed=0).items()}
    shown = 20 if labelled else 10  # reconstructions, each twice as large as it is
    assert found["reconstructions"].shape == (2 * 25, 2 * (21 * shown - 1), 3)
    assert found["samples"].shape == (2 * (8 * 13 - 1), 2 * (8 * 21 - 1), 3)
    colours = {tuple(colour) for colour in found["latent_space"].reshape(-1, 3).tolist()}
    assert (77, 77, 77) in colours
    frames = {tuple(int(255 * part) for part in colour) for colour in class_colours(25 if labelled else 1)}
    assert colours & frames


def test_large_images_are_not_magnified_and_are_thinned_out_in_the_map():
    images = (torch.rand(5, 3 * 90 * 60) * 255).byte()
    model = VAE(image_shape=(3, 90, 60), hidden_dims=[4], latent_dim=2, prior="standard")
    found = pictures(model, Split(images, torch.arange(5)), "none", seed=0)
    assert np.array(found["reconstructions"]).shape == (181, 304, 3)
    assert np.array(found["latent_space"]).shape == (560, 560, 3)
