"""A run's params, tags and test metrics belong together, whichever stages DVC runs, restores or queues."""

import json

import pytest

from vae.files import sha256
from vae.tracking.store import mlflow
from vae.workflow import tracked_training

PARENT = "mlflow.parentRunId"


def belongs_together(run):
    """The run shows the protocol of its own evaluation."""
    samples, precision = (run.data.params[f"evaluate.{name}"] for name in ("importance_samples", "precision"))
    shown = {"importance_samples": samples, "precision": precision, "binarization": "dynamic", "split": "test"}
    return run.data.tags.items() >= {f"test.{name}": value for name, value in shown.items()}.items()


@pytest.mark.slow
def test_each_evaluation_and_rendering_of_cached_weights_is_a_run_below_that_of_the_training(project, runs_of):
    (trained,) = runs_of(project)
    assert belongs_together(trained) and {"val/kl", "test/nll"} <= trained.data.metrics.keys()
    nll = {}
    for name, samples in {"short": 2, "long": 20}.items():
        project.dvc("exp", "run", "-n", name, "-S", f"evaluate.importance_samples={samples}")
        nll[name] = json.loads((project / "metrics/evaluate.json").read_text())["nll"]
    project.dvc("exp", "run", "-n", "finer", "-S", "render.dpi=50")
    project.dvc("exp", "run", "--temp", "-n", "elsewhere", "-S", "evaluate.importance_samples=3")
    *further, trained_after = runs_of(project)
    elsewhere, finer, long, short = further
    assert trained_after.data.to_dictionary() == trained.data.to_dictionary()
    for run, name in {short: "short", long: "long"}.items():
        assert (run.data.tags["dvc.experiment"], run.data.metrics["test/nll"]) == (name, pytest.approx(nll[name]))
        assert run.data.tags["test.weights_sha256"] == sha256(project / "models/vae.safetensors")
    assert (elsewhere.data.tags["dvc.experiment"], finer.data.params["render.dpi"]) == ("elsewhere", "50")
    assert all(map(belongs_together, (elsewhere, short, long))) and not finer.data.metrics
    assert {run.data.tags[PARENT] for run in further} == {trained.info.run_id}


def test_a_forced_evaluation_adds_to_its_run_and_one_of_other_code_does_not(stage, project, runs_of):
    (trained,) = runs_of(project)
    stage("evaluate").succeeds()
    assert len(runs_of(project)) == 1
    with (project / "pipeline/evaluate.py").open("a") as file:
        file.write("# changed\n")
    stage("evaluate").succeeds()
    other, _ = runs_of(project)
    assert other.data.tags[PARENT] == trained.info.run_id and belongs_together(other)


def test_a_further_evaluation_says_how_the_weights_were_trained_not_what_params_yaml_says_now(stage, project, runs_of):
    project.set({"train.epochs": 9, "evaluate.importance_samples": 2})
    stage("evaluate").succeeds()
    further, _ = runs_of(project)
    assert (further.data.params["train.epochs"], further.data.params["evaluate.importance_samples"]) == ("2", "2")


def test_a_run_has_pictures_by_epoch_and_its_constants_are_tags(reproduced, runs_of):
    (run,) = runs_of(reproduced)
    assert {(name, step) for name, step in shown(reproduced, run)} == {
        (name, step) for name in ("samples", "reconstructions", "latent_space") for step in (1, 2)
    }
    trained = json.loads((reproduced / "metrics/train.json").read_text())
    constants = ("best_epoch", "epochs", "parameters")
    assert {name: run.data.tags[name] for name in constants} == {name: str(trained[name]) for name in constants}
    assert not [name for name in run.data.metrics if name.endswith((*constants, "n_test"))]


def test_a_resumed_training_has_the_pictures_of_all_its_epochs(stage, project, runs_of, monkeypatch):
    def interrupt(record, epochs):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracked_training, "describe", interrupt)
        assert stage("train", "--epochs=5").code == 130
    stage("train", "--epochs=5").succeeds()
    run, _ = runs_of(project)
    assert sorted(step for name, step in shown(project, run) if name == "samples") == [1, 2, 4, 5]


def shown(project, run):
    """The name and step of each picture that MLflow shows by step."""
    assert run.data.tags["mlflow.loggedImages"] == "True"
    files = mlflow.MlflowClient(project.store).list_artifacts(run.info.run_id, "images")
    parts = [file.path.removeprefix("images/").split("+") for file in files if file.path.endswith(".png")]
    return [(name, int(step)) for name, _, step, *_ in parts]
