import csv
import io
import json
import math
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

from support import ENVIRONMENT
from vae.config import load_params
from vae.data.binarization import binarize_once
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.files import sha256
from vae.models.vae import VAE
from vae.tracking.store import EXPERIMENT, mlflow
from vae.training.loop import validate

pytestmark = pytest.mark.slow  # all of it works on copies of a project in which DVC has run

FIGURES = {
    *("training_history", "reconstructions", "generated_samples", "latent_space", "interpolation"),
    *("latent_traversals", "latent_manifold", "kl_per_dimension"),
}
MODEL = "models/vae.safetensors"
TRAIN_IMAGES = "data/raw/train-images-idx3-ubyte.gz"
TEST_LABELS = "data/raw/t10k-labels-idx1-ubyte.gz"

Outcome = namedtuple("Outcome", "code out err")


@pytest.fixture
def stage(project, monkeypatch, capsys):
    """Runs a stage of the project in this process: importing torch and MLflow for each would cost seconds."""
    monkeypatch.chdir(project.root)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    on_termination = signal.getsignal(signal.SIGTERM)

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [f"pipeline/{name}.py", *flags])
        code, message = 0, ""
        try:
            runpy.run_path(f"pipeline/{name}.py", run_name="__main__")
        except SystemExit as stop:  # as Python itself takes it: a text is printed, and the exit code is 1
            code, message = (1, f"{stop.code}\n") if isinstance(stop.code, str) else (stop.code or 0, "")
        out, err = capsys.readouterr()
        return Outcome(code, out, err + message)

    yield run
    signal.signal(signal.SIGTERM, on_termination)


def works(outcome):
    assert outcome.code == 0, outcome.err
    return outcome


def runs_of(project):
    client = mlflow.MlflowClient(project.store)
    return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], order_by=["start_time DESC"])


def stages_run(printed):
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


# What one `dvc repro` leaves


def test_repro_writes_every_output_that_is_declared(reproduced):
    stages = YAML(typ="safe").load(reproduced / "dvc.yaml")["stages"].values()
    entries = [entry for kind in ("outs", "metrics", "plots") for stage in stages for entry in stage.get(kind, [])]
    declared = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    assert MODEL in declared
    assert [path for path in declared if not (reproduced / path).exists()] == []
    lock = YAML(typ="safe").load(reproduced / "dvc.lock")
    assert {out["path"] for entry in lock["stages"].values() for out in entry["outs"]} == set(declared)


def test_the_evaluation_has_the_figures_that_belong_together(reproduced):
    metrics = json.loads((reproduced / "metrics/evaluate.json").read_text())
    assert list(metrics) == [
        *("reconstruction", "kl", "elbo", "nll", "nll_standard_error", "nll_sampling_error", "elbo_gap"),
        *("active_units", "collapsed_units", "n_test"),
        *("mutual_information", "aggregate_kl", "total_correlation"),
        *("linear_probe_accuracy", "linear_probe_images", "classifier_accuracy", "classifier_images"),
        *("sample_frechet_distance", "train_frechet_distance", "sample_confidence", "sample_label_entropy"),
        *("importance_samples", "precision", "binarization", "dataset", "split", "seed", "weights_sha256"),
    ]
    assert math.isclose(metrics["elbo"], -(metrics["reconstruction"] + metrics["kl"]), rel_tol=1e-9)
    assert 50 < metrics["nll"] < metrics["reconstruction"] + metrics["kl"] + 0.1 < 300
    assert metrics["active_units"] in (0, 1, 2)
    assert (metrics["n_test"], metrics["importance_samples"]) == (1000, 8)
    assert (metrics["binarization"], metrics["dataset"]) == ("dynamic", "MNIST-bundled-5000")
    assert (metrics["split"], metrics["seed"]) == ("test", 0)
    assert metrics["weights_sha256"] == sha256(reproduced / MODEL)
    assert (metrics["linear_probe_images"], metrics["classifier_images"]) == (4000, 3000)
    assert metrics["elbo_gap"] == pytest.approx(-metrics["elbo"] - metrics["nll"])
    assert 0 < metrics["nll_sampling_error"] < metrics["nll_standard_error"] < 5
    assert metrics["mutual_information"] + metrics["aggregate_kl"] == pytest.approx(metrics["kl"], abs=0.5)
    assert 0 < metrics["mutual_information"] <= math.log(1000)
    assert 0.2 < metrics["linear_probe_accuracy"] < 1
    assert 0.85 < metrics["classifier_accuracy"] < 1
    assert metrics["sample_frechet_distance"] > metrics["train_frechet_distance"]


