"""torchvision's data sets, from small files in its own formats: nothing is downloaded."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from vae.config import DataParams
from vae.data import torchvision_sets
from vae.data.datasets import load
from vae.data.download import idx_bytes
from vae.errors import ConfigError, DownloadError
from vae.workflow.stages import fetch_dataset

COUNTS = {"train": 20, "test": 10}
COLOURS = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)  # 20 to train on


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that torchvision downloads to."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / torchvision_sets.FOLDER
    folder.mkdir(parents=True)
    return folder


def fetch(tmp_path, name, **params):
    params = {"dataset": name, "binarization": "none"} | params
    return fetch_dataset(DataParams(**params), tmp_path / "raw", tmp_path / "dataset.json")


def md5(content):
    return hashlib.md5(content).hexdigest()


def images(tmp_path, part, shape=(3, 32, 32)):
    """The images of a part, [N, H, W, C], in the order of their bytes."""
    split = load(tmp_path / "raw", part)
    return sorted(image.permute(1, 2, 0).numpy().tobytes() for image in split.images.view(-1, *shape))


def test_cifar10_is_read_from_its_archive(cache, tmp_path, monkeypatch):
    flat = COLOURS.transpose(0, 3, 1, 2).reshape(30, -1)
    names = [f"class {number}" for number in range(10)]
    batches = {
        "data_batch_1": {"data": flat[:20], "labels": [number % 10 for number in range(20)]},
        "test_batch": {"data": flat[20:], "labels": [3] * 10},
        "batches.meta": {"label_names": names},
    }
    files = {name: pickle.dumps(content) for name, content in batches.items()}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (cache / "cifar-10-python.tar.gz").write_bytes(archive.getvalue())
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive.getvalue()))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5(files["data_batch_1"])]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5(files["test_batch"])]])
    meta = datasets.CIFAR10.meta | {"md5": md5(files["batches.meta"])}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    with pytest.raises(ConfigError, match="in colour"):
        fetch(tmp_path, "CIFAR10", binarization="dynamic")
    record = fetch(tmp_path, "CIFAR10")
    assert (record["name"], record["classes"], record["counts"]) == ("CIFAR10", names, COUNTS)
    assert images(tmp_path, "train") == sorted(image.tobytes() for image in COLOURS[:20])
    assert load(tmp_path / "raw", "test").labels.tolist() == [3] * 10


def test_svhn_is_read_from_its_matlab_files(cache, tmp_path, monkeypatch):
    listed = {}
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        path = cache / f"{part}_32x32.mat"
        labels = np.arange(len(COLOURS[rows]))[:, None] % 10 + 1  # 10 is the digit 0
        scipy.io.savemat(path, {"X": COLOURS[rows].transpose(1, 2, 3, 0), "y": labels})
        listed[part] = ["http://127.0.0.1:9/", path.name, md5(path.read_bytes())]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    record = fetch(tmp_path, "SVHN")
    assert (record["classes"], record["counts"]) == (list("0123456789"), COUNTS)
    assert images(tmp_path, "test") == sorted(image.tobytes() for image in COLOURS[20:])
    assert load(tmp_path / "raw", "train").labels.bincount().tolist() == [2] * 10


def test_emnist_letters_stand_upright_and_are_named(cache, tmp_path, monkeypatch):
    raw = cache / "EMNIST/raw"
    raw.mkdir(parents=True)
    archive = io.BytesIO()
    pixels = np.zeros((30, 28, 28), np.uint8)
    pixels[:, :14] = 200  # the left half: its images lie
    with zipfile.ZipFile(archive, "w") as file:
        for part, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
            labels = np.full(len(pixels[rows]), 26, np.uint8)
            for kind, array in (("images-idx3", pixels[rows]), ("labels-idx1", labels)):
                name = f"gzip/emnist-letters-{part}-{kind}-ubyte.gz"
                file.writestr(name, gzip.compress(idx_bytes(array)))
    (raw / "gzip.zip").write_bytes(archive.getvalue())
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(archive.getvalue()))
    record = fetch(tmp_path, "EMNIST-letters", binarization="dynamic")
    assert (len(record["classes"]), record["classes"][25], record["image_shape"]) == (26, "z", [1, 28, 28])
    train = load(tmp_path / "raw", "train")
    assert train.labels.unique().tolist() == [25]
    assert (train.images.view(-1, 28, 28)[..., :14] == 200).all() and not train.images.view(-1, 28, 28)[..., 14:].any()


def test_celeba_has_no_classes_and_is_scaled(cache, tmp_path, monkeypatch):
    folder = cache / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(30)]
    for number, name in enumerate(names):
        Image.new("RGB", (178, 218), (8 * number, 0, 0)).save(folder / "img_align_celeba" / name, quality=100)
    lines = {
        "list_eval_partition.txt": [f"{name} {0 if number < 20 else 2}" for number, name in enumerate(names)],
        "identity_CelebA.txt": [f"{name} 1" for name in names],
        "list_bbox_celeba.txt": ["30", "x", *(f"{name} 1 1 1 1" for name in names)],
        "list_landmarks_align_celeba.txt": ["30", "x", *(f"{name} 1" for name in names)],
        "list_attr_celeba.txt": ["30", "x", *(f"{name} 1" for name in names)],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content))
    listed = [("", md5((folder / name).read_bytes()), name) for name in lines]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    record = fetch(tmp_path, "CelebA", image_size=16)
    assert (record["classes"], record["counts"], record["image_shape"]) == ([], COUNTS, [3, 16, 16])
    reds = load(tmp_path / "raw", "test").images.view(10, 3, -1)[:, 0].float().mean(1)
    assert torch.allclose(reds.sort().values, torch.arange(160, 240, 8.0), atol=3)


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "EMNIST-letters"])
def test_a_set_that_cannot_be_downloaded_is_one_line_that_says_where_its_files_may_be_put(
    cache, tmp_path, monkeypatch, name
):
    nowhere = "http://127.0.0.1:9/file"
    monkeypatch.setattr(datasets.CIFAR10, "url", nowhere)
    monkeypatch.setattr(datasets.EMNIST, "url", nowhere)
    monkeypatch.setattr(datasets.SVHN, "split_list", {"train": [nowhere, "a", "b"], "test": [nowhere, "a", "b"]})
    with pytest.raises(DownloadError) as caught:
        fetch(tmp_path, name)
    message = str(caught.value)
    assert message.startswith(f"{name} could not be downloaded by torchvision (")
    assert "Connection refused" in message and f"its files may be put in {cache} by hand" in message
    assert not list((tmp_path / "raw").iterdir())
