"""Figures: what they show, their labels, and equal bytes for equal arrays."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from vae.plots.figure import LONGEST_NAME, class_colours, class_names, save
from vae.plots.history import training_history
from vae.plots.image_grids import (
    generated_samples,
    image_grid,
    interpolation,
    latent_manifold,
    latent_traversals,
    reconstructions,
    shaped,
)
from vae.plots.latents import kl_per_dimension, latent_space

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((12, 1, 28, 28))


def test_a_grid_holds_every_image_in_its_place_with_a_short_last_row():
    grid = image_grid(IMAGES[:5], columns=3)
    assert grid.shape == (2 * 29 - 1, 3 * 29 - 1)
    for number in range(5):
        row, column = divmod(number, 3)
        cell = grid[29 * row : 29 * row + 28, 29 * column : 29 * column + 28]
        np.testing.assert_array_equal(cell, IMAGES[number, 0])


def test_a_grid_of_colour_images_that_are_not_square():
    images = torch.rand(4, 3 * 5 * 8)
    grid = image_grid(shaped(images, (3, 5, 8)), columns=2)
    assert grid.shape == (2 * 6 - 1, 2 * 9 - 1, 3)
    for channel in range(3):
        np.testing.assert_array_equal(grid[6:11, 9:17, channel], images[3, 40 * channel : 40 * channel + 40].view(5, 8))


def test_images_of_two_channels_are_shown_as_their_mean():
    images = torch.rand(2, 3, 2 * 4 * 4)
    expected = images.view(2, 3, 2, 16).mean(2).view(2, 3, 1, 4, 4)
    np.testing.assert_allclose(shaped(images, (2, 4, 4)), expected, rtol=1e-6)


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


def test_the_names_of_classes_are_shown_as_they_are_if_the_font_can_and_they_are_not_too_long():
    names = ["Füße", "a" * 30, "$5 and $6", "猫", "Кошка"]
    shown = class_names([4, 3, 2, 1, 0], names)
    assert shown == ["Кошка", "3", r"\$5 and \$6", f"{'a' * (LONGEST_NAME - 1)}…", "Füße"]
    assert class_names([7, 2]) == ["7", "2"]


@pytest.mark.parametrize("count", [3, 10, 15, 40])
def test_every_class_has_a_colour_of_its_own(count):
    assert len({tuple(colour) for colour in class_colours(count)}) == count


@pytest.mark.parametrize(("count", "in_legend"), [(1, True), (12, True), (47, True), (200, False)])
def test_the_legend_of_any_number_of_classes_fits_into_the_figure(count, in_legend):
    names = [f"_class ${number} with a long name" for number in range(count)]
    mu, labels = RANDOM.normal(size=(400, 5)), np.arange(400) % count
    figure = latent_space(mu, labels, mu[:150, :2], names)
    figure.draw_without_rendering()
    if not in_legend:
        assert not figure.legends and "200 classes" in figure.get_suptitle()
        return
    (legend,) = figure.legends
    assert len(legend.get_texts()) == count
    whole, box, panel = figure.bbox, legend.get_window_extent(), figure.axes[0].get_window_extent()
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 < panel.y0
    assert panel.height > 200  # pixels


def test_without_labels_the_latent_space_has_one_colour_and_no_legend():
    figure = latent_space(RANDOM.normal(size=(50, 2)))
    assert len(figure.axes[0].collections) == 1
    assert not figure.legends and not figure.axes[0].texts


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
        lambda: interpolation(IMAGES, 6, [("0", "6"), ("1", "7")]),
        lambda: latent_traversals(IMAGES, 6, [3, 1], 3.0),
        lambda: latent_manifold(IMAGES[:9], 3),
        lambda: latent_space(IMAGES.reshape(12, -1)[:, :7], np.arange(12)),
        lambda: training_history(HISTORY),
    ],
)
def test_equal_arrays_give_equal_bytes(plot, tmp_path):
    first, second = (save(plot(), tmp_path / name, 40).read_bytes() for name in ("first.png", "second.png"))
    assert first.startswith(b"\x89PNG")
    assert first == second
