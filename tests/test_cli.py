"""train-vae: a flag for every parameter, trainings of tiny models, and one line for every error."""

import json
import re
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel

from vae import cli
from vae.config import Params
from vae.data.download import NAMES
from vae.models.vae import VAE
from vae.tracking.store import EXPERIMENT, mlflow
from vae.workflow import tracked_training

TINY = [
    *("--source=bundled", "--hidden_dims=32", "--latent_dim=2", "--prior=standard", "--importance_samples=3"),
    *("--device=cpu", "--precision=fp32", "--dpi=40"),
]
FIGURES = {
    *("training_history", "reconstructions", "generated_samples", "latent_space", "interpolation"),
    *("latent_traversals", "latent_manifold", "kl_per_dimension"),
    *("best_and_worst_reconstructions", "nearest_training_images"),
}
FIELDS = ["seed"] + [
    f"{name}.{key}"
    for name, section in Params()
    if isinstance(section, BaseModel) and name != "search"
    for key in type(section).model_fields
]

ACTIONS = {action.dest: action for action in cli.make_parser()._actions}


def spelling(name):
    return "--" + (name.replace(".", "_") if name in cli.LONG_FLAGS else name.split(".")[-1])


@pytest.fixture
def train_vae(tmp_path, monkeypatch, called):
    """Runs the command in an empty folder and in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: called(cli.main, arguments)


# Flags


@pytest.mark.parametrize("name", FIELDS)
def test_every_parameter_has_a_flag_in_two_spellings_with_description_default_and_range(name):
    *section, key = name.split(".")
    parent = getattr(Params(), section[0]) if section else Params()
    field, action = type(parent).model_fields[key], ACTIONS[name]
    assert {spelling(name), f"--{spelling(name)[2:].replace('_', '-')}"} <= set(action.option_strings)
    description, default = re.fullmatch(r"(.+) \[.+; default: (.+)\]", action.help.replace("%%", "%")).groups()
    assert description + "." == field.description
    value = field.default
    given = [] if default == "none" else default.split() if isinstance(value, tuple) else [default]
    options = [f"--{'' if value else 'no-'}{key}"] if action.nargs == 0 else [spelling(name), *given]
    assert cli.parse(options)[0] == Params()
    assert getattr(parent, key) == value


def test_there_are_no_other_flags_than_those_of_the_parameters_and_two_folders():
    assert set(ACTIONS) == {*FIELDS, "help", "debug", "output_dir", "data_dir"}
    assert cli.parse([]) == (Params(), Path("results"), Path("data"))
    assert cli.parse(["--output-dir=a", "--data_dir", "b"])[1:] == (Path("a"), Path("b"))


def test_the_help_states_the_allowed_values():
    assert "[a number > 0 or null; default: " in ACTIONS["train.max_grad_norm"].help
    assert "[constant, step, cosine, one_cycle; default: " in ACTIONS["train.lr_schedule"].help
    assert "[each an integer ≥ 1; default: " in ACTIONS["model.hidden_dims"].help


@pytest.mark.parametrize(
    "arguments, name, value",
    [
        (["--epochs", "50"], "train.epochs", 50),
        (["--learning_rate", "1e-4"], "train.learning_rate", 1e-4),
        (["--hidden_dims", "1024", "512"], "model.hidden_dims", (1024, 512)),
        (["--no-residual"], "model.residual", False),
        (["--compile", "true"], "train.compile", True),
        (["--max_grad_norm", "null"], "train.max_grad_norm", None),
        (["--validation_size", "0.1"], "data.validation_size", 0.1),
        (["--mirrors", "file:///srv/a", "https://b.org/"], "data.mirrors", ("file:///srv/a", "https://b.org/")),
    ],
)
def test_a_flag_sets_its_parameter_and_nothing_else(arguments, name, value):
    flat = cli.parse(arguments)[0].flat()
    assert flat == Params().flat() | {name: value}
    assert type(flat[name]) is type(value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--epochs", "two"], ["train.epochs is 'two', allowed is a valid integer"]),
        (["--epochs", "9" * 30], ["train.epochs: too large"]),
        (["--epochs", "[" * 1000], ["train.epochs is '[["]),
        (["--seed", "0x" + "f" * 5000], ["seed is a huge integer"]),
        (["--free_bits", "1e300"], ["train.free_bits: too large"]),
        (["--mirrors", "ftp://me:secret@a"], ["data.mirrors: 'ftp://***@a' is not a http://"]),
        (["--epochs", "0", "--latent_dim", "0"], ["train.epochs is 0", "model.latent_dim is 0"]),
        (["--epoch", "1"], ["unknown flag --epoch: did you mean --epochs?"]),
        (["--output_dir", ""], ["--output_dir", "a folder has no name"]),
        (["--data-dir="], ["--data-dir", "a folder has no name"]),
    ],
)
def test_an_invalid_flag_is_refused_in_one_line(train_vae, tmp_path, arguments, words):
    train_vae(*arguments).fails_with(*words, "train-vae --help", code=2)
    assert list(tmp_path.iterdir()) == []


# A training


@pytest.fixture(scope="module")
def trained(tmp_path_factory, empty_store, bundled):
    """What a training printed, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_store, folder / "mlruns")
    shutil.copytree(bundled[0].parent, folder / "data")
    on_termination = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(words)))
        cli.main([*TINY, "--epochs=2", "--beta=0.5", "--seed=1"])
    signal.signal(signal.SIGTERM, on_termination)
    return "\n".join(printed), folder


