import pytest

from support import ROOT
from vae.config import load_params
from vae.errors import ConfigError, SearchError
from vae.search.adopt import adopt

BEST = "# comment\nmodel: {latent_dim: 5, hidden_dims: [8, 4]}\ntrain: {beta: 0.75, learning_rate: 1.5e-3}\n"


@pytest.fixture
def params_yaml(tmp_path, monkeypatch):
    """A copy of params.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def test_adopt_changes_the_values_and_nothing_else(params_yaml):
    (params_yaml.parent / "search/best_params.yaml").write_text(BEST)
    before = params_yaml.read_text().splitlines()
    difference = adopt()
    after = params_yaml.read_text().splitlines()
    params = load_params()
    assert (params.model.latent_dim, params.model.hidden_dims) == (5, (8, 4))
    assert (params.train.beta, params.train.learning_rate) == (0.75, 0.0015)
    changed = [line for line in before if line not in after]
    assert {line.split(":")[0].strip() for line in changed} == {"latent_dim", "- 512", "beta", "learning_rate"}
    comments = [[line.split("#")[1] for line in lines if "#" in line] for lines in (before, after)]
    assert comments[0] == comments[1]
    assert "-  beta: " in difference and "+  beta: 0.75" in difference
    assert adopt() == "comment\nparams.yaml already has these values\n"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "no search has finished"),
        ("train: {beta: -1.0}", "train.beta is -1.0"),
        ("train: {betta: 1.0}", "unknown key 'train.betta'"),
        ("[1, 2", "can't be read"),
        ("train: 1", "can't be read"),
    ],
)
def test_values_that_are_not_allowed_are_not_adopted(params_yaml, content, error):
    if content:
        (params_yaml.parent / "search/best_params.yaml").write_text(content)
    before = params_yaml.read_bytes()
    with pytest.raises((ConfigError, SearchError), match=error):
        adopt()
    assert params_yaml.read_bytes() == before
