"""Where a search with other values writes its results, and how DVC writes params.yaml."""

import shutil
import sys

import pytest
from dvc.utils.hydra import apply_overrides

from support import ROOT
from vae.config import load_params


def test_an_experiment_of_dvc_changes_one_line_of_params_yaml(tmp_path):
    before = (ROOT / "params.yaml").read_text().splitlines()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", ["train.epochs=77"])  # what `dvc exp run -S` does
    after = (tmp_path / "params.yaml").read_text().splitlines()
    assert len(before) == len(after)
    assert [line for line in after if line not in before] == ["  epochs: 77"]


@pytest.mark.slow
def test_a_search_with_flags_leaves_the_committed_results_alone(project):
    (project / "search").mkdir()
    (project / "search/best_params.yaml").write_text("train: {beta: 0.5}\n")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message=Search")
    flags = ["--n_trials=2", "--epochs=1", "--workers=1", "--finalists=0"]
    printed = project.run(sys.executable, "pipeline/search/search.py", *flags)
    (folder,) = (project / "results/search").iterdir()
    assert f"make adopt FROM=results/search/{folder.name}\n" in printed
    assert {path.name for path in folder.iterdir()} >= {"trials.csv", "best_params.yaml", "slice.png"}
    assert project.run("git", "status", "--porcelain") == ""
    adopted = project.run(sys.executable, "-m", "vae.search.adopt", f"results/search/{folder.name}")
    assert "Trial " in adopted and f"study {folder.name}" in adopted
    load_params(project / "params.yaml")