def test_the_runs_test_figures_are_the_evaluations_numbers(reproduced):
    metrics = json.loads((reproduced / "metrics/evaluate.json").read_text())
    (run,) = runs_of(reproduced)
    logged = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    protocol = ("importance_samples", "precision", "binarization", "dataset", "split", "seed", "weights_sha256")
    assert logged == {f"test/{name}": value for name, value in metrics.items() if name not in protocol}


def test_the_table_by_digit_averages_to_the_metrics(reproduced):
    table = pd.read_csv(reproduced / "metrics/per_digit.csv")
    metrics = json.loads((reproduced / "metrics/evaluate.json").read_text())
    assert list(table["digit"]) == list(range(10))
    assert table["images"].sum() == 1000
    for name in ("reconstruction", "kl", "elbo", "nll"):
        assert np.average(table[name], weights=table["images"]) == pytest.approx(metrics[name], abs=1e-3)


def test_the_history_has_a_row_an_epoch_and_the_training_helps(reproduced):
    history = pd.read_csv(reproduced / "metrics/history.csv")
    summary = json.loads((reproduced / "metrics/train.json").read_text())
    assert list(history["epoch"]) == [1, 2]
    assert history["val/neg_elbo"][1] < history["val/neg_elbo"][0]
    assert (summary["epochs"], summary["best_epoch"]) == (2, 2)
    assert summary["val/neg_elbo"] == pytest.approx(history["val/neg_elbo"][1])
    assert summary["parameters"] == sum(weights.numel() for weights in load_file(reproduced / MODEL).values())


def test_the_figures_are_pictures_and_a_two_dimensional_latent_space_has_its_manifold(reproduced):
    files = {path.stem: path for path in (reproduced / "figures").iterdir()}
    assert files.keys() == FIGURES
    for path in files.values():
        assert path.suffix == ".png"
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert min(pixels.shape) > 50
        assert pixels.std() > 5


def test_git_tracks_metrics_and_figures_and_dvc_the_rest(reproduced):
    tracked = set(reproduced.run("git", "ls-files").splitlines())
    assert {"dvc.lock", "metrics/evaluate.json", "metrics/history.csv", "figures/latent_space.png"} <= tracked
    assert tracked.isdisjoint({MODEL, "models/run.json", "metrics/latents.npz", TRAIN_IMAGES, "mlruns/mlflow.db"})
    assert reproduced.run("git", "status", "--porcelain") == ""


