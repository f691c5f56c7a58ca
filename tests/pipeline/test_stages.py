"""Single stages: what they refuse, what they repair, and which MLflow run they add to."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from mlflow_server import free_port
from support import ENVIRONMENT
from vae.config import load_params
from vae.data.binarization import binarize_once
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.evaluation import likelihood
from vae.files import sha256
from vae.models.vae import VAE
from vae.tracking.store import mlflow
from vae.training.loop import validate

MODEL = "models/vae.safetensors"
TRAIN_IMAGES = "data/raw/train-images-idx3-ubyte.gz"
TEST_LABELS = "data/raw/t10k-labels-idx1-ubyte.gz"
RECORD = "data/dataset.json"
LATENTS, HISTORY, PARAMS = "metrics/latents.npz", "metrics/history.csv", "params.yaml"
EVALUATION = "metrics/evaluation.json"


def written(project):
    """When each output was written."""
    return {path: path.stat().st_mtime_ns for path in project.outputs()}


# What is refused


def flip(position):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position if position < 0 else len(content) // 2] ^= 1
        path.write_bytes(content)

    return damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(path):
    np.savez(path, mu=np.array([{}]), logvar=np.array([{}]))


def replaced_by(content):
    return lambda path: path.write_bytes(content)


def with_line(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


LAST_TENSOR = -5  # a bit that the format itself doesn't check
BETA, LATENTS_3 = with_line("beta: 1.0", "beta: -1"), with_line("latent_dim: 2", "latent_dim: 3")
DAMAGES = {
    "model, missing": ("evaluate render explorer", MODEL, Path.unlink, [MODEL]),
    "model, truncated": ("evaluate render explorer", MODEL, truncate, [MODEL]),
    "model, a bit": ("evaluate render explorer", MODEL, flip(LAST_TENSOR), [MODEL, "dvc checkout"]),
    "images, a bit": ("train", TRAIN_IMAGES, flip(0), [TRAIN_IMAGES]),
    "labels, missing": ("evaluate render explorer", TEST_LABELS, Path.unlink, [TEST_LABELS]),
    "record, empty": ("train evaluate", RECORD, truncate, [RECORD, "dvc repro -f download"]),
    "latents, missing": ("render explorer", LATENTS, Path.unlink, [LATENTS, "dvc repro"]),
    "latents, a bit": ("render explorer", LATENTS, flip(0), [LATENTS, "dvc repro"]),
    "latents, a pickle": ("render explorer", LATENTS, pickled, [LATENTS, "allow_pickle=False", "dvc repro"]),
    "metrics, truncated": ("explorer", EVALUATION, truncate, [EVALUATION, "dvc repro"]),
    "history, words": ("render", HISTORY, replaced_by(b"epoch,train/loss\n1,two\n"), [HISTORY, "dvc repro"]),
    "history, other columns": ("render", HISTORY, replaced_by(b"a,b\n1,2,3\n"), [HISTORY, "dvc repro"]),
    "params, invalid": ("download train evaluate render explorer", PARAMS, BETA, [PARAMS, "train.beta is -1"]),
    "params, of another model": ("evaluate render explorer", PARAMS, LATENTS_3, [MODEL, "latent_dim: 2 (params: 3)"]),
}


@pytest.fixture(scope="module")
def damageable(reproduced, tmp_path_factory):
    return reproduced.copy(tmp_path_factory.mktemp("damaged") / "project")


@contextmanager
def damaged(project, file, damage):
    """The project with one damaged file, in which nothing else may be written."""
    path = project / file
    content = path.read_bytes()
    damage(path)
    before = written(project)
    yield
    assert written(project) == before
    path.write_bytes(content)


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_named_and_nothing_is_written(stage_in, damageable, case):
    stages, file, damage, words = DAMAGES[case]
    with damaged(damageable, file, damage):
        for name in stages.split():
            stage_in(damageable, name).fails_with(*words)


def test_an_unreachable_tracking_server_is_refused_before_anything_is_written(stage_in, damageable, monkeypatch):
    before, uri = written(damageable), f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("train", "evaluate", "render", "explorer"):
        stage_in(damageable, name).fails_with("MLFLOW_TRACKING_URI", uri)
    assert written(damageable) == before


# Training


def test_the_saved_weights_are_those_of_the_best_epoch_not_the_last(stage, project):
    rising = {"beta": 400, "kl_warmup_epochs": 100, "epochs": 6}  # from 4 to 24: the latent space collapses
    settings = {**rising, "batch_size": 128, "optimizer": "adam", "learning_rate": 1e-2, "lr_schedule": "constant"}
    project.set({"model.prior": "gaussian_mixture", **{f"train.{name}": value for name, value in settings.items()}})
    stage("train").succeeds()
    curve = pd.read_csv(project / HISTORY)["val/neg_elbo"]
    assert curve.iloc[-1] > curve.min() + 5
    params = load_params(project / "params.yaml")
    _, validation = split_validation(load(project / "data/raw", "train"), params.data.validation_size)
    targets = binarize_once(validation.images, params.data.binarization)
    again = validate(VAE.load(project / MODEL), targets, resolve(params.train))
    assert again["neg_elbo"] == pytest.approx(curve.min(), abs=1e-3)


def test_a_training_that_diverges_at_once_names_the_step_and_leaves_the_earlier_model(stage, project, runs_of):
    before = written(project)
    stage("train", "--learning_rate=1e9").fails_with("diverged", "epoch 1, step ", "train.learning_rate")
    assert written(project) == before
    assert runs_of(project)[0].info.status == "FAILED"


def test_a_training_that_diverges_late_keeps_its_best_weights(stage, project):
    project.set({"train.lr_schedule": "one_cycle"})
    stage("train", "--learning_rate=1e4", "--epochs=6").fails_with("diverged")
    assert 1 <= len(pd.read_csv(project / HISTORY)) < 6
    assert all(weights.isfinite().all() for weights in load_file(project / MODEL).values())


# What is repaired, and which run is added to


def test_the_checkpoints_of_an_evaluation_stay_until_everything_is_written(stage, project, monkeypatch):
    monkeypatch.setattr(likelihood, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with monkeypatch.context() as interrupted:  # Ctrl-C when the files are written, before they are logged
        interrupted.setattr(likelihood, "describe", Mock(side_effect=KeyboardInterrupt))
        assert stage("evaluate").code == 130
    (folder,) = (project / ".ckpt/evaluate").iterdir()
    before = project.outputs()
    monkeypatch.setattr(likelihood, "_evaluate_batch", None)  # all batches come from the checkpoints
    stage("evaluate").succeeds()
    assert project.outputs() == before
    assert not folder.exists()


def test_a_stage_of_a_moved_project_adds_to_the_run_of_the_weights_in_the_moved_store(
    reproduced, stage, project, runs_of
):
    originals = sorted((reproduced / "mlruns").rglob("*"))
    (trained,) = runs_of(project)
    client = mlflow.MlflowClient(project.store)
    other = client.create_run(trained.info.experiment_id).info.run_id
    (project / "models/run.json").write_text(json.dumps({"run_id": other, "weights_sha256": "0" * 64}))
    stage("render").succeeds()
    assert not client.list_artifacts(other)
    run = client.get_run(trained.info.run_id)
    assert run.info.end_time > trained.info.end_time
    assert run.info.artifact_uri == (project.root / "mlruns/artifacts" / run.info.run_id / "artifacts").as_uri()
    assert {"vae.safetensors", "figures"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    assert sorted((reproduced / "mlruns").rglob("*")) == originals


def test_a_deleted_store_is_created_again(stage, project, runs_of):
    shutil.rmtree(project / "mlruns")
    stage("render").succeeds()
    (run,) = runs_of(project)
    assert {"seed", "train.beta"} <= run.data.params.keys()


# Full disks


@pytest.fixture
def on_a_small_disk(project):
    """Runs a stage with one folder of the project on a disk of its own that has `kilobytes` left."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no user mount a disk of their own")

    def run(folder, kilobytes, *flags):
        path = project / folder
        path.mkdir(parents=True, exist_ok=True)
        script = (
            'set -e; cp -r "$1" "$1.copy"; used=$(du -sk "$1" | cut -f1); '
            'mount -t tmpfs -o size=$((used + $2))k tmpfs "$1"; cp -r "$1.copy/." "$1"; shift 2; '
            '"$@" && code=0 || code=$?; cp -r "$0/." "$0.after"; exit $code'
        )
        train = [sys.executable, "pipeline/train.py", *flags]
        arguments = ["unshare", "-rm", "bash", "-c", script, str(path), str(path), str(kilobytes), *train]
        return subprocess.run(arguments, cwd=project.root, env=ENVIRONMENT, capture_output=True, text=True)

    return run


