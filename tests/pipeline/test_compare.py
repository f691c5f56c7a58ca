"""What is compared of experiments: the metrics that Git tracks, and `make compare`, by real DVC commands."""

import json
import subprocess
import sys

import pytest

from support import ENVIRONMENT

NAME = "an-experiment-with-a-very-long-name-that-is-wider-than-its-column"


def compare(folder):
    environment = ENVIRONMENT | {"COLUMNS": "100"}
    command = [sys.executable, "-m", "vae.workflow.compare"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def read_metrics(project, name):
    return json.loads((project / f"metrics/{name}.json").read_text())


def test_the_metrics_that_are_compared_are_few_and_rounded(reproduced):
    compared, every = (read_metrics(reproduced, name) for name in ("evaluate", "evaluation"))
    assert list(compared) == [
        *("reconstruction", "kl", "elbo", "nll", "nll_standard_error", "importance_samples", "active_units"),
        *("mutual_information", "linear_probe_accuracy", "sample_frechet_distance"),
    ]
    for name, value in compared.items():
        assert value == pytest.approx(every[name], rel=1e-5)
    numbers = [*compared.values(), *(value for key, value in read_metrics(reproduced, "train").items() if "/" in key)]
    assert [value for value in numbers if len(f"{value}".strip("-0.").replace(".", "")) > 6] == []


@pytest.mark.slow
def test_the_table_has_each_experiment_with_its_params_metrics_and_time_in_100_columns(project):
    first = read_metrics(project, "evaluate")
    sets = ["-S", "evaluate.importance_samples=4", "-S", "evaluate.chunk_size=1000"]
    project.dvc("exp", "run", "--name", NAME, *sets)
    second = read_metrics(project, "evaluate")
    project.dvc("exp", "run", "--queue", "--name", "64", "-S", "train.beta=4", "-S", "model.hidden_dims=[16,16]")
    done = compare(project.root)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line for line in lines if "±" in line}
    for name, metrics in (("main", first), (NAME[:20], second)):
        (numbers,) = [row.split()[1:7] for begin, row in rows.items() if begin.startswith(name)]
        assert numbers[1] == "±" and float(numbers[5]) >= 0  # minutes
        wanted = [metrics["nll"], metrics["nll_standard_error"], -metrics["elbo"], metrics["kl"]]
        assert [numbers[i] for i in (0, 2, 3, 4)] == [f"{value:.2f}" for value in wanted]
    for param in ("evaluate.importance_samples=4", "evaluate.chunk_size=1000"):  # the queued one has them, too
        assert sum(param in line for line in lines) == 2, param
    for param in ("train.beta=4", "model.hidden_dims=[16, 16]"):
        assert sum(param in line for line in lines) == 1, param
    (queued,) = [line for line in lines if line.startswith("64 ")]
    assert queued.split()[1] == "Queued"


def test_outside_of_a_git_repository_there_is_one_line(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no Git repository") and done.stderr.count("\n") == 1
