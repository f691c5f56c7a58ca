"""`make ais` on a small trained model."""

import json
import runpy
import sys

import pytest

from vae.files import sha256


@pytest.fixture
def ais(project, called, monkeypatch):
    """Runs the command in a reproduced project."""

    def run(*arguments):
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "argv", ["ais.py", *arguments])
        return called(lambda: runpy.run_module("vae.workflow.ais", run_name="__main__"))

    return run


def test_the_check_compares_with_the_importance_weighted_nll_and_brackets_that_of_the_models_images(project, ais):
    lines = ais("--images=6", "--chains=2", "--temperatures=60").succeeds().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "6 test images, 2 chains each, 60 temperatures"
    found = json.loads((project / "results/ais.json").read_text())
    assert found["ais_nll"] - found["nll"] == pytest.approx(found["mean"], abs=1e-2)
    assert abs(found["mean"]) < 1 and found["standard_error"] < 0.5, "two latents are easy to integrate over"
    assert found["model_images_above"] > found["model_images_below"] - 0.3
    protocol = {"images": 6, "chains": 2, "temperatures": 60, "importance_samples": 8, "seed": 0}
    assert found.items() >= protocol.items()
    assert found["weights_sha256"] == sha256(project / "models/vae.safetensors")


def test_refused_sizes_are_one_line(project, ais):
    ais("--chains=0").fails_with("chains is 0", "greater than or equal to 1")
    ais("--images=1").fails_with("images is 1", "greater than or equal to 2")
    ais("--chain=3").fails_with("unknown flag --chain", "--chains", code=2)