def fails_for_lack_of_space(done, *words):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in ("error: ", "No space left on device", *words):
        assert word in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_one_line_and_it_resumes_when_there_is_room(on_a_small_disk, project):
    fails_for_lack_of_space(on_a_small_disk(".ckpt", 900, "--epochs=6"), ".ckpt/train")
    shutil.rmtree(project / ".ckpt")
    (project / ".ckpt.after").rename(project / ".ckpt")
    assert "epoch 1 of 6" in project.run(sys.executable, "pipeline/train.py", "--epochs=6")


@pytest.mark.slow
def test_a_full_disk_leaves_the_earlier_model_whole(on_a_small_disk, project, reproduced):
    fails_for_lack_of_space(on_a_small_disk("models", 60, "--latent-dim=20"), MODEL)
    assert sha256(project / "models.after/vae.safetensors") == sha256(reproduced / MODEL)
    names = {path.name for path in (project / "models").iterdir()}
    assert {path.name for path in (project / "models.after").iterdir()} == names


@pytest.mark.slow
def test_a_full_disk_under_mlflow_does_not_stop_the_training(on_a_small_disk, project):
    done = on_a_small_disk("mlruns", 40, "--epochs=30")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: ")
    assert done.stderr.count("\n") == 1
    assert len(pd.read_csv(project / HISTORY)) == 30
