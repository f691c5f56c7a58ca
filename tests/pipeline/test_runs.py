"""A run's params, tags and test metrics belong together, whichever stages DVC runs, restores or queues."""

import json

import pytest

from vae.files import sha256

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
