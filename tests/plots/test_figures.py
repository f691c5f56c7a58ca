"""Figures: what they show, their labels, and equal bytes for equal arrays."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from vae.plots.figure import save
from vae.plots.history import training_history
from vae.plots.image_grids import (
    generated_samples,
    image_grid,
    interpolation,
    latent_manifold,
    latent_traversals,
    reconstructions,
)
from vae.plots.latents import kl_per_dimension, latent_space

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((12, 784))


def test_a_grid_holds_every_image_in_its_place_with_a_short_last_row():
    grid = image_grid(IMAGES[:5], columns=3)
    assert grid.shape == (2 * 29 - 1, 3 * 29 - 1)
    for number in range(5):
        row, column = divmod(number, 3)
        cell = grid[29 * row : 29 * row + 28, 29 * column : 29 * column + 28]
        np.testing.assert_array_equal(cell, IMAGES[number].reshape(28, 28))


def history(epochs, improved=()):
    keys = [f"{part}/{key}" for part in ("train", "val") for key in ("neg_elbo", "reconstruction", "kl")]
    epoch = np.arange(1, epochs + 1)
    columns = {key: RANDOM.random(epochs) + 90 for key in keys}
    return pd.DataFrame({"epoch": epoch, **columns, "improved": np.isin(epoch, [1, *improved]).astype(int)})


@pytest.mark.parametrize(("epochs", "improved", "kept"), [(1, [], 1), (40, [3, 9], 9)])
def test_the_history_shows_both_curves_and_marks_the_epoch_of_the_kept_weights(epochs, improved, kept):
    table = history(epochs, improved)
    figure = training_history(table)
    training, validation, marked = figure.axes[0].lines
    assert figure.axes[0].get_ylabel() == "nats per image"
    np.testing.assert_array_equal(training.get_ydata(), table["train/neg_elbo"])
    np.testing.assert_array_equal(validation.get_ydata(), table["val/neg_elbo"])
    assert marked.get_xydata().tolist() == [[kept, table["val/neg_elbo"][kept - 1]]]
    assert figure.get_suptitle() == f"Kept weights: epoch {kept}, with the best validation −ELBO"


def test_the_history_of_the_importance_weighted_bound_marks_the_epoch_with_the_best_bound():
    table = history(10, [4, 6])
    table["val/neg_bound"] = table["val/neg_elbo"] - 1
    table.loc[8, ["val/neg_elbo", "val/neg_bound"]] = 80, 95  # the best −ELBO, in another epoch
    figure = training_history(table)
    _, _, bound, marked = figure.axes[0].lines
    np.testing.assert_array_equal(bound.get_ydata(), table["val/neg_bound"])
    assert marked.get_xydata().tolist() == [[6, table["val/neg_bound"][5]]]
    assert figure.get_suptitle() == "Kept weights: epoch 6, with the best importance-weighted bound"


def test_the_ticks_of_a_long_history_do_not_overlap():
    figure = training_history(history(50_000))
    figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        ticks = [tick for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(("latents", "words"), [(1, "z[0]"), (2, "z[1]"), (7, "PCA of 7 latent dimensions")])
def test_the_latent_space_names_the_plane_that_it_shows_and_its_classes(latents, words):
    ax = latent_space(RANDOM.normal(size=(200, latents)), np.arange(200) % 10).axes[0]
    assert words in ax.get_title() + ax.get_xlabel() + ax.get_ylabel()
    assert [text.get_text() for text in ax.texts] == [str(label) for label in range(10)]


def test_kl_per_dimension_is_sorted_and_counts_active_dimensions():
    kl = np.array([0.1, 3.0, 0.0, 1.0])
    figure = kl_per_dimension(kl, 0.01, np.array([0.001, 0.9, 0.0, 0.5]))
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [3.0, 1.0, 0.1, 0.0]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["active (2)", "inactive (2)"]


HISTORY = history(5)


@pytest.mark.parametrize(
    "plot",
    [
        lambda: reconstructions(IMAGES[:4], IMAGES[4:8], IMAGES[8:]),
        lambda: generated_samples(IMAGES, 4),
        lambda: interpolation(IMAGES, 6, [(0, 6), (1, 7)]),
        lambda: latent_traversals(IMAGES, 6, [3, 1], 3.0),
        lambda: latent_manifold(IMAGES[:9], 3),
        lambda: latent_space(IMAGES[:, :7], np.arange(12)),
        lambda: training_history(HISTORY),
    ],
)
def test_equal_arrays_give_equal_bytes(plot, tmp_path):
    first, second = (save(plot(), tmp_path / name, 40).read_bytes() for name in ("first.png", "second.png"))
    assert first.startswith(b"\x89PNG")
    assert first == second
