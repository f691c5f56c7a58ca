"""Versions of a registered model, made in a moment, with a tiny MLflow model and test NLLs that the test chooses."""

from pathlib import Path

import numpy as np
from mlflow import pyfunc

from vae import tracking
from vae.files import sha256, write_arrays
from vae.tracking import registry

MODEL = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Tiny(PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return model_input

set_model(Tiny())
"""
HARDNESS = np.random.default_rng(0).normal(85, 22, 200)  # of the test images, for each model


def log_model(weights, **protocol):
    """Writes weights and test NLLs below the working directory and logs a run with them; what `register` gets."""
    Path("models").mkdir(exist_ok=True)
    Path("models/vae.safetensors").write_bytes(weights)
    Path("tiny.py").write_text(MODEL)
    noise = np.random.default_rng(list(weights)).normal(0, 0.3, len(HARDNESS))
    nll = HARDNESS + protocol.pop("shift", 0.0) + noise
    write_arrays(Path("metrics/test_nll.npz"), nll=nll, **protocol)
    run = tracking.Run(f"run of {weights.decode()}")
    run.create()
    run.log_model(save)
    run.end("FINISHED")
    identity = {"model.sha256": sha256("models/vae.safetensors")}
    identity |= {f"test.{name}": str(value) for name, value in protocol.items()}
    tags = identity | {"run": run.name, "test/nll": str(nll.mean()), "test/elbo": str(-nll.mean() - 1)}
    files = ["models/vae.safetensors", "metrics/test_nll.npz"]
    return ["vae-mnist", "A VAE.", run.id, "A version.", tags, [*identity], files]


def save(path):
    """Writes the tiny MLflow model to a folder."""
    artifacts, requirements = {"weights": "models/vae.safetensors"}, ["mlflow"]
    pyfunc.save_model(str(path), python_model="tiny.py", artifacts=artifacts, pip_requirements=requirements)


def add_version(weights, **protocol):
    """Registers weights whose NLL is higher by `shift` than that of others."""
    return registry.register(*log_model(weights, **protocol))
