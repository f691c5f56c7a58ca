"""`make anomalies` on a small trained model, with another data set that can be downloaded and one that can't."""

import hashlib
import runpy
import sys

import numpy as np
import pandas as pd
import torch
from torchvision import datasets

from vae.config import Params
from vae.data import download
from vae.data.datasets import FILES, gzipped
from vae.data.download import idx_bytes
from vae.models.vae import VAE


def test_altered_digits_and_another_data_set_are_scored(project, called, monkeypatch, tmp_path):
    rng, archives = np.random.default_rng(0), {}
    for images, labels in FILES.values():  # grey noise stands in for clothes
        archives[f"{images}.gz"] = gzipped(idx_bytes(rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)))
        archives[f"{labels}.gz"] = gzipped(idx_bytes((np.arange(60) % 10).astype(np.uint8)))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in archives.items():
        (mirror / name).write_bytes(content)
    md5 = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    monkeypatch.setattr(datasets.FashionMNIST, "resources", md5)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"file://{mirror}"])
    monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"file://{tmp_path}/nowhere"])
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0)
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(sys, "argv", ["anomalies.py"])
    lines = called(lambda: runpy.run_module("vae.workflow.anomalies", run_name="__main__")).succeeds().out.splitlines()
    assert [line for line in lines if line.startswith("left out: KMNIST could not be downloaded")]
    assert lines[-1] == "results/anomalies.csv"
    table = pd.read_csv(project / "results/anomalies.csv", index_col="anomaly")
    assert list(table.index) == ["rotated", "noisy", "inverted", "shrunk", "FashionMNIST"]
    assert table.loc["FashionMNIST", ["−ELBO", "NLL"]].min() > 0.99, "noise is no digit"
    assert table.loc["inverted", "mean NLL"] > table.loc["noisy", "mean NLL"] > table.loc["shrunk", "mean NLL"]
    assert table.loc["shrunk", "NLL"] < 0.5 < table.loc["shrunk", "NLL − complexity"]


def test_a_model_of_other_images_is_compared_with_altered_ones_only(monkeypatch):
    model = VAE(
        hidden_dims=[8], latent_dim=2, image_shape=(3, 8, 8), prior="standard", likelihood="discretized_logistic"
    )
    images = torch.randint(256, (20, model.input_dim), dtype=torch.uint8)
    monkeypatch.setattr("vae.workflow.anomalies.load_model", lambda *_: model)
    monkeypatch.setattr("vae.workflow.anomalies.some_test_images", lambda *_: images)
    params = Params().replaced({"data.binarization": "none", "evaluate.importance_samples": 2})
    compare_scores = sys.modules["vae.workflow.anomalies"].compare_scores
    assert list(compare_scores(params).index) == ["rotated", "noisy", "inverted", "shrunk"]
