"""params.yaml: what is right loads with the right types, what is wrong is refused in one line that says why."""

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
    """The message with which `load` refuses `content`, which is a single line."""
    with pytest.raises(ConfigError) as caught:
        load(content, *args)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "params.yaml" in message
    return message


def test_params_yaml_says_all_of_the_defaults():
    tree = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert load_params(ROOT / "params.yaml") == Params()
    assert set(tree) == set(Params.model_fields)
    for name, value in Params():
        if isinstance(value, BaseModel):
            assert set(tree[name]) == set(type(value).model_fields), name


def test_a_missing_section_or_key_takes_its_default(load):
    assert load("train: {epochs: 7}") == Params(train={"epochs": 7})


@pytest.mark.parametrize("number, value", [("1e-3", 0.001), ("3E-3", 0.003), ("1e+2", 100.0), ("2", 2.0), (".5", 0.5)])
def test_numbers_are_those_of_yaml_1_2(load, number, value):
    learning_rate = load(f"train: {{learning_rate: {number}}}").train.learning_rate
    assert isinstance(learning_rate, float)
    assert learning_rate == value


def test_lists_become_tuples_and_null_switches_off(load):
    params = load("model: {hidden_dims: [64, 32]}\ntrain: {max_grad_norm: null, early_stopping_patience: 3}")
    assert params.model.hidden_dims == (64, 32)
    assert params.train.max_grad_norm is None
    assert params.train.early_stopping_patience == 3


@pytest.mark.parametrize("size", [1, 5000, 0.05])
def test_validation_size_is_a_number_of_images_or_a_fraction(load, size):
    loaded = load(f"data: {{validation_size: {size}}}").data.validation_size
    assert (type(loaded), loaded) == (type(size), size)


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "mps:0", "cuda:12"])
def test_device_names_that_are_allowed(load, name):
    assert load(f"train: {{device: '{name}'}}").train.device == name


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/mnist", "https://example.org/", "file:///srv/mnist"])
def test_mirrors_that_are_allowed(load, url):
    assert load(f"data: {{mirrors: ['{url}']}}").data.mirrors == (url,)