def test_mlflow_has_one_run_with_everything(reproduced):
    (run,) = runs_of(reproduced)
    client = mlflow.MlflowClient(reproduced.store)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((reproduced / "models/run.json").read_text())["run_id"]
    params = {"train.epochs": "2", "model.hidden_dims": "[32]", "data.source": "bundled", "render.dpi": "40"}
    assert {name: run.data.params[name] for name in params} == params
    for name in ("train/neg_elbo", "train/kl", "val/neg_elbo", "val/reconstruction"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2]
    written = json.loads((reproduced / "metrics/evaluate.json").read_text())
    for name in ("reconstruction", "kl", "elbo", "nll", "active_units"):
        assert run.data.metrics[f"test/{name}"] == written[name]
    assert {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")} == FIGURES
    assert {"vae.safetensors", "history.csv"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    assert run.inputs.dataset_inputs[0].dataset.name == "MNIST-bundled-5000"
    assert run.data.tags["model.sha256"] == sha256(reproduced / MODEL)


# What DVC runs again, and what it doesn't


def test_a_second_repro_changes_nothing(project):
    before, lock = project.outputs(), (project / "dvc.lock").read_bytes()
    printed = project.dvc("repro")
    assert printed.count("didn't change, skipping") == 4
    assert stages_run(printed) == []
    assert project.outputs() == before
    assert (project / "dvc.lock").read_bytes() == lock
    assert len(runs_of(project)) == 1


def test_another_resolution_draws_again_and_does_nothing_else(project):
    def width():
        with Image.open(project / "figures/latent_space.png") as picture:
            return picture.width

    before = width()
    project.set({"render.dpi": 60})
    assert stages_run(project.dvc("repro")) == ["render"]
    assert width() == pytest.approx(before * 60 / 40, rel=0.05)
    (run,) = runs_of(project)  # the training's own gets the new figures
    assert run.info.status == "FINISHED"


@pytest.fixture(scope="module")
def experiment(reproduced, tmp_path_factory):
    """A copy of the project in which an experiment with one epoch and beta 4 has run."""
    project = reproduced.copy(tmp_path_factory.mktemp("experiment") / "project")
    printed = project.dvc("exp", "run", "-n", "strong-kl", "-S", "train.epochs=1", "-S", "train.beta=4")
    assert stages_run(printed) == ["train", "evaluate", "render"]
    return project


def test_an_experiment_is_listed_beside_its_baseline_with_params_and_metrics(experiment):
    table = csv.DictReader(io.StringIO(experiment.dvc("exp", "show", "--csv")))
    rows = {row["Experiment"] or row["rev"]: row for row in table}
    assert {"main", "strong-kl"} <= rows.keys()
    assert [(rows[name]["train.epochs"], float(rows[name]["train.beta"])) for name in ("main", "strong-kl")] == [
        ("2", 1.0),
        ("1", 4.0),
    ]
    assert float(rows["strong-kl"]["kl"]) < float(rows["main"]["kl"])


def test_an_experiment_is_a_run_of_its_own_in_mlflow(experiment):
    run, first = runs_of(experiment)
    assert run.data.tags["dvc.experiment"] == "strong-kl"
    assert (run.info.status, run.data.params["train.beta"]) == ("FINISHED", "4.0")
    assert "test/nll" in run.data.metrics
    assert "dvc.experiment" not in first.data.tags


def test_params_keep_their_comments_through_an_experiment(experiment):
    assert "beta: 4" in (experiment / "params.yaml").read_text()
    assert "# weight of the KL" in (experiment / "params.yaml").read_text()


@pytest.mark.parametrize("command", [("show",), ("diff", "main")], ids=["show", "diff"])
def test_plots_are_written_as_a_page_with_curves_and_figures(experiment, command, tmp_path):
    experiment.dvc("plots", *command, "--out", str(tmp_path / "page"))
    page = (tmp_path / "page/index.html").read_text()
    for title in ("ELBO by epoch", "Reconstruction by epoch", "KL by epoch", "NLL by digit"):
        assert f'{title}", "anchor"' in page
    assert set(re.findall('"rev": "([^"]+)"', page)) == {"workspace", *command[1:]}
    assert {path.suffix for path in (tmp_path / "page/static").iterdir()} == {".png"}


def test_going_back_to_earlier_params_restores_their_results_without_training(experiment, reproduced, tmp_path):
    project = experiment.copy(tmp_path / "project")
    assert sha256(project / MODEL) != sha256(reproduced / MODEL)
    project.run("git", "checkout", "--quiet", "params.yaml")
    assert stages_run(project.dvc("repro")) == []
    for path in (MODEL, "models/run.json", "metrics/train.json", "metrics/evaluate.json"):
        assert (project / path).read_bytes() == (reproduced / path).read_bytes()
    assert len(runs_of(project)) == 2


def test_an_experiment_in_a_temporary_folder_is_tracked_in_the_project(project):
    before = project.outputs()
    project.dvc("exp", "run", "--temp", "-n", "elsewhere", "-S", "train.epochs=1", "train")
    run, _ = runs_of(project)
    assert (run.data.tags["dvc.experiment"], run.info.status) == ("elsewhere", "FINISHED")
    assert project.outputs() == before


# Stages run by hand


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(stage, project, reproduced):
    checksums = []
    for seed in (0, 1):
        project.set({"seed": seed})
        torch.rand(1)  # moves the global random state
        works(stage("train"))
        checksums.append(sha256(project / MODEL))
    assert checksums[0] == sha256(reproduced / MODEL)  # of another process
    assert checksums[1] != checksums[0]


def test_the_model_that_is_kept_is_the_best_epochs_and_not_the_last(stage, project):
    rising = {"beta": 300, "kl_warmup_epochs": 100, "epochs": 5}  # from 3 to 15: the latent space collapses
    settings = {**rising, "batch_size": 16, "learning_rate": 1e-2, "lr_schedule": "constant"}
    project.set({f"train.{name}": value for name, value in settings.items()})
    works(stage("train"))
    curve = pd.read_csv(project / "metrics/history.csv")["val/neg_elbo"]
    assert curve.iloc[-1] > curve.min() + 5
    params = load_params(project / "params.yaml")
    _, validation = split_validation(load(project / "data/raw", "train"), params.data.validation_size)
    targets = binarize_once(validation.images, params.data.binarization)
    again = validate(VAE.load(project / MODEL), targets, resolve(params.train))
    assert again["neg_elbo"] == pytest.approx(curve.min(), abs=1e-3)


def test_download_keeps_what_is_right_and_repairs_what_is_not(stage, project):
    before = project.outputs()
    works(stage("download"))
    assert project.outputs() == before
    flip_a_bit(project / TRAIN_IMAGES)
    (project / TEST_LABELS).unlink()
    works(stage("download"))
    assert project.outputs() == before


def test_flags_win_over_the_params_for_one_training(stage, project):
    works(stage("train", "--batch-size", "64", "--latent_dim=3", "--epochs=1"))
    run, _ = runs_of(project)
    given = {"train.batch_size": "64", "model.latent_dim": "3", "train.epochs": "1", "train.beta": "1.0"}
    assert {name: run.data.params[name] for name in given} == given
    assert VAE.load(project / MODEL).params.latent_dim == 3
    assert len(pd.read_csv(project / "metrics/history.csv")) == 1


def test_a_model_of_other_params_is_not_evaluated(stage, project):
    works(stage("train", "--latent-dim=3", "--epochs=1"))
    before = project.outputs()
    for name in ("evaluate", "render"):
        refuses(stage(name), MODEL, "latent_dim", "3", "2", "dvc repro")
    assert project.outputs() == before


@pytest.mark.parametrize("write", [Path.unlink, lambda path: path.write_text('{"run_id": "0123456789abcdef"}')])
def test_a_model_whose_run_is_gone_is_evaluated_in_a_new_one(stage, project, write):
    (trained,) = runs_of(project)
    write(project / "models/run.json")
    works(stage("evaluate"))
    opened, _ = runs_of(project)
    assert opened.data.params == trained.data.params
    assert opened.data.metrics["test/nll"] == trained.data.metrics["test/nll"]


def refuses(outcome, *words):
    """One line on what is wrong, and exit code 1. (A traceback would have ended the test before.)"""
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome
    assert outcome.err.startswith("error: ")
    for word in words:
        assert word in outcome.err


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("name", ["evaluate", "render"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["truncated", "missing"])
def test_a_damaged_model_is_refused(stage, project, name, damage):
    damage(project / MODEL)
    before = project.outputs()
    refuses(stage(name), MODEL)
    assert project.outputs() == before


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_the_place_of_the_model_is_refused_and_not_executed(stage, project, tmp_path, write):
    proof = tmp_path / "executed"
    with (project / MODEL).open("wb") as file:
        write(Payload(proof), file)
    refuses(stage("evaluate"), MODEL)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()  # it would have


@pytest.mark.parametrize(
    ("name", "file"), [("train", TRAIN_IMAGES), ("evaluate", TEST_LABELS), ("render", TEST_LABELS)]
)
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink], ids=["a bit flipped", "missing"])
def test_a_damaged_data_set_is_refused(stage, project, name, file, damage):
    damage(project / file)
    before = project.outputs()
    refuses(stage(name), file)
    assert project.outputs() == before


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=["missing", "empty"])
def test_a_data_set_without_its_record_is_refused_before_anything_is_written(stage, project, name, damage):
    project.set({"evaluate.importance_samples": 4})  # so that what is written would differ
    damage(project / "data/dataset.json")
    before = project.outputs()
    refuses(stage(name), "data/dataset.json", "dvc repro -f download")
    assert project.outputs() == before


