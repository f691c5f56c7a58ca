"""An MLflow Model is in its run once, whatever happens to MLflow meanwhile, and can be loaded from there."""

import numpy as np
import pandas as pd
import pytest

import vae.tracking.run as run_module
from mlflow_server import Server
from vae import tracking
from vae.config import Params
from vae.evaluation.likelihood import Evaluation, protocol_of
from vae.files import sha256
from vae.models.vae import VAE
from vae.serving.lookup import model_folder
from vae.serving.pyfunc import save_model
from vae.tracking.run import unsynced

mlflow, client = tracking.mlflow, tracking.mlflow.MlflowClient
IMAGES = np.eye(2, 784)


@pytest.fixture
def vae():
    return VAE(hidden_dims=[8], latent_dim=2, prior="standard").eval()


@pytest.fixture
def save(vae, tmp_path):
    """Writes an MLflow Model."""
    weights, bounds = tmp_path / "weights.safetensors", tmp_path / "test_nll.npz"
    vae.save(weights)
    columns = {name: [1.0, 2.0] for name in ("elbo", "kl", "nll", "label")}
    protocol = protocol_of(Params(), {"name": "MNIST"}, sha256(weights))
    Evaluation(pd.DataFrame(columns), IMAGES, IMAGES).write_bounds(bounds, protocol)
    return lambda path: save_model(path, weights, bounds, IMAGES, vae.image_shape)


def models_of(run):
    """The run's models, each with its status and metrics."""
    experiment = client().get_run(run.id).info.experiment_id
    found = client().search_logged_models([experiment], f"source_run_id = '{run.id}'")
    outputs = client().get_run(run.id).outputs
    assert [model.model_id for model in found] == [output.model_id for output in outputs.model_outputs]
    return [(str(model.status), {metric.key: metric.value for metric in model.metrics}) for model in found]


def answers(uri, vae):
    answer = mlflow.pyfunc.load_model(uri).predict(IMAGES)
    np.testing.assert_allclose(answer, vae.reconstruct(IMAGES), atol=1e-6)


@pytest.mark.parametrize(
    "failing", ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs"]
)
def test_a_model_that_mlflow_does_not_take_is_logged_once_by_a_later_call(store, vae, save, failing, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left")

    with tracking.open_run("failing") as run:
        run.log_metrics({"nll": 84.0}, prefix="test/")
        with monkeypatch.context() as patch:
            patch.setattr(client, failing, fail)
            patch.setattr(run_module, "BACKOFF", 0)
            run.log_model(save)
        assert list(unsynced().glob("*/model/MLmodel"))
    with tracking.open_run("again", run.id) as again:
        again.log_model(save)  # as a forced evaluation does
    assert models_of(run) == [("READY", {"test/nll": 84.0})]
    assert not list(unsynced().glob("*/run.json"))
    answers(f"runs:/{run.id}/vae", vae)


@pytest.mark.usefixtures("store")
def test_a_model_that_cannot_be_written_costs_a_warning(capsys):
    def save(path):
        raise OSError("no space left")

    with tracking.open_run("full") as run:
        run.log_model(save)
    assert capsys.readouterr().err == "warning: the model is not logged to MLflow: no space left\n"
    assert client().get_run(run.id).info.status == "FINISHED"


def test_a_registered_model_is_found_after_the_project_was_moved(store, vae, save, monkeypatch):
    with tracking.open_run("moved") as run:
        run.log_model(save)
    mlflow.register_model(f"runs:/{run.id}/vae", "vae-mnist")
    moved = store.rename(store.with_name("moved"))
    monkeypatch.setenv("DVC_ROOT", str(moved))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow has set
    tracking.connect()
    answers("models:/vae-mnist/1", vae)
    answers(f"runs:/{run.id}/vae", vae)


@pytest.mark.slow
def test_a_model_on_a_server_is_registered_and_loaded(tmp_path, empty_store, vae, save, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with Server(tmp_path, empty_store) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        tracking.connect()
        with tracking.open_run("on a server") as run:
            run.log_metrics({"nll": 84.0}, prefix="test/")
            run.log_model(save)
        assert models_of(run) == [("READY", {"test/nll": 84.0})]
        mlflow.register_model(f"runs:/{run.id}/vae", "vae-mnist")
        answers(str(model_folder("vae-mnist/1")), vae)