@pytest.mark.parametrize(
    "content, key, given, allowed",
    [
        ("train: {epochs: '2'}", "train.epochs", "'2'", "valid integer"),
        ("train: {epochs: true}", "train.epochs", "True", "valid integer"),
        ("train: {epochs: 2.5}", "train.epochs", "2.5", "valid integer"),
        ("train: {epochs: null}", "train.epochs", "None", "valid integer"),
        ("train: {epochs: 0}", "train.epochs", "0", "greater than or equal to 1"),
        ("train: {learning_rate: .nan}", "train.learning_rate", "nan", "finite number"),
        ("train: {learning_rate: .inf}", "train.learning_rate", "inf", "finite number"),
        ("train: {learning_rate: 0}", "train.learning_rate", "0", "greater than 0"),
        ("train: {beta: -1}", "train.beta", "-1", "greater than or equal to 0"),
        ("train: {beta: '1'}", "train.beta", "'1'", "valid number"),
        ("train: {max_grad_norm: 0}", "train.max_grad_norm", "0", "greater than 0"),
        ("train: {device: gpu}", "train.device", "'gpu'", "cuda"),
        ("train: {device: 'cuda:first'}", "train.device", "'cuda:first'", "cuda"),
        ("train: {mmd: -1}", "train.mmd", "-1", "greater than or equal to 0"),
        ("train: {precision: fp16}", "train.precision", "'fp16'", "'auto', 'fp32' or 'bf16'"),
        ("train: {compile: 1}", "train.compile", "1", "'auto'"),
        ("train: fast", "train", "'fast'", "dictionary|section"),
        ("train:", "train", "None", "dictionary|section"),
        ("model: {latent_dim: 0}", "model.latent_dim", "0", "greater than or equal to 1"),
        ("model: {hidden_dims: []}", "model.hidden_dims", "[]", "at least 1 item"),
        ("model: {hidden_dims: [64, 0]}", "model.hidden_dims.1", "0", "greater than or equal to 1"),
        ("model: {hidden_dims: [0]}", "model.hidden_dims.0", "0", "greater than or equal to 1"),
        ("model: {hidden_dims: 64}", "model.hidden_dims", "64", "tuple|list"),
        ("model: {activation: swish}", "model.activation", "'swish'", "'silu', 'relu', 'gelu', 'tanh' or 'glu'"),
        ("model: {decoder_skip: 1}", "model.decoder_skip", "1", "valid boolean"),
        (
            "model: {initialization: he}",
            "model.initialization",
            "'he'",
            "'default', 'xavier', 'kaiming' or 'orthogonal'",
        ),
        ("model: {prior: mog}", "model.prior", "'mog'", "'standard', 'gaussian_mixture' or 'vampprior'"),
        ("model: {prior_components: 0}", "model.prior_components", "0", "greater than or equal to 1"),
        ("model: {lower_latent_dim: 0}", "model.lower_latent_dim", "0", "greater than or equal to 1"),
        ("train: {objective: vae}", "train.objective", "'vae'", "'elbo' or 'iwae'"),
        ("train: {importance_samples: 0}", "train.importance_samples", "0", "greater than or equal to 1"),
        ("train: {kl_cycles: 0}", "train.kl_cycles", "0", "greater than or equal to 1"),
        ("data: {dataset: CIFAR10}", "data.dataset", "'CIFAR10'", "'MNIST', 'FashionMNIST' or 'KMNIST'"),
        ("data: {validation_size: 0}", "data.validation_size", "0", "greater than or equal to 1"),
        ("data: {validation_size: 1.0}", "data.validation_size", "1.0", "less than 1"),
        ("data: {validation_size: -5}", "data.validation_size", "-5", "greater than 0"),
        ("render: {columns: 1}", "render.columns", "1", "greater than or equal to 2"),
        ("seed: -1", "seed", "-1", "greater than or equal to 0"),
        ("seed: 1.0", "seed", "1.0", "valid integer"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_what_was_given_and_what_is_allowed(load, content, key, given, allowed):
    complaint, rule = re.match(r".*?params\.yaml: (.*?), allowed is (.*)", refused(load, content)).groups()
    assert complaint == f"{key} is {given}"
    assert re.search(allowed, rule)


@pytest.mark.parametrize(
    "content, key, hint",
    [
        ("train: {epoch: 3}", "train.epoch", "did you mean 'epochs'?"),
        ("trian: {epochs: 3}", "trian", "did you mean 'train'?"),
        (
            "model: {zebra: 1}",
            "model.zebra",
            "allowed are activation, architecture, decoder_skip, dense_dims, hidden_dims",
        ),
        ('train: {"two\\nlines": 1}', "train.two lines", "allowed are batch_size"),
        ("zebra: {a: 1}", "zebra", "allowed are data, evaluate, model, render, search, seed, train"),
    ],
)
def test_an_unknown_key_is_named_beside_those_that_exist(load, content, key, hint):
    message = refused(load, content)
    assert f"unknown key '{key}'" in message
    assert hint in message
    assert ("did you mean" in message) == ("did you mean" in hint)


def test_every_mistake_is_listed_at_once(load):
    message = refused(load, "train: {epochs: 0, beta: -1}\nmodel: {latent_dim: 0}")
    assert all(key in message for key in ("train.epochs", "train.beta", "model.latent_dim"))


@pytest.mark.parametrize("url", ["ftp://example.org/mnist", "example.org/mnist", "/srv/mnist", ""])
def test_a_mirror_that_is_no_url_is_refused(load, url):
    message = refused(load, f"data: {{mirrors: ['https://example.org', '{url}']}}")
    assert f"data.mirrors: {url!r} is not a http://, https:// or file:// URL" in message


@pytest.mark.parametrize("dataset", ["FashionMNIST", "KMNIST"])
def test_bundled_digits_are_mnist_only(load, dataset):
    message = refused(load, f"data: {{source: bundled, dataset: {dataset}}}")
    assert message.endswith(f"data.source 'bundled' holds MNIST only, not {dataset}")


@pytest.mark.parametrize(
    "content, problem",
    [
        (
            "model: {architecture: conv, decoder_skip: true}",
            "model: decoder_skip requires architecture 'mlp', not 'conv'",
        ),
        (
            "model: {architecture: conv, activation: glu}",
            "model: activation 'glu' requires architecture 'mlp', not 'conv'",
        ),
        ("model: {dense_dims: [8]}", "model: dense_dims requires architecture 'conv', not 'mlp': use hidden_dims"),
        (
            "train: {epochs: 10, kl_cycles: 3}",
            "train: kl_warmup_epochs is 0, with kl_cycles 3 allowed is 1 to 3: the warm-up is a part of each cycle",
        ),
        (
            "train: {epochs: 10, kl_cycles: 3, kl_warmup_epochs: 4}",
            "train: kl_warmup_epochs is 4, with kl_cycles 3 allowed is 1 to 3: the warm-up is a part of each cycle",
        ),
        ("train: {doubly_reparameterized: true}", "train: doubly_reparameterized requires objective 'iwae'"),
        (
            "train: {objective: iwae, free_bits: 0.1}",
            "train: free_bits requires objective 'elbo': the importance-weighted bound has no KL term",
        ),
        ("train: {objective: iwae, mmd: 1}", "train: mmd requires objective 'elbo'"),
        *[
            (
                f"train: {{free_bits: 0.1}}\nmodel: {{{unfit}}}",
                "train.free_bits requires a KL per dimension: model.prior 'standard', no lower_latent_dim",
            )
            for unfit in ("prior: vampprior", "prior: gaussian_mixture", "lower_latent_dim: 2")
        ],
        (
            "train: {objective: iwae, doubly_reparameterized: true}\nmodel: {lower_latent_dim: 2}",
            "train.doubly_reparameterized requires a model without lower_latent_dim",
        ),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(load, content, problem):
    assert refused(load, content).endswith(f"params.yaml: {problem}")


@pytest.mark.parametrize(
    "content",
    [
        "model: {activation: glu, decoder_skip: true, prior: vampprior, lower_latent_dim: 4}",
        "model: {architecture: conv, prior: vampprior}",
        "model: {architecture: conv, dense_dims: [64, 32], lower_latent_dim: 2}",
        "train: {epochs: 10, kl_cycles: 3, kl_warmup_epochs: 3}",
        "train: {optimizer: muon, muon_learning_rate: 0.01}",
        "train: {free_bits: 0.1, mmd: 1, kl_cycles: 4, kl_warmup_epochs: 2}\nmodel: {prior: standard}",
        "train: {objective: iwae, doubly_reparameterized: true}\nmodel: {prior: vampprior}",
        "train: {objective: iwae}\nmodel: {lower_latent_dim: 2}",
    ],
)
def test_what_can_go_together_is_not(load, content):
    load(content)


@pytest.mark.parametrize(
    "content, problem",
    [
        ("train: [", "not valid YAML"),
        ("train:\n\tepochs: 3", "not valid YAML"),
        ("train: {epochs: 1, epochs: 2}", 'duplicate key "epochs"'),
        ("seed: 1\nseed: 2", 'duplicate key "seed"'),
        ("seed: 2001-99-99", "not valid YAML"),
        ("train: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"seed: 1 # caf\xe9", "'utf-8' codec can't decode byte 0xe9"),
        ("", "must hold sections such as `train:`, not None"),
        ("# nothing but a comment", "must hold sections such as `train:`, not None"),
        ("- train", "must hold sections such as `train:`, not ['train']"),
    ],
)
def test_a_file_that_holds_no_sections_is_refused(load, content, problem):
    assert problem in refused(load, content)


def test_a_missing_file_is_named_with_the_folder_it_was_sought_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_params()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"params.yaml not found in {tmp_path}")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load_params(tmp_path)


def test_overrides_win_over_the_file(load):
    params = load("seed: 1\ntrain: {epochs: 2, beta: 2.0}", {"seed": 5, "train.epochs": 9, "model.latent_dim": 3})
    assert (params.seed, params.train.epochs, params.train.beta, params.model.latent_dim) == (5, 9, 2.0, 3)


@pytest.mark.parametrize(
    "overrides, problem",
    [
        ({"train.epochs": 0}, "train.epochs is 0"),
        ({"train.epoch": 3}, "unknown key 'train.epoch'"),
        ({"zebra.epochs": 3}, "unknown key 'zebra'"),
    ],
)
def test_overrides_are_checked_like_the_file(load, overrides, problem):
    assert problem in refused(load, "train: {epochs: 2}", overrides)


@pytest.mark.parametrize("section, key", [(None, "seed"), ("data", "dataset"), ("train", "epochs")])
def test_sections_are_frozen(section, key):
    params = Params()
    owner = getattr(params, section) if section else params
    with pytest.raises(ValidationError, match="frozen"):
        setattr(owner, key, getattr(owner, key))


def test_flat_names_every_parameter_once():
    flat = Params(train={"beta": 4.0}, search={"space": {"beta": [1.0, 4.0]}}).flat()  # a space of one line
    assert flat["seed"] == 0
    assert flat["train.beta"] == 4.0
    assert len(flat) == 1 + sum(len(type(value).model_fields) for _, value in Params() if isinstance(value, BaseModel))


# What can be searched


@pytest.mark.parametrize(
    "space, reason",
    [
        ("{beta: {low: 4, high: 1}}", "beta: low 4.0 is above high 1.0"),
        ("{beta: {low: 0, high: 1, log: true}}", "beta: a logarithmic range starts above 0, not at 0.0"),
        ("{betta: [1, 2]}", "'betta' is no parameter of model or train: did you mean 'beta'?"),
        ("{train.beta: [1, 2]}", "'train.beta' is no parameter of model or train: did you mean 'beta'?"),
        ("{epochs: [1, 2]}", "epochs can't be searched: search.epochs sets the length of all trials"),
        ("{latent_dim: {low: 0, high: 8}}", "latent_dim is 0, allowed is greater than or equal to 1"),
        ("{latent_dim: {low: 1.5, high: 8}}", "latent_dim is 1.5, allowed is a valid integer"),
        ("{activation: [silu, swish]}", "activation is 'swish', allowed is 'silu', 'relu', 'gelu', 'tanh' or 'glu'"),
        ("{activation: {low: 1, high: 2}}", "activation is 1, allowed is 'silu'"),
        ("{hidden_dims: [[64], [64, 0]]}", "hidden_dims.1 is 0, allowed is greater than or equal to 1"),
        ("{beta: {min: 1, max: 2}}", "beta is {'min': 1, 'max': 2}, allowed is a list of values, or a range such as"),
        ("{beta: 3}", "beta is 3, allowed is a list of values, or a range such as"),
        ("{beta: []}", "beta has no values to choose from"),
        ("{}", "{} is not a section with a line for each parameter to search"),
        ("[beta]", "['beta'] is not a section"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(load, space, reason):
    message = refused(load, f"search: {{space: {space}}}")
    assert f"search.space: {reason}" in message


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("n_trials", 0, "greater than or equal to 1"),
        ("epochs", 0, "greater than or equal to 1"),
        ("workers", "many", "a valid integer or 'auto'"),
        ("workers", 0, "greater than or equal to 1"),
        ("objective", "loss", "'elbo' or 'rate_distortion'"),
        ("pruner", "percentile", "'median', 'hyperband' or 'none'"),
    ],
)
def test_a_search_out_of_range_is_refused(load, key, value, allowed):
    message = refused(load, f"search: {{{key}: {value}}}")
    assert f"search.{key} is {value!r}" in message and allowed in message


def test_a_space_takes_ranges_choices_and_lists_of_widths(load):
    params = load(
        "search: {space: {beta: {low: 1, high: 4, log: true}, latent_dim: [2, 8], "
        "hidden_dims: [[64], [64, 32]], max_grad_norm: [null, 1]}}"
    )
    assert params.search.space["beta"].model_dump() == {"low": 1.0, "high": 4.0, "log": True}
    assert params.search.space["latent_dim"] == (2, 8)
    assert params.search.space["hidden_dims"] == ((64,), (64, 32))
    assert params.search.space["max_grad_norm"] == (None, 1.0)
    assert params.replaced({}) == params


def test_a_space_may_hold_what_only_goes_with_other_values(load):
    """Whether a trial's values go together is seen when it has them all."""
    params = load("train: {objective: iwae}\nsearch: {space: {doubly_reparameterized: [true, false]}}")
    assert params.search.space == {"doubly_reparameterized": (True, False)}
    assert params.replaced({"train.doubly_reparameterized": True}).train.doubly_reparameterized
    with pytest.raises(ConfigError, match=r"^train: doubly_reparameterized requires objective 'iwae'$"):
        params.replaced({"train.doubly_reparameterized": True, "train.objective": "elbo"})


def test_replaced_values_are_checked_like_those_of_the_file(load):
    params = load("train: {beta: 2.0}")
    assert params.replaced({"train.beta": 3.0}).train.beta == 3.0
    assert params.train.beta == 2.0
    with pytest.raises(ConfigError, match=r"^train\.beta is -1\.0, allowed is greater than or equal to 0$"):
        params.replaced({"train.beta": -1.0})
