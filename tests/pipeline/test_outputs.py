"""The outputs of one `dvc repro`."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

from vae.files import sha256
from vae.tracking.kinds import COUNTS
from vae.tracking.store import mlflow

MODEL = "models/vae.safetensors"
FIGURES = {
    *("training_history", "reconstructions", "generated_samples", "latent_space", "interpolation"),
    *("latent_traversals", "latent_manifold", "kl_per_dimension"),
    *("best_and_worst_reconstructions", "nearest_training_images"),
}
PROTOCOL = {
    **{"importance_samples": 8, "precision": "fp32", "binarization": "dynamic"},
    **{"dataset": "MNIST-bundled-5000", "split": "test", "seed": 0},
}
WALL_TIMES = {"train/seconds", "train/images_per_second", "val/seconds"}


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def metrics(reproduced):
    return read_json(reproduced / "metrics/evaluation.json")


def test_every_declared_output_is_written_and_two_files_beside_them(reproduced):
    stages = YAML(typ="safe").load(reproduced / "dvc.yaml")["stages"].values()
    entries = [entry for kind in ("outs", "metrics", "plots") for stage in stages for entry in stage.get(kind, [])]
    declared = {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}
    assert [path for path in declared if not (reproduced / path).exists()] == []
    lock = YAML(typ="safe").load(reproduced / "dvc.lock")
    assert {out["path"] for entry in lock["stages"].values() for out in entry["outs"]} == declared
    written = {str(path.relative_to(reproduced.root)) for path in reproduced.outputs()}
    others = {path for path in written if not any(path == out or path.startswith(f"{out}/") for out in declared)}
    assert {path for path in others if ".gitignore" not in path} == {"models/run.json", "metrics/timing.json"}


def test_git_tracks_metrics_and_figures_and_dvc_the_rest(reproduced):
    tracked = set(reproduced.run("git", "ls-files").splitlines())
    assert {"dvc.lock", "metrics/evaluate.json", "metrics/history.csv", "figures/latent_space.png"} <= tracked
    untracked = {MODEL, "models/run.json", "metrics/timing.json", "metrics/evaluation.json", "mlruns/mlflow.db"}
    assert tracked.isdisjoint({*untracked, "data/raw/train-images-idx3-ubyte.gz"})
    assert reproduced.run("git", "status", "--porcelain") == ""


def test_the_test_metrics_are_consistent_and_name_their_protocol(reproduced, metrics):
    assert metrics["elbo"] == pytest.approx(-(metrics["reconstruction"] + metrics["kl"]), abs=1e-3)
    assert metrics["elbo_gap"] == pytest.approx(-metrics["elbo"] - metrics["nll"], abs=1e-3)
    assert 50 < metrics["nll"] < 0.1 - metrics["elbo"] < 300
    assert 0 < metrics["nll_sampling_error"] < metrics["nll_standard_error"] < 5
    assert metrics["active_units"] in (0, 1, 2)
    assert metrics["mutual_information"] + metrics["aggregate_kl"] == pytest.approx(metrics["kl"], abs=0.5)
    assert 0.2 < metrics["linear_probe_accuracy"] < 1
    assert 0.85 < metrics["classifier_accuracy"] < 1
    assert metrics["sample_frechet_distance"] > metrics["train_frechet_distance"]
    assert (metrics["linear_probe_images"], metrics["classifier_images"], metrics["n_test"]) == (4000, 3000, 1000)
    assert metrics.items() >= PROTOCOL.items()
    assert metrics["weights_sha256"] == sha256(reproduced / MODEL)


def test_bounds_by_image_and_by_class_average_to_the_metrics(reproduced, metrics):
    with np.load(reproduced / "metrics/test_nll.npz") as file, np.load(reproduced / "metrics/latents.npz") as latents:
        images = dict(file)
        np.testing.assert_array_equal(images["labels"], latents["labels"])
    assert images.keys() == {"neg_elbo", "kl", "nll", "labels", *PROTOCOL, "weights_sha256"}
    assert {name: images[name].item() for name in PROTOCOL} == PROTOCOL
    assert images["weights_sha256"].item() == metrics["weights_sha256"]
    assert images["neg_elbo"].shape == images["nll"].shape == (1000,)
    assert images["nll"].mean() == pytest.approx(metrics["nll"], rel=1e-5)
    assert images["neg_elbo"].mean() == pytest.approx(-metrics["elbo"], rel=1e-5)
    assert images["nll"].std(ddof=1) / math.sqrt(1000) == pytest.approx(metrics["nll_standard_error"], rel=1e-5)
    table = pd.read_csv(reproduced / "metrics/per_class.csv")
    assert list(table["class"]) == list(range(10))
    for name in ("reconstruction", "kl", "elbo", "nll"):
        assert np.average(table[name], weights=table["images"]) == pytest.approx(metrics[name], abs=1e-3)


def test_the_history_has_one_row_per_epoch_and_wall_times_are_beside_it(reproduced):
    history = pd.read_csv(reproduced / "metrics/history.csv")
    summary, timing = (read_json(reproduced / f"metrics/{name}.json") for name in ("train", "timing"))
    assert list(history["epoch"]) == [1, 2]
    assert history["val/neg_elbo"][1] < history["val/neg_elbo"][0]
    assert (summary["epochs"], summary["best_epoch"]) == (2, 2)
    assert summary["val/neg_elbo"] == history["val/neg_elbo"][1]
    weights = load_file(reproduced / MODEL)
    assert summary["parameters"] == sum(weights[name].numel() for name in weights if not name.endswith("mask"))
    assert summary["weights_sha256"] == sha256(reproduced / MODEL)[:12]
    assert not [name for name in (*history, *summary) if "second" in name]
    assert [row.keys() for row in timing["epochs"]] == [{"epoch", *WALL_TIMES}] * 2
    assert timing["seconds"] > 0


def test_the_figures_are_images_and_a_two_dimensional_latent_space_has_its_manifold(reproduced):
    files = {path.stem: path for path in (reproduced / "figures").iterdir()}
    assert files.keys() == FIGURES
    for path in files.values():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 50
        assert pixels.std() > 5


def test_mlflow_has_one_run_with_everything(reproduced, metrics, runs_of):
    (run,) = runs_of(reproduced)
    client = mlflow.MlflowClient(reproduced.store)
    assert (run.info.status, run.info.run_id) == ("FINISHED", read_json(reproduced / "models/run.json")["run_id"])
    params = {"train.epochs": "2", "model.hidden_dims": "[32]", "data.source": "bundled", "render.dpi": "40"}
    assert run.data.params.items() >= params.items()
    for name in ("train/neg_elbo", "val/neg_elbo", *WALL_TIMES):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    assert run.data.metrics["summary/seconds"] > 0
    tests = {name: value for name, value in metrics.items() if name not in (*PROTOCOL, "weights_sha256", *COUNTS)}
    logged = {name.removeprefix("test/"): run.data.metrics[name] for name in run.data.metrics if "test/" in name}
    assert logged == tests
    assert {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")} == FIGURES
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"vae.safetensors", "history.csv", "per_class.csv", "explorer"} <= artifacts
    assert run.inputs.dataset_inputs[0].dataset.name == "MNIST-bundled-5000"
    assert run.data.tags["model.sha256"] == sha256(reproduced / MODEL)
