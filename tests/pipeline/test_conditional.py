"""A conditional model goes through the whole pipeline, and serves images of a class."""

import json
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from vae.models.vae import VAE


@pytest.mark.slow
def test_a_conditional_model_from_training_to_serving(project):
    project.set({"model.conditional": True, "model.conditional_prior": True, "model.lower_latent_dims": [2]})
    project.dvc("repro")
    vae = VAE.load(project / "models/vae.safetensors")
    assert vae.classes == 10
    metrics = json.loads((project / "metrics/evaluation.json").read_text())
    assert "sample_frechet_distance" in metrics and "linear_probe_accuracy" not in metrics  # the latents know the label
    client = mlflow.MlflowClient(project.store)
    run = json.loads((project / "models/run.json").read_text())["run_id"]
    (output,) = client.get_run(run).outputs.model_outputs
    folder = next((project / "mlruns").rglob(f"{output.model_id}/artifacts"))
    model = mlflow.pyfunc.load_model(str(folder))
    nothing = np.zeros((1, 1))
    threes = model.predict(nothing, params={"task": "sample", "n": 5, "label": 3})
    in_turn = model.predict(nothing, params={"task": "sample", "n": 5})
    np.testing.assert_allclose(threes[3], in_turn[3], atol=1e-6)
    assert np.abs(threes[2] - in_turn[2]).max() > 1e-3
    pictures = np.zeros((2, 784), dtype=np.uint8)
    scores = [model.predict(pictures, params={"task": "score", "label": label})["nll"][0] for label in (0, 1)]
    assert scores[0] != scores[1]
    np.save(project / "pictures.npy", pictures.reshape(2, 28, 28))
    project.run(sys.executable, "-m", "vae.workflow.score", "--label", "1", "pictures.npy")
    table = pd.read_csv(project / "results/scores/pictures.npy.csv")
    assert table["nll"][0] == pytest.approx(scores[1], abs=1e-4)
    with pytest.raises(MlflowException, match="it takes a label from 0 to 9"):
        model.predict(pictures, params={"task": "reconstruct"})