@pytest.fixture
def data_dir(trained, monkeypatch):
    """The flag for that training's images. Its store is used too: creating one takes seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(trained[1]))
    return f"--data_dir={trained[1] / 'data'}"


def store(folder):
    return f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"


def test_a_training_writes_weights_metrics_and_figures(trained):
    folder = trained[1] / "results"
    files = {"vae_model_final.safetensors", "history.csv", "metrics.json", "timing.json", "test_nll.npz"}
    files.add("explorer.html")
    assert {path.name for path in folder.iterdir()} == files | {f"{name}.png" for name in FIGURES}
    model = VAE.load(folder / "vae_model_final.safetensors")
    assert (model.params.hidden_dims, model.params.latent_dim) == ((32,), 2)
    metrics = json.loads((folder / "metrics.json").read_text())
    history = pd.read_csv(folder / "history.csv")
    assert (list(history["epoch"]), list(history["train/beta"])) == ([1, 2], [0.5, 0.5])
    assert metrics["val/neg_elbo"] == pytest.approx(history["val/neg_elbo"].min(), rel=5e-6)  # of six digits
    assert metrics["test/elbo"] == pytest.approx(-metrics["test/reconstruction"] - metrics["test/kl"])
    assert abs(metrics["test/elbo"] + metrics["val/neg_elbo"]) < 20
    assert metrics["test/nll"] < -metrics["test/elbo"]
    assert (metrics["dataset"], metrics["test/n_test"]) == ("MNIST-bundled-5000", 1000)


def test_a_training_prints_a_line_per_epoch_and_where_its_results_are(trained):
    lines = trained[0].splitlines()
    assert [line.split()[1] for line in lines if re.match(r"epoch +\d", line)] == ["1/2", "2/2"]
    (test,) = (line for line in lines if line.startswith("test NLL"))
    assert re.fullmatch(r"test NLL [\d.]+ .*\(3 importance samples\), \d of 2 latents active", test)
    assert "`make ui`" in lines[-4] and "/runs/" in lines[-3]
    assert "results/vae_model_final.safetensors" in lines[-2]
    assert [line for line in lines if len(line) > 80] == []


def test_a_training_is_a_run_with_params_curves_figures_weights_and_data(trained):
    printed, folder = trained
    client = mlflow.MlflowClient(store(folder))
    run = client.get_run(re.search(r"/runs/(\w+)$", printed, re.MULTILINE)[1])
    assert run.info.status == "FINISHED"
    params = {"train.beta": "0.5", "train.epochs": "2", "model.hidden_dims": "[32]", "seed": "1"}
    assert run.data.params.items() >= params.items()
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/kl")] == [1, 2]
    metrics = json.loads((folder / "results" / "metrics.json").read_text())
    assert run.data.metrics["test/elbo"] == metrics["test/elbo"]
    assert {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")} == FIGURES
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"vae_model_final.safetensors", "history.csv"} <= files
    assert run.inputs.dataset_inputs[0].dataset.name == "MNIST-bundled-5000"


# Errors and interruptions


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--device=cuda:99"], ["train.device is 'cuda:99'", "cpu"]),
        (["--learning_rate=1e9", "--lr_schedule=constant"], ["diverged at epoch 1", "try a lower train.learning_rate"]),
        (["--hidden_dims=2000000000"], ["out of memory"]),
        (["--output_dir=file"], ["file"]),
    ],
)
def test_an_error_of_a_training_is_one_line_too(train_vae, data_dir, tmp_path, arguments, words):
    (tmp_path / "file").touch()
    train_vae(*TINY, data_dir, "--epochs=1", *arguments).fails_with(*words)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_with_another_data_set_is_refused(train_vae, tmp_path):
    record = {"name": "KMNIST", "source": "mirror", "counts": {}, "sha256": dict.fromkeys(NAMES, "")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dataset.json").write_text(json.dumps(record))
    train_vae(*TINY, "--data_dir=mine").fails_with("mine/raw holds KMNIST, not MNIST", "--data_dir")


@pytest.mark.parametrize("signal_, code, said", [("SIGINT", 130, "interrupted: "), ("SIGTERM", 143, "")])
def test_an_interrupted_training_leaves_its_best_weights(
    train_vae, trained, data_dir, tmp_path, monkeypatch, signal_, code, said
):
    describe = tracked_training.describe

    def then_interrupt(record, epochs):
        if record["epoch"] == 2:
            signal.raise_signal(getattr(signal, signal_))
        return describe(record, epochs)

    monkeypatch.setattr(tracked_training, "describe", then_interrupt)
    outcome = train_vae(*TINY, data_dir, "--epochs=5000")
    assert outcome.code == code
    assert outcome.err.startswith(said) and outcome.err.count("\n") == bool(said)
    assert VAE.load(tmp_path / "results" / "vae_model_final.safetensors")
    client = mlflow.MlflowClient(store(trained[1]))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    newest, *_ = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    assert newest.info.status == "KILLED"
