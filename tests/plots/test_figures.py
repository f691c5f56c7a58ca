"""What a test can say of a picture: what it shows, how it is labelled, and that the same input draws the same bytes."""

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from vae.plots import figures

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((12, 784))


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40, metadata={"Software": None})
    return buffer.getvalue()


def history(epochs):
    keys = ["neg_elbo", "reconstruction", "kl"]
    columns = {f"{part}/{key}": RANDOM.random(epochs) + 90 for part in ("train", "val") for key in keys}
    return pd.DataFrame({"epoch": np.arange(1, epochs + 1), **columns})


def test_a_grid_holds_every_image_where_it_belongs_even_when_the_last_row_is_short():
    grid = figures.image_grid(IMAGES[:5], columns=3)
    assert grid.shape == (2 * 29 - 1, 3 * 29 - 1)
    for number in range(5):
        row, column = divmod(number, 3)
        cell = grid[29 * row : 29 * row + 28, 29 * column : 29 * column + 28]
        np.testing.assert_array_equal(cell, IMAGES[number].reshape(28, 28))


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_training_history_shows_both_curves_with_units_and_marks_the_best_epoch(epochs):
    table = history(epochs)
    figure = figures.training_history(table)
    first = figure.axes[0]
    assert first.get_ylabel() == "nats per image"
    np.testing.assert_array_equal(first.lines[1].get_ydata(), table["val/neg_elbo"])
    assert first.lines[2].get_xdata()[0] == table["epoch"][table["val/neg_elbo"].idxmin()]
    assert png(figure)


@pytest.mark.parametrize("epochs", [32, 5000, 50_000])
def test_a_long_historys_epochs_are_readable(epochs):
    figure = figures.training_history(history(epochs))
    figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        labels = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), "labels run into each other"


@pytest.mark.parametrize(("latents", "words"), [(1, "z[0]"), (2, "z[1]"), (7, "PCA of 7 latent dimensions")])
def test_the_latent_space_says_which_plane_it_shows(latents, words):
    figure = figures.latent_space(RANDOM.normal(size=(200, latents)), np.arange(200) % 10)
    ax = figure.axes[0]
    assert words in ax.get_title() + ax.get_xlabel() + ax.get_ylabel()
    assert [text.get_text() for text in ax.texts] == [str(digit) for digit in range(10)]
    assert png(figure)


def test_the_palette_has_a_colour_a_digit():
    assert len(set(figures.PALETTE)) == 10


def test_kl_per_dimension_is_sorted_and_counts_the_active_ones():
    kl = np.array([0.1, 3.0, 0.0, 1.0])
    figure = figures.kl_per_dimension(kl, 0.01, np.array([0.001, 0.9, 0.0, 0.5]))
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [3.0, 1.0, 0.1, 0.0]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["active (2)", "inactive (2)"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.reconstructions(IMAGES[:4], IMAGES[4:8], IMAGES[8:]),
        lambda: figures.generated_samples(IMAGES, 4),
        lambda: figures.interpolation(IMAGES, 6, [(0, 6), (1, 7)]),
        lambda: figures.latent_traversals(IMAGES, 6, [3, 1], 3.0),
        lambda: figures.latent_manifold(IMAGES[:9], 3),
    ],
)
def test_the_same_arrays_draw_the_same_bytes(draw):
    first = png(draw())
    assert first.startswith(b"\x89PNG")
    assert first == png(draw())