@pytest.mark.parametrize("name", ["download", "train", "evaluate", "render"])
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"train.beta": -1}, ["train.beta is -1"]),
        ({"model.latent_dims": 3}, ["model.latent_dims", "did you mean 'latent_dim'?"]),
        ({"data.source": "internet"}, ["data.source is 'internet'", "'mirror'"]),
    ],
)
def test_bad_params_are_refused_by_every_stage(stage, project, name, params, words):
    project.set(params)
    before = project.outputs()
    refuses(stage(name), "params.yaml", *words)
    assert project.outputs() == before


@pytest.mark.parametrize("name", ["train", "evaluate", "render"])
def test_a_tracking_server_out_of_reach_is_said_before_anything_is_written(stage, project, name, monkeypatch):
    project.set({"seed": 1, "evaluate.importance_samples": 4, "render.dpi": 60})
    before = project.outputs()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        refuses(stage(name), "MLFLOW_TRACKING_URI", uri)
    assert project.outputs() == before


def test_a_training_that_diverges_says_where_and_leaves_the_earlier_model(stage, project):
    before = project.outputs()
    refuses(stage("train", "--learning_rate=1e30"), "diverged", "epoch 1, step ", "train.learning_rate")
    assert project.outputs() == before
    assert runs_of(project)[0].info.status == "FAILED"


