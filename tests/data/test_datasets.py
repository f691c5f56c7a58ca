"""IDX files, gzip files and the validation split."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from vae.data import datasets as data
from vae.data.datasets import FILES, Split, gunzip, gzipped, load, parse_idx, split_validation
from vae.data.download import idx_bytes
from vae.errors import ConfigError, DataError

IMAGES, LABELS = FILES["train"]


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def header(*dimensions):
    return struct.pack(f">BBBB{len(dimensions)}I", 0, 0, 8, len(dimensions), *dimensions)


def store(folder, part="train", count=3, **replaced):
    """Write the two files of a part, with the arrays or bytes in `replaced` instead of valid contents."""
    contents = {"images": random_images(count), "labels": np.arange(count, dtype=np.uint8)} | replaced
    for name, content in zip(FILES[part], (contents["images"], contents["labels"]), strict=True):
        raw = content if isinstance(content, bytes) else gzipped(idx_bytes(content))
        (folder / f"{name}.gz").write_bytes(raw)


@pytest.fixture
def labelled():
    """300 images whose pixels encode their number, with 60, 30 and 10 of a hundred in classes 0, 1 and 2."""
    numbers = torch.arange(300)
    images = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8)
    return Split(images, torch.tensor([0] * 6 + [1] * 3 + [2]).repeat(30))


def numbers_of(split):
    return split.images[:, 0].long() * 256 + split.images[:, 1]


@pytest.mark.parametrize("array", [random_images(2), np.array([7, 0, 9], np.uint8)], ids=["images", "labels"])
def test_an_idx_file_is_written_and_parsed(array):
    content = header(*array.shape) + array.tobytes()
    assert idx_bytes(array) == content
    parsed = parse_idx(content, "here")
    assert parsed.dtype == np.uint8
    assert np.array_equal(parsed, array)


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "not an IDX file"),
        (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYPE ht'"),
        (header(2, 28, 28)[:6], "damaged"),
        (header(2, 28, 28) + bytes(2 * 784 - 1), "truncated or damaged: 1,583 bytes"),
        (header(2, 28, 28) + bytes(2 * 784 + 1), "truncated or damaged: 1,585 bytes"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),
        (header(0, 2**32 - 1, 2**32 - 1), "damaged"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(content, problem):
    with pytest.raises(DataError, match=r"^here ") as caught:
        parse_idx(content, "here")
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_truncated_gzip_file_and_one_with_a_flipped_bit_are_refused():
    content = gzipped(random_images(1).tobytes())
    for length in (5, -9, -1):
        with pytest.raises(DataError, match=r"^here is truncated"):
            gunzip(content[:length], "here")
    for position in (0, 100, -8):
        damaged = bytearray(content)
        damaged[position] ^= 1
        with pytest.raises(DataError, match=r"^here is damaged"):
            gunzip(bytes(damaged), "here")


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(data, "MAX_FILE_BYTES", 2**20)
    assert gunzip(gzip.compress(bytes(2**20)), "here") == bytes(2**20)
    bomb = gzip.compress(bytes(2**26), 9)
    tracemalloc.start()
    with pytest.raises(DataError, match="more than the 1,048,576 bytes"):
        gunzip(bomb, "here")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_load_reads_the_images_and_labels_of_a_part(tmp_path):
    store(tmp_path, "test", count=5)
    split = load(tmp_path, "test")
    assert torch.equal(split.images, torch.tensor(random_images(5)).reshape(5, 784))
    assert torch.equal(split.labels, torch.arange(5))
    assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


def test_load_names_a_missing_or_damaged_file(tmp_path):
    store(tmp_path, labels=b"\x1f\x8bnot gzip")
    with pytest.raises(DataError, match=rf"{LABELS}\.gz is damaged"):
        load(tmp_path, "train")
    (tmp_path / f"{IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz can't be read.*dvc repro -f download"):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    "replaced",
    [
        {"images": np.arange(3, dtype=np.uint8), "labels": random_images(3)},
        {"labels": np.arange(4, dtype=np.uint8)},
        {"images": np.zeros((3, 32, 32), np.uint8)},
    ],
    ids=["swapped", "one label too many", "images of another size"],
)
def test_load_refuses_images_and_labels_that_do_not_match(tmp_path, replaced):
    store(tmp_path, **replaced)
    with pytest.raises(DataError, match="train files don't match"):
        load(tmp_path, "train")


@pytest.mark.parametrize("size, per_class", [(30, [18, 9, 3]), (0.2, [36, 18, 6])])
def test_the_validation_split_is_disjoint_complete_stratified_and_fixed(labelled, size, per_class):
    training, validation = split_validation(labelled, size)
    numbers = torch.cat([numbers_of(training), numbers_of(validation)])
    assert torch.equal(numbers.sort().values, torch.arange(300))
    assert validation.labels.bincount().tolist() == per_class
    for split in (training, validation):
        assert torch.equal(split.labels, labelled.labels[numbers_of(split)])
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(split_validation(labelled, size)[1].images, validation.images)


@pytest.mark.parametrize("size", [301, 299, 1e-6])
def test_a_validation_size_that_leaves_no_image_of_a_class_is_refused(labelled, size):
    with pytest.raises(ConfigError) as caught:
        split_validation(labelled, size)
    assert str(caught.value).startswith(f"data.validation_size is {size}, of 300 training images: ")
    assert len(str(caught.value).splitlines()) == 1
