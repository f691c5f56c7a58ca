"""What the stages print: no silent minute, and lines of at most 80 columns."""

from vae import progress
from vae.workflow.tracked_training import describe


def fitting(outcome):
    lines = outcome.succeeds().out.splitlines()
    assert [line for line in lines if len(line) > 80 and "http" not in line] == []
    return lines


def test_an_evaluation_names_each_of_its_steps_and_shows_a_percentage_where_there_is_no_terminal(stage, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e-9)
    lines = fitting(stage("evaluate"))
    assert lines[:2] == ["evaluating 1,000 images with 8 importance samples each", "evaluate 25%"]
    steps = ["decomposing the KL", "fitting a linear probe", "training classifiers", "test −ELBO", "all metrics: "]
    assert [step for line in lines[2:] for step in steps if line.startswith(step)] == steps


def test_training_and_figures_say_what_they_do_and_where_the_files_are(stage, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 1e-9)
    assert fitting(stage("render"))[:2] == ["plotting the figures", "10 figures in figures/"]
    assert fitting(stage("explorer"))[0] == "making the latent explorer"
    lines = fitting(stage("train", "--epochs=1"))
    assert lines[:2] == ["MNIST-bundled-5000: 3,500 to train on, 500 to validate", "cpu, 1 thread, fp32, eager"]
    percentages = [int(line[len("epoch 1/1 ") : -1]) for line in lines if line.endswith("%")]
    assert percentages == sorted(set(percentages)) and len(percentages) > 2
    assert percentages[0] > 0 and percentages[-1] < 100
    assert any(line.startswith("weights: models/vae.safetensors") for line in lines)


def test_the_longest_line_of_an_epoch_fits():
    metrics = {"train/neg_elbo": 542.123, "val/neg_elbo": 541.567, "val/reconstruction": 517.267, "val/kl": 24.3}
    assert len(describe({"epoch": 1000, "improved": 1, "train/images_per_second": 1e5, **metrics}, 1000)) <= 80
