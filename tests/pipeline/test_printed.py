"""What the stages print: no silent minute, and lines of at most 80 columns."""

import pytest
import torch

from vae.config import TrainParams
from vae.device import resolve
from vae.evaluation import likelihood
from vae.workflow.tracked_training import describe


@pytest.fixture
def printed(stage):
    """The lines that a stage prints, none of which is too long."""

    def run(name, *flags):
        lines = stage(name, *flags).succeeds().out.splitlines()
        assert [line for line in lines if len(line) > 80 and "http" not in line] == []
        return lines

    return run


def test_an_evaluation_names_each_of_its_steps_and_shows_a_percentage_where_there_is_no_terminal(printed, monkeypatch):
    monkeypatch.setattr(likelihood, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    lines = printed("evaluate")
    assert lines[:3] == ["evaluating 1,000 images with 8 importance samples each", "evaluated 50%", "evaluated 100%"]
    steps = ["decomposing the KL", "fitting a linear probe", "training a classifier", "test −ELBO", "test NLL"]
    assert [step for line in lines[3:] for step in steps if line.startswith(step)] == steps
    assert "all metrics: metrics/evaluation.json, by class: metrics/per_class.csv" in "\n".join(lines)


def test_training_and_figures_say_what_they_do_and_where_the_files_are(printed):
    lines = printed("train", "--epochs=1", "--latent_dim=3")
    assert lines[:2] == ["MNIST-bundled-5000: 3,500 to train on, 500 to validate", "cpu, 1 thread, fp32, eager"]
    assert lines[2].startswith("epoch   1/1  −ELBO ")
    assert any(line.startswith("weights: models/vae.safetensors") for line in lines)


def test_the_figures_name_their_folder(printed):
    first, second, *_ = printed("render")
    assert (first, second) == ("plotting the figures", "10 figures in figures/")


@pytest.mark.parametrize("improved", [0, 1])
def test_the_longest_line_of_an_epoch_fits(improved):
    metrics = {"train/neg_elbo": 542.123, "val/neg_elbo": 541.567, "val/reconstruction": 517.267, "val/kl": 24.3}
    line = describe({"epoch": 1000, "improved": improved, "train/images_per_second": 1e5, **metrics}, 1000)
    assert len(line) <= 80
    assert line.endswith("100,000 images/s" if improved else "not better")


@pytest.mark.parametrize(("threads", "said"), [(1, "cpu, 1 thread, "), (2, "cpu, 2 threads, ")])
def test_one_thread_is_singular(threads, said, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert str(resolve(TrainParams(device="cpu"))).startswith(said)
