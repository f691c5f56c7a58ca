"""`make score`: a table of all images, resumed after an interruption, and a figure."""

import runpy
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vae.data.datasets import load
from vae.tracking.store import mlflow


@pytest.fixture
def images(reproduced):  # three chunks
    return load(reproduced / "data/raw", "test").images[:250].numpy()


@pytest.fixture
def score(project, monkeypatch, called):
    """Runs `python -m vae.workflow.score` in the project."""

    def run(*arguments):
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(sys, "argv", ["score.py", *map(str, arguments)])
        return called(lambda: runpy.run_module("vae.workflow.score", run_name="__main__"))

    return run


def test_a_folder_is_scored_and_files_that_cannot_be_are_named(score, project, images, tmp_path):
    folder = tmp_path / "some digits"
    folder.mkdir()
    for number, image in enumerate(images[:15]):
        Image.fromarray(image.reshape(28, 28)).save(folder / f"{number:02}.png")
    Image.fromarray(images[0].reshape(28, 28)).resize((56, 56)).save(folder / "large.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    done = score(folder).succeeds()
    assert "no vae-mnist@champion yet (`make register` makes one): the newest model" in done.out
    assert "15 of 17 images: mean −ELBO " in done.out
    assert [line.split()[1] for line in done.err.splitlines()] == ["broken.jpg", "large.png"]
    table = pd.read_csv(project / "results/scores/some digits.csv").set_index("file")
    (model,) = mlflow.MlflowClient(project.store).search_logged_models(["1"])
    expected = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(images[:15], params={"task": "score"})
    np.testing.assert_allclose(table.loc["00.png":"14.png", ["neg_elbo", "nll", "percentile"]], expected, atol=1e-4)
    assert table["error"].notna().sum() == table["nll"].isna().sum() == 2
    width, height = Image.open(project / "results/scores/some digits.png").size
    assert width > 2 * height > 200
    fitted = score("--fit", folder).succeeds()
    assert "16 of 17 images" in fitted.out


def test_an_interrupted_scoring_is_resumed_with_the_same_table(score, project, images, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", images)
    score(tmp_path / "images.npy").succeeds()
    table = project / "results/scores/images.npy.csv"
    whole = table.read_bytes()
    table.unlink()
    calls = []
    predict = mlflow.pyfunc.PyFuncModel.predict

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments, **options)

    monkeypatch.setattr(mlflow.pyfunc.PyFuncModel, "predict", interrupted)
    stopped = score(tmp_path / "images.npy")
    assert (stopped.code, stopped.err) == (130, "interrupted: the same command resumes it\n")
    assert not table.exists()
    score(tmp_path / "images.npy").succeeds()
    assert len(calls) == 4 and table.read_bytes() == whole
    assert not list((project / ".ckpt/score").iterdir())


def test_images_of_many_samples_are_scored_a_few_at_a_time(score, project, images, tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", images[:25])
    table = project / "results/scores/images.npy.csv"
    score(tmp_path / "images.npy").succeeds()
    whole = table.read_bytes()
    monkeypatch.setattr("vae.serving.pyfunc.MAX_DECODED", 10 * 8)  # the model has 8 samples
    score(tmp_path / "images.npy").succeeds()
    assert table.read_bytes() == whole
    monkeypatch.setattr("vae.serving.pyfunc.MAX_DECODED", 7)
    score(tmp_path / "images.npy").fails_with("8 importance samples", "at most 7", "evaluate.importance_samples")


TEST = "data/raw/t10k-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([], ["images"], 2),
        (["nothing"], ["nothing"], 1),
        (["params.yaml"], ["params.yaml is not an IDX file"], 1),
        (
            ["--model", "vae-mnist/9", TEST],
            ["no registered model vae-mnist"],
            1,
        ),
        (["--model", "other@nobody", TEST], ["no registered model other"], 1),
        (["--model", "runs:/0123/vae", TEST], ["runs:/0123/vae"], 1),
        (["--label", "3", TEST], ["the model isn't conditional: leave out the label"], 1),
    ],
)
def test_what_is_not_there_is_named_in_one_line(score, arguments, words, code):
    score(*arguments).fails_with(*words, code=code)


def test_damaged_weights_and_missing_files_of_the_model_are_named(score, project):
    images = project / TEST
    (weights,) = (project / "mlruns").rglob("models/*/artifacts/artifacts/vae.safetensors")
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    score(images).fails_with("vae.safetensors", "SHA-256")
    weights.unlink()
    score(images).fails_with("vae.safetensors", "gone")
    mlmodel = weights.parents[1] / "MLmodel"
    mlmodel.write_text("[")
    score(images).fails_with("not a model of this project")
    mlmodel.unlink()
    score(images).fails_with("not a model of this project")