def test_a_training_that_diverges_late_keeps_its_best_weights(stage, project):
    project.set({"train.lr_schedule": "one_cycle"})
    refuses(stage("train", "--learning_rate=1e4", "--epochs=6"), "diverged")
    history = pd.read_csv(project / "metrics/history.csv")
    assert 1 <= len(history) < 6
    assert all(weights.isfinite().all() for weights in load_file(project / MODEL).values())


def test_weights_with_a_flipped_bit_are_refused(stage, project):
    content = bytearray((project / MODEL).read_bytes())
    content[-5] ^= 1  # in the last tensor, where the format itself notices nothing
    (project / MODEL).write_bytes(content)
    assert VAE.load(project / MODEL)
    for name in ("evaluate", "render"):
        refuses(stage(name), MODEL, "dvc checkout")


def test_a_damaged_evaluation_is_not_drawn(stage, project):
    anything = [Path.unlink, replaced_by(b""), replaced_by(b"\x80" * 1000)]
    damages = {
        "metrics/latents.npz": [*anything, flip_a_bit, truncate],
        "metrics/history.csv": [*anything, replaced_by(b"epoch,train/loss\n1,two\n"), replaced_by(b"a,b\n1,2,3\n")],
    }
    for file in damages:
        earlier = (project / file).read_bytes()
        for damage in damages[file]:
            damage(project / file)
            before = project.outputs()
            refuses(stage("render"), file, "dvc repro")
            assert project.outputs() == before
            (project / file).write_bytes(earlier)
    works(stage("render"))


def replaced_by(content):
    return lambda path: path.write_bytes(content)


# Stale and foreign state


