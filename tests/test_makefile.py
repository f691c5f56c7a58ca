"""The Makefile: the arguments that it passes to programs, in a folder with an unusual name."""

import os
import shutil
import subprocess

import pytest

from support import ROOT

NAME = """50% o'clock "a" #1 & b?"""
PYTHON = """#!/bin/sh
for argument in "$@"; do printf '%s\\n' "$argument"; done >> arguments
"""


@pytest.fixture
def make(tmp_path):
    """Runs a target with a `python` that writes its arguments to a file; returns them."""
    root = tmp_path / NAME
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock", "Makefile"):
        shutil.copy(ROOT / name, root)
    (root / ".venv/bin/python").write_text(PYTHON)
    (root / ".venv/bin/python").chmod(0o755)
    (root / ".venv/.ready").touch()

    def run(*arguments, **environment):
        command = ["make", "--no-print-directory", *arguments]
        subprocess.run(command, cwd=root, env={**os.environ, **environment}, check=True, capture_output=True)
        return (root / "arguments").read_text().splitlines()

    run.root = root
    return run


@pytest.mark.parametrize("value", ["1; touch x", "`touch x`", "$(shell touch x)", "'; touch x '", "1 | #"])
def test_a_value_reaches_no_shell(make, value):
    assert make("train", f"EPOCHS={value}") == ["pipeline/train.py", f"--epochs={value}"]
    assert not (make.root / "x").exists()


def test_variables_of_the_command_line_become_flags_and_those_of_the_environment_do_not(make):
    flags = ["--n_trials=3", "--epochs=2", "--workers=auto"]
    assert make("search", "TRIALS=3", "EPOCHS=2", "WORKERS=auto", BETA="7")[-4:] == [*flags, "--finalists=0"]
    assert make("search", "TRIALS=3", "FINALISTS=2")[-3:] == [
        "pipeline/search/search.py",
        "--n_trials=3",
        "--finalists=2",
    ]
    assert make("train", BETA="7", EPOCHS="9")[-1] == "pipeline/train.py"
    assert make("published", "RECIPES=mlp ladder", EPOCHS="9")[-2:] == ["mlp", "ladder"]
    assert make("promote", "FORCE=it's smaller; really")[-2:] == ["promote", "--force=it's smaller; really"]
    assert make("restore", "MODEL=vae-mnist/3", FORCE="x")[-2:] == ["restore", "--model=vae-mnist/3"]
    assert make("ais", "IMAGES=9", "CHAINS=2")[-3:] == ["vae.workflow.ais", "--images=9", "--chains=2"]
    assert make("examples", QUICK="1")[-1] == "vae.examples"
    assert make("examples", "QUICK=1")[-1] == "--quick"
    assert make("serve", "MODEL=vae-mnist/3", PORT="7")[-2:] == ["vae.workflow.serve", "--model=vae-mnist/3"]
    assert make("report", "BASE=v1 0")[-2:] == ["vae.workflow.report", "--base=v1 0"]
    assert make("bench", "PEERS=1")[-5:-3] == ["benchmarks/speed.py", "peers"]
    assert make("bench", "PEERS=0")[-4:-2] == ["benchmarks/speed.py", "benchmarks/nll.py"]
    assert make("remote", "URL=/srv/my dvc")[-2:] == ["vae.workflow.remote", "--url=/srv/my dvc"]
    assert make("score", "IMAGES=my digits", "FIT=1")[-4:] == ["vae.workflow.score", "--fit", "--", "my digits"]
    assert make("score", "IMAGES=7.png", "FIT=0")[-3:] == ["vae.workflow.score", "--", "7.png"]
    assert make("examples", "QUICK=0")[-1] == "vae.examples"


@pytest.mark.parametrize(
    ("arguments", "refused", "names"),
    [
        (["search", "TRIAL=6"], "TRIAL=", "TRIALS= EPOCHS= WORKERS= FINALISTS= PYTHON="),
        (
            ["train", "EPOCH=2", "BETA=4"],
            "EPOCH=",
            "EPOCHS= BATCH_SIZE= LATENT_DIM= BETA= LEARNING_RATE= NPROC= PYTHON=",
        ),
        (["repro", "EPOCHS=2"], "EPOCHS=", "PYTHON="),  # of another target
    ],
)
def test_a_variable_that_the_target_does_not_take_is_refused_with_those_that_it_takes(make, arguments, refused, names):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        make(*arguments)
    (line,) = failed.value.stderr.decode().splitlines()
    assert f"make {arguments[0]} has no {refused}: there are {names}." in line
    assert not (make.root / "arguments").exists()


def test_the_explorer_is_made_before_it_is_opened(make):
    *repro, _, program = make("explore")
    assert repro == ["-m", "dvc", "repro", "explorer"]
    assert "explorer/index.html" in program


def test_the_pipeline_is_started_after_a_check_of_params_yaml(make):
    assert make("repro") == ["-m", "vae.config", "-m", "dvc", "repro"]


def test_the_environment_may_have_a_torch_without_cuda(make):
    (make.root / ".venv/.ready").unlink()
    assert "https://download.pytorch.org/whl/cpu" not in make("setup", "PYTHON=./.venv/bin/python")
    (make.root / ".venv/.ready").unlink()
    installed = make("setup", "PYTHON=./.venv/bin/python", "TORCH=cpu")
    assert installed[-5:] == ["https://download.pytorch.org/whl/cpu", "-c", "requirements.lock", "-e", ".[dev]"]
