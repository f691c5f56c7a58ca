"""Where a search with other values writes its results, and how `make adopt` and DVC write params.yaml."""

import shutil
import sys

import pytest
from dvc.utils.hydra import apply_overrides

from support import ROOT
from vae.config import load_params
from vae.errors import SearchError
from vae.search.adopt import adopt

PARAMS = """\
model:
  architecture: conv
  hidden_dims: [512, 512]  # widths
  dense_dims:              # of a conv
  - 64
  - 32
  # further ones
  latent_dim: 40
  lower_latent_dim: null  # none
train:
  beta: 1.0               # weight of the KL
  learning_rate: 3e-3     # a peak
  max_grad_norm:          # null: don't
  optimizer: adam         # adam | muon
  weight_decay: 0.0
search:
  space:
    beta: {low: 0.5, high: 2.0, log: true}
"""
ADOPTED = """\
model:
  architecture: conv
  hidden_dims: [128, 64]   # widths
  dense_dims:              # of a conv
  - 16
  # further ones
  latent_dim: 8
  lower_latent_dim: null  # none
train:
  beta: 0.9712            # weight of the KL
  learning_rate: 3e-3     # a peak
  max_grad_norm: 1.0      # null: don't
  optimizer: muon         # adam | muon
  weight_decay: 1.235e-05
search:
  space:
    beta: {low: 0.5, high: 2.0, log: true}
"""
BEST = """\
# Trial 3
# warning: one seed
model: {hidden_dims: [128, 64], dense_dims: [16], latent_dim: 8, lower_latent_dim: null}
train:
  {beta: 0.97123, learning_rate: 0.00300001, max_grad_norm: 1.0, optimizer: muon, weight_decay: 1.23456e-05}
"""


def test_adopted_values_are_rounded_and_the_rest_of_the_file_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/best_params.yaml").write_text(BEST)
    printed = adopt(tmp_path / "elsewhere")
    assert printed.startswith("Trial 3\nwarning: one seed\n--- params.yaml\n")
    assert (tmp_path / "params.yaml").read_text() == ADOPTED


def test_a_key_without_a_line_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("train: {beta: 1.0}\n")
    (tmp_path / "best_params.yaml").write_text("train: {beta: 2.0}\n")
    with pytest.raises(SearchError, match=r"no line of its own for train\.beta"):
        adopt(tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "train: {beta: 1.0}\n"


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
    printed = project.run(
        *(sys.executable, "pipeline/search/search.py", "--n_trials=2", "--epochs=1", "--workers=1"),
    )
    (folder,) = (project / "results/search").iterdir()
    assert f"`make adopt FROM=results/search/{folder.name}`" in printed
    assert {path.name for path in folder.iterdir()} >= {"trials.csv", "best_params.yaml", "slice.png"}
    assert project.run("git", "status", "--porcelain") == ""
    adopted = project.run(sys.executable, "-m", "vae.search.adopt", f"results/search/{folder.name}")
    assert "Trial " in adopted and f"study {folder.name}" in adopted
    load_params(project / "params.yaml")
