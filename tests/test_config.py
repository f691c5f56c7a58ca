"""params.yaml: valid values load with the right types; invalid ones are refused in one line that says why."""

import re

import pytest
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from support import ROOT
from vae.config import Params, load_params
from vae.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "params.yaml"

    def load(content, overrides=None):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_params(path, overrides)

    return load


def refused(load, content, *args):
    """The one-line message with which `load` refuses `content`."""
    with pytest.raises(ConfigError) as caught:
        load(content, *args)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "params.yaml" in message
    return message


def test_params_yaml_contains_all_defaults():
    tree = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert load_params(ROOT / "params.yaml") == Params()
    assert set(tree) == set(Params.model_fields)
    for name, value in Params():
        if isinstance(value, BaseModel):
            assert set(tree[name]) == set(type(value).model_fields), name


@pytest.mark.parametrize(
    "content, name, value",
    [
        ("train: {learning_rate: 1e-3}", "train.learning_rate", 0.001),  # a number in YAML 1.2, text in YAML 1.1
        ("train: {learning_rate: 2}", "train.learning_rate", 2.0),
        ("model: {hidden_dims: [64, 32]}", "model.hidden_dims", (64, 32)),
        ("train: {max_grad_norm: null}", "train.max_grad_norm", None),
        ("data: {validation_size: 5000}", "data.validation_size", 5000),
        ("data: {validation_size: 0.05}", "data.validation_size", 0.05),
        ("train: {device: 'cuda:12'}", "train.device", "cuda:12"),
        (
            "data: {mirrors: ['https://example.org/', 'file:///srv']}",
            "data.mirrors",
            ("https://example.org/", "file:///srv"),
        ),
    ],
)
def test_a_value_is_loaded_with_its_type_and_the_others_keep_their_defaults(load, content, name, value):
    flat = load(content).flat()
    assert flat == Params().flat() | {name: value}
    assert type(flat[name]) is type(value)


def test_the_likelihood_is_that_of_the_images():
    assert Params().resolved_model.likelihood == "bernoulli"
    grey = Params().replaced({"data.binarization": "none"})
    assert grey.resolved_model.likelihood == "discretized_logistic"
    assert grey.replaced({"model.likelihood": "gaussian"}).resolved_model.likelihood == "gaussian"


