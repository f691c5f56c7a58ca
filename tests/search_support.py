"""A small search, and a folder in which it runs in this process."""

from support import ROOT
from vae import tracking
from vae.config import load_params
from vae.search.trial import Worker
from vae.tracking.store import SEARCH_EXPERIMENT, mlflow

DATASET = {"name": "MNIST", "sha256": {"train-images-idx3-ubyte": "0"}}
SMALL = {
    "data.source": "bundled",
    "data.validation_size": 500,
    "model.hidden_dims": [16],
    "model.latent_dim": 2,
    "model.prior": "standard",
    "train.batch_size": 500,
    "train.device": "cpu",
    "train.precision": "fp32",
    "search.epochs": 2,
    "search.n_trials": 3,
    "search.finalists": 0,
    "search.space": {
        "latent_dim": {"low": 2, "high": 8},
        "beta": {"low": 0.5, "high": 4.0, "log": True},
        "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    },
}


def small(**others):
    """The params of a small search; `n_trials=4` stands for search.n_trials, `train__beta` for train.beta."""
    named = {key.replace("__", ".") if "__" in key else f"search.{key}": value for key, value in others.items()}
    return load_params(ROOT / "params.yaml", overrides=SMALL | named)


class Folder:
    """A project's folder with the bundled digits, in which searches run in this process."""

    def __init__(self, root, raw, dataset):
        self.root, self.raw, self.dataset = root, raw, dataset

    def worker(self, params):
        tracking.connect(SEARCH_EXPERIMENT)
        return Worker(params, self.dataset, self.raw, "here", 0)

    def search(self, params):
        """The study after one worker has run it."""
        worker = self.worker(params)
        worker.run()
        return worker.study

    def runs(self):
        """The MLflow runs of the trials."""
        client = mlflow.MlflowClient(tracking.tracking_uri())
        runs = client.search_runs([client.get_experiment_by_name(SEARCH_EXPERIMENT).experiment_id])
        return [run for run in runs if "mlflow.parentRunId" in run.data.tags]
