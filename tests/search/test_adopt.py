import pytest

from support import ROOT
from vae.errors import ConfigError, SearchError
from vae.search.adopt import adopt

PARAMS = """seed: 0
model:
  architecture: conv
  hidden_dims: [512, 512]  # widths
  dense_dims:              # a list
  - 64
  - 32
  # further ones
  latent_dim: 40
  lower_latent_dims: []  # none
train:
  beta: 1.0               # a weight
  learning_rate: 3e-3     # a peak
  max_grad_norm:          # null: don't
  optimizer: adam         # adam | muon
  weight_decay: 0.0
search:
  space:
    beta: {low: 0.5, high: 2.0, log: true}
"""
BEST = """# Trial 3
# warning: one seed
model: {hidden_dims: [128, 64], dense_dims: [16], latent_dim: 8, lower_latent_dims: []}
train:
  {beta: 0.97123, learning_rate: 0.00300001, max_grad_norm: 1.0, optimizer: muon, weight_decay: 1.23456e-05}
"""
CHANGES = {
    "[512, 512]  #": "[128, 64]   #",
    "  - 64\n  - 32\n": "  - 16\n",
    "latent_dim: 40": "latent_dim: 8",
    "beta: 1.0   ": "beta: 0.9712",
    "norm:    ": "norm: 1.0",
    "optimizer: adam": "optimizer: muon",
    "decay: 0.0": "decay: 1.235e-05",
}


@pytest.fixture
def params_yaml(tmp_path, monkeypatch):
    """A copy of params.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def test_adopted_values_are_rounded_and_the_rest_of_the_file_stays_as_it_is(params_yaml):
    params_yaml.write_text(PARAMS)
    (params_yaml.parent / "search/best_params.yaml").write_text(BEST)
    assert adopt().startswith("Trial 3\nwarning: one seed\n--- params.yaml\n")
    expected = PARAMS
    for old, new in CHANGES.items():
        expected = expected.replace(old, new)
    assert params_yaml.read_text() == expected
    assert adopt() == "Trial 3\nwarning: one seed\nparams.yaml already has these values\n"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "no search has finished"),
        ("train: {beta: -1.0}", "train.beta is -1.0"),
        ("train: {betta: 1.0}", "unknown key 'train.betta'"),
        ("[1, 2", "can't be read"),
        ("train: 1", "can't be read"),
        ("search: {epochs: 3}", "no line of its own for search.epochs"),
    ],
)
def test_values_that_are_not_allowed_are_not_adopted(params_yaml, content, error):
    if content:
        (params_yaml.parent / "search/best_params.yaml").write_text(content)
    params_yaml.write_text(params_yaml.read_text().replace("  epochs: 10 ", "  # epochs: 10 "))
    before = params_yaml.read_bytes()
    with pytest.raises((ConfigError, SearchError), match=error):
        adopt()
    assert params_yaml.read_bytes() == before


def test_a_file_that_cannot_be_edited_by_line_is_left_as_it_is(params_yaml):
    before = PARAMS.replace("[512, 512]  # widths", "[512,\n    512]")
    params_yaml.write_text(before)
    (params_yaml.parent / "search/best_params.yaml").write_text(BEST)
    with pytest.raises(SearchError, match="by hand"):
        adopt()
    assert params_yaml.read_text() == before