def test_a_project_that_was_moved_takes_its_runs_files_with_it(reproduced, stage, project):
    (trained,) = runs_of(project)
    (reproduced / "mlruns/artifacts/a new file").touch()  # what is found in it is the original's
    originals = sorted((reproduced / "mlruns").rglob("*"))
    works(stage("evaluate"))
    assert sorted((reproduced / "mlruns").rglob("*")) == originals
    (reproduced / "mlruns/artifacts/a new file").unlink()
    (run,) = runs_of(project)
    assert run.info.run_id == trained.info.run_id
    assert run.info.artifact_uri == (project.root / "mlruns/artifacts" / run.info.run_id / "artifacts").as_uri()
    client = mlflow.MlflowClient(project.store)
    assert {"vae.safetensors", "per_digit.csv"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_store_that_was_deleted_is_made_anew(stage, project):
    shutil.rmtree(project / "mlruns")
    works(stage("evaluate"))
    (run,) = runs_of(project)
    assert {"seed", "train.beta"} <= run.data.params.keys()
    assert run.data.metrics["test/nll"] > 0


def test_a_lock_of_results_that_nobody_here_has_is_no_obstacle(project, reproduced):
    lock = project / "dvc.lock"
    (md5,) = re.findall(r"path: models/vae.safetensors\n      hash: md5\n      md5: (\w+)", lock.read_text())[:1]
    lock.write_text(lock.read_text().replace(md5, "0123456789abcdef" * 2))
    (project / MODEL).unlink()
    assert stages_run(project.dvc("repro", "train")) == ["train"]
    assert sha256(project / MODEL) == sha256(reproduced / MODEL)


# Full disks


@pytest.fixture
def on_a_small_disk(project):
    """Runs a stage with one folder of the project on a disk of its own that has `kilobytes` left."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no user mount a disk of their own")

    def run(folder, kilobytes, *command):
        path = project / folder
        path.mkdir(parents=True, exist_ok=True)
        script = (
            'set -e; cp -r "$1" "$1.copy"; used=$(du -sk "$1" | cut -f1); '
            'mount -t tmpfs -o size=$((used + $2))k tmpfs "$1"; cp -r "$1.copy/." "$1"; shift 2; '
            '"$@" && code=0 || code=$?; cp -r "$0/." "$0.after"; exit $code'
        )
        arguments = ["unshare", "-rm", "bash", "-c", script, str(path), str(path), str(kilobytes), *command]
        return subprocess.run(arguments, cwd=project.root, env=ENVIRONMENT, capture_output=True, text=True)

    return run


def test_a_full_disk_ends_a_training_in_one_line_and_it_goes_on_when_there_is_room(on_a_small_disk, project):
    train = [sys.executable, "pipeline/train.py", "--epochs=6"]
    failed = on_a_small_disk(".ckpt", 900, *train)
    refuses(Outcome(failed.returncode, failed.stdout, failed.stderr), "No space left on device", ".ckpt/train")
    shutil.rmtree(project / ".ckpt")
    (project / ".ckpt.after").rename(project / ".ckpt")
    assert "going on after epoch 1 of 6" in project.run(*train)


def test_a_full_disk_leaves_the_earlier_model_whole(on_a_small_disk, project, reproduced):
    failed = on_a_small_disk("models", 60, sys.executable, "pipeline/train.py", "--latent-dim=20")
    refuses(Outcome(failed.returncode, failed.stdout, failed.stderr), "No space left on device", MODEL)
    assert sha256(project / "models.after/vae.safetensors") == sha256(reproduced / MODEL)
    assert {path.name for path in (project / "models.after").iterdir()} == {"vae.safetensors", "run.json"} | {
        path.name for path in (project / "models").iterdir()
    }


def test_a_full_disk_under_mlflow_costs_the_training_nothing(on_a_small_disk, project):
    done = on_a_small_disk("mlruns", 40, sys.executable, "pipeline/train.py", "--epochs=30")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: not tracked in MLflow for now: ")
    assert done.stderr.count("\n") == 1
    assert len(pd.read_csv(project / "metrics/history.csv")) == 30


# Interruptions


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_exits_as_such_and_its_run_is_killed(project, number, code):
    process = project.start(sys.executable, "pipeline/train.py", "--epochs=5000", until="epoch   2/")
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    run, _ = runs_of(project)
    assert run.info.status == "KILLED"
    assert run.data.metrics["val/neg_elbo"] > 0
    assert VAE.load(project / MODEL)  # the best epoch so far, whole


def test_an_interrupted_repro_commits_nothing(project, reproduced):
    lock = (project / "dvc.lock").read_bytes()
    project.set({"train.epochs": 5000})
    process = project.start(sys.executable, "-m", "dvc", "repro", until="epoch   2/")
    os.killpg(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert "evaluate" not in rest
    assert (project / "dvc.lock").read_bytes() == lock
    assert runs_of(project)[0].info.status == "KILLED"
    project.run("git", "checkout", "--quiet", "params.yaml")
    assert stages_run(project.dvc("repro", "train")) == []  # the earlier model comes back from the cache
    assert sha256(project / MODEL) == sha256(reproduced / MODEL)
