"""Binarization of grey images."""

import pytest
import torch

from vae.data.binarization import BINARIZATION_SEED, binarize_once, sample_binary, to_float


@pytest.fixture
def shades():
    """4,000 images, in which each column of pixels has another value: 0, 1, 64, 127, 128, 254, 255."""
    return torch.tensor([0, 1, 64, 127, 128, 254, 255], dtype=torch.uint8).repeat(4000, 1)


def test_the_probability_of_a_white_pixel_is_its_grey_value(shades):
    samples = sample_binary(shades, torch.Generator().manual_seed(1))
    assert samples.dtype == torch.uint8
    assert set(samples.unique().tolist()) == {0, 255}
    share = shades[0].double() / 255
    five_sigma = 5 * (share * (1 - share) / len(shades)).sqrt()
    assert ((samples.double().mean(0) / 255 - share).abs() <= five_sigma).all()


def test_samples_differ_between_calls_and_repeat_with_the_generator(shades):
    generator = torch.Generator().manual_seed(3)
    first, second = sample_binary(shades, generator), sample_binary(shades, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, sample_binary(shades, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "none"])
def test_the_binarization_for_evaluation_is_fixed(shades, binarization):
    before = shades.clone()
    once = binarize_once(shades, binarization)
    torch.manual_seed(4)
    assert torch.equal(binarize_once(shades, binarization), once)
    assert torch.equal(shades, before)


def test_each_binarization_for_evaluation_is_what_its_name_says(shades):
    sample = sample_binary(shades, torch.Generator().manual_seed(BINARIZATION_SEED))
    assert torch.equal(binarize_once(shades, "dynamic"), sample)
    assert torch.equal(binarize_once(shades, "static"), sample)
    assert binarize_once(shades, "threshold")[0].tolist() == [0, 0, 0, 0, 255, 255, 255]
    assert torch.equal(binarize_once(shades, "none"), shades)


def test_images_become_floats_between_0_and_1():
    converted = to_float(torch.arange(256, dtype=torch.uint8))
    assert converted.dtype == torch.float32
    assert torch.equal(converted, torch.arange(256) / 255)