@pytest.mark.parametrize(
    "content, key, given, allowed",
    [
        ("train: {epochs: '2'}", "train.epochs", "'2'", "valid integer"),
        ("train: {epochs: true}", "train.epochs", "True", "valid integer"),
        ("train: {epochs: 0}", "train.epochs", "0", "greater than or equal to 1"),
        ("train: {learning_rate: .nan}", "train.learning_rate", "nan", "finite number"),
        ("train: {device: 'cuda:first'}", "train.device", "'cuda:first'", "cuda"),
        ("train: {compile: 1}", "train.compile", "1", "'auto'"),
        ("train: fast", "train", "'fast'", "dictionary|section"),
        ("model: {hidden_dims: []}", "model.hidden_dims", "[]", "at least 1 item"),
        ("model: {hidden_dims: [64, 0]}", "model.hidden_dims.1", "0", "greater than or equal to 1"),
        ("data: {validation_size: 1.0}", "data.validation_size", "1.0", "less than 1"),
        ("search: {workers: many}", "search.workers", "'many'", "a valid integer or 'auto'"),
        ("search: {pruner: percentile}", "search.pruner", "'percentile'", "'median', 'hyperband' or 'none'"),
        ("seed: 1.0", "seed", "1.0", "valid integer"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key_and_what_is_allowed(load, content, key, given, allowed):
    complaint, rule = re.match(r".*?params\.yaml: (.*?), allowed is (.*)", refused(load, content)).groups()
    assert complaint == f"{key} is {given}"
    assert re.search(allowed, rule)


@pytest.mark.parametrize(
    "content, key, hint",
    [
        ("train: {epoch: 3}", "train.epoch", "did you mean 'epochs'?"),
        ('train: {"two\\nlines": 1}', "train.two lines", "allowed are batch_size"),
        ("zebra: {a: 1}", "zebra", "allowed are data, evaluate, model, render, search, seed, train"),
    ],
)
def test_an_unknown_key_is_named_beside_the_existing_ones(load, content, key, hint):
    message = refused(load, content)
    assert f"unknown key '{key}'" in message
    assert hint in message


def test_all_mistakes_are_listed_at_once(load):
    message = refused(load, "train: {epochs: 0, beta: -1}\nmodel: {latent_dim: 0}")
    assert all(key in message for key in ("train.epochs", "train.beta", "model.latent_dim"))


@pytest.mark.parametrize("url", ["ftp://example.org/mnist", "/srv/mnist"])
def test_a_mirror_that_is_not_a_url_is_refused(load, url):
    message = refused(load, f"data: {{mirrors: ['https://example.org', '{url}']}}")
    assert f"data.mirrors: {url!r} is not a http://, https:// or file:// URL" in message


@pytest.mark.parametrize(
    "content, problem",
    [
        ("data: {source: bundled, dataset: KMNIST}", "data: source 'bundled' holds MNIST only, not KMNIST"),
        ("data: {path: mine}", "data: path is 'mine', which source 'auto' doesn't read: set source: folder"),
        ("data: {channels: 3}", "data: image_size and channels are not for MNIST: its images are grey, 28×28"),
        ("data: {dataset: SVHN, source: directory}", "source 'directory' has no SVHN, allowed are auto and mirror"),
        ("model: {architecture: conv, decoder_skip: true}", "decoder_skip requires architecture 'mlp', not 'conv'"),
        ("model: {architecture: conv, activation: glu}", "activation 'glu' requires architecture 'mlp', not 'conv'"),
        (
            "data: {binarization: none}\nmodel: {likelihood: bernoulli}",
            "model.likelihood 'bernoulli' requires black-and-white images, not data.binarization 'none': allowed "
            "with it are 'discretized_logistic' and 'gaussian'",
        ),
        (
            "model: {likelihood: gaussian}",
            "model.likelihood 'gaussian' requires grey or colour values: data.binarization 'none', not 'dynamic'",
        ),
        (
            "search: {space: {likelihood: [auto]}}",
            "search.space: likelihood can't be searched: probabilities and densities don't compare",
        ),
        ("model: {dense_dims: [8]}", "dense_dims requires architecture 'conv', not 'mlp': use hidden_dims"),
        (
            "train: {epochs: 10, kl_cycles: 3, kl_warmup_epochs: 4}",
            "kl_warmup_epochs is 4, with kl_cycles 3 allowed is 1 to 3: the warm-up is a part of each cycle",
        ),
        ("train: {doubly_reparameterized: true}", "doubly_reparameterized requires objective 'iwae'"),
        (
            "train: {objective: iwae, free_bits: 0.1}",
            "free_bits requires objective 'elbo': the importance-weighted bound has no KL term",
        ),
        ("train: {objective: iwae, mmd: 1}", "mmd requires objective 'elbo'"),
        (
            "train: {free_bits: 0.1}\nmodel: {prior: vampprior}",
            "free_bits requires a KL per dimension: model.prior 'standard', no lower_latent_dims",
        ),
        ("train: {elbo_epochs: 3}", "elbo_epochs is 3, allowed is less than epochs, with objective 'iwae'"),
        (
            "train: {objective: iwae, epochs: 3, elbo_epochs: 3}",
            "elbo_epochs is 3, allowed is less than epochs, with objective 'iwae'",
        ),
        (
            "model: {hidden_dims: [20], lower_latent_dims: [2, 2]}",
            "lower_latent_dims has 2 entries, allowed are 1: one for each of hidden_dims",
        ),
        (
            "train: {free_bits: 0.1}\nmodel: {lower_latent_dims: [2]}",
            "free_bits requires a KL per dimension: model.prior 'standard', no lower_latent_dims",
        ),
        (
            "train: {objective: iwae, doubly_reparameterized: true}\nmodel: {lower_latent_dims: [2]}",
            "doubly_reparameterized requires a model without lower_latent_dims",
        ),
    ],
)
def test_values_that_exclude_each_other_are_refused(load, content, problem):
    assert refused(load, content).endswith(problem)


@pytest.mark.parametrize(
    "content",
    [
        "data: {source: folder, path: mine, image_size: [32, 48], channels: 1}",
        "data: {dataset: CelebA, image_size: 64}",
        "model: {activation: glu, decoder_skip: true, prior: vampprior, lower_latent_dims: [4]}",
        "model: {architecture: conv, dense_dims: [64, 32], lower_latent_dims: [2]}",
        "train: {free_bits: 0.1, mmd: 1, kl_cycles: 4, kl_warmup_epochs: 2}\nmodel: {prior: standard}",
        "train: {objective: iwae, doubly_reparameterized: true}\nmodel: {prior: vampprior}",
    ],
)
def test_values_that_do_not_exclude_each_other_are_accepted(load, content):
    load(content)


@pytest.mark.parametrize(
    "content, problem",
    [
        ("train: [", "not valid YAML"),
        ("train: {epochs: 1, epochs: 2}", 'duplicate key "epochs"'),
        ("train: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"seed: 1 # caf\xe9", "'utf-8' codec can't decode byte 0xe9"),
        ("", "must hold sections such as `train:`, not None"),
        ("- train", "must hold sections such as `train:`, not ['train']"),
    ],
)
def test_a_file_without_valid_sections_is_refused(load, content, problem):
    assert problem in refused(load, content)


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^params.yaml not found in {re.escape(str(tmp_path))}") as caught:
        load_params()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load_params(tmp_path)


def test_overrides_win_over_the_file_and_are_validated_like_it(load):
    params = load("seed: 1\ntrain: {epochs: 2, beta: 2.0}", {"seed": 5, "train.epochs": 9, "model.latent_dim": 3})
    assert (params.seed, params.train.epochs, params.train.beta, params.model.latent_dim) == (5, 9, 2.0, 3)
    assert "train.epochs is 0" in refused(load, "train: {epochs: 2}", {"train.epochs": 0})
    assert "unknown key 'train.epoch'" in refused(load, "train: {epochs: 2}", {"train.epoch": 3})


def test_replaced_returns_a_validated_copy_of_frozen_params():
    params = Params()
    assert params.replaced({"train.beta": 3.0}).train.beta == 3.0
    assert params == Params()
    with pytest.raises(ConfigError, match=r"^train\.beta is -1\.0, allowed is greater than or equal to 0$"):
        params.replaced({"train.beta": -1.0})
    with pytest.raises(ValidationError, match="frozen"):
        params.train.beta = 3.0


def test_flat_names_every_parameter_once():
    flat = Params(train={"beta": 4.0}, search={"space": {"beta": [1.0, 4.0]}}).flat()  # the space is one parameter
    assert (flat["seed"], flat["train.beta"]) == (0, 4.0)
    assert len(flat) == 1 + sum(len(type(value).model_fields) for _, value in Params() if isinstance(value, BaseModel))


# The search space


@pytest.mark.parametrize(
    "space, reason",
    [
        ("{beta: {low: 4, high: 1}}", "beta: low 4.0 is above high 1.0"),
        ("{beta: {low: 0, high: 1, log: true}}", "beta: a logarithmic range starts above 0, not at 0.0"),
        ("{betta: [1, 2]}", "'betta' is no parameter of model or train: did you mean 'beta'?"),
        ("{epochs: [1, 2]}", "epochs can't be searched: search.epochs sets the length of all trials"),
        ("{activation: [silu, swish]}", "activation is 'swish', allowed is 'silu', 'relu', 'gelu', 'tanh' or 'glu'"),
        ("{beta: {min: 1, max: 2}}", "beta is {'min': 1, 'max': 2}, allowed is a list of values, or a range such as"),
        ("{beta: []}", "beta has no values to choose from"),
        ("{}", "{} is not a section with a line for each parameter to search"),
    ],
)
def test_an_invalid_search_space_is_refused(load, space, reason):
    assert f"search.space: {reason}" in refused(load, f"search: {{space: {space}}}")


def test_a_search_space_takes_ranges_choices_and_lists_of_widths(load):
    params = load(
        "search: {space: {beta: {low: 1, high: 4, log: true}, latent_dim: [2, 8], "
        "hidden_dims: [[64], [64, 32]], max_grad_norm: [null, 1]}}"
    )
    space = params.search.space
    assert space["beta"].model_dump() == {"low": 1.0, "high": 4.0, "log": True}
    assert (space["latent_dim"], space["hidden_dims"]) == ((2, 8), ((64,), (64, 32)))
    assert space["max_grad_norm"] == (None, 1.0)
    assert params.replaced({}) == params


def test_whether_values_of_a_search_space_can_be_combined_is_checked_for_each_trial(load):
    params = load("train: {objective: iwae}\nsearch: {space: {doubly_reparameterized: [true, false]}}")
    assert params.replaced({"train.doubly_reparameterized": True}).train.doubly_reparameterized
    with pytest.raises(ConfigError, match=r"^train: doubly_reparameterized requires objective 'iwae'$"):
        params.replaced({"train.doubly_reparameterized": True, "train.objective": "elbo"})
