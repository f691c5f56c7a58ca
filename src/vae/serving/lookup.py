"""Where the files of a model are, by its name."""

from pathlib import Path

from vae import tracking
from vae.config import load_params
from vae.errors import RegistryError, TrackingError, one_line
from vae.serving.artifacts import check_artifacts
from vae.tracking.registry import find, model_name
from vae.tracking.store import MLFLOW_ERRORS, experiment_id


def model_folder(model: str | None) -> Path:
    """The folder of a model, checked; files of a server are downloaded.

    `model` is a registered one (`vae-mnist@champion`, `vae-mnist/3`), an MLflow URI (`runs:/ID/vae`) or a folder; None
    is the champion or, where there is none, the newest logged one. Raises RegistryError or TrackingError where it is
    not there, and DataError or WeightsError where its files are gone or damaged.
    """
    if model and Path(model, "MLmodel").exists():
        folder = Path(model)
    else:
        tracking.connect()
        try:
            folder = Path(tracking.mlflow.artifacts.download_artifacts(_uri(model)))
        except MLFLOW_ERRORS as error:
            raise TrackingError(
                f"{model or 'the model'} can't be had from {tracking.shown_store()}: {one_line(error)}"
            ) from None
    check_artifacts(folder)
    return folder


def _uri(model: str | None) -> str:
    if model and ":/" in model:
        return model
    try:
        name = model_name(load_params())
        version = find(model or name)
        return f"models:/{version.name}/{version.version}"
    except RegistryError:
        if model:
            raise
    order = [{"field_name": "creation_timestamp", "ascending": False}]
    experiment = experiment_id(tracking.EXPERIMENT)
    logged = tracking.mlflow.MlflowClient().search_logged_models([experiment], order_by=order)
    newest = next((model for model in logged if model.status == "READY"), None)
    if not newest:
        raise TrackingError(f"{tracking.shown_store()} has no model: `make repro` trains and logs one")
    print(f"no {name}@champion yet (`make register` makes one): the newest model, of run {newest.source_run_id}")
    return f"models:/{newest.model_id}"
