"""The MLflow Model of a pipeline's run: what it answers, that it has no pickle, and what it refuses."""

import json
import pickletools
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from support import ENVIRONMENT
from vae.config import EvaluateParams, Params
from vae.data.binarization import to_float
from vae.data.datasets import load
from vae.evaluation.likelihood import evaluate, protocol_of
from vae.files import sha256
from vae.models.vae import VAE
from vae.serving.artifacts import image_shape
from vae.serving.pyfunc import save_model
from vae.tracking.store import mlflow


@pytest.fixture(scope="module")
def logged(reproduced):
    """The folder of the model that the pipeline has logged."""
    client = mlflow.MlflowClient(reproduced.store)
    (run,) = client.search_runs([client.get_experiment_by_name("vae-mnist").experiment_id])
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.source_run_id, str(model.status)) == (run.info.run_id, "READY")
    assert model.tags["mlflow.note.content"].startswith("NLL ")
    assert {metric.key for metric in model.metrics} >= {"test/nll", "test/elbo"}
    return next((reproduced / "mlruns").rglob(f"{output.model_id}/artifacts"))


@pytest.fixture(scope="module")
def model(logged):
    return mlflow.pyfunc.load_model(str(logged))


@pytest.fixture(scope="module")
def vae(reproduced):
    return VAE.load(reproduced / "models/vae.safetensors")


@pytest.fixture(scope="module")
def digits(reproduced):
    """Test images, uint8 [N, 784]."""
    return load(reproduced / "data/raw", "test").images[:200].numpy()


def ask(model, array, task, **params):
    return model.predict(array, params={"task": task, **params})


def test_it_answers_as_the_vae_does_whatever_the_form_of_the_images(model, vae, digits):
    expected = vae.reconstruct(digits).numpy()
    grey = digits / 255
    squares = grey.reshape(-1, 28, 28)
    for images in (digits, digits.astype(int), grey, squares, squares[..., None], grey.tolist()):
        np.testing.assert_allclose(ask(model, np.array(images), "reconstruct"), expected, atol=1e-6)
    encoded, (mu, logvar) = ask(model, digits, "encode"), vae.encode(digits)
    np.testing.assert_allclose(encoded["mu"], mu.detach(), atol=1e-6)
    np.testing.assert_allclose(encoded["logvar"], logvar.detach(), atol=1e-6)
    np.testing.assert_allclose(ask(model, encoded["mu"], "decode"), vae.images(mu).detach(), atol=1e-6)
    samples = ask(model, digits, "sample", n=3, seed=5)
    np.testing.assert_allclose(samples, vae.sample(3, torch.Generator().manual_seed(5)), atol=1e-6)
    assert not np.allclose(samples, ask(model, digits, "sample", n=3, seed=6))


def test_scores_are_those_of_the_evaluation_up_to_their_random_numbers(model, reproduced, digits):
    with np.load(reproduced / "metrics/test_nll.npz") as evaluation:
        scores = ask(model, digits, "score")  # with the evaluation's number of samples
        for name in ("neg_elbo", "nll"):
            difference = scores[name] - evaluation[name][: len(digits)]
            assert abs(difference.mean()) < 4 * difference.std() / len(digits) ** 0.5
            assert np.corrcoef(scores[name], evaluation[name][: len(digits)])[0, 1] > 0.95
        rank = [(evaluation["nll"] <= nll).mean() * 100 for nll in scores["nll"]]
        np.testing.assert_allclose(scores["percentile"], rank)
    few, many = (ask(model, digits[:50], "score", importance_samples=samples)["nll"].mean() for samples in (1, 200))
    assert few > many  # the bound gets tighter


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_with_one_sample_the_nll_is_the_log_weight_of_that_sample(model, vae, digits, binarization, monkeypatch):
    monkeypatch.setattr(model.unwrap_python_model(), "binarization", binarization)
    (score,) = ask(model, digits[:1], "score", importance_samples=1, seed=3).itertuples(index=False)
    generator = torch.Generator().manual_seed(zlib.crc32(digits[:1].tobytes(), 3))
    grey = to_float(torch.tensor(digits[:1]))
    if binarization == "dynamic":
        x = torch.bernoulli(grey, generator=generator)
    else:
        x = (grey > 0.5).float() if binarization == "threshold" else grey
    with torch.no_grad():
        terms = vae(x, torch.randn(1, 1, vae.noise_dim, generator=generator))
    assert score.nll == pytest.approx(-terms.log_weights.item(), rel=1e-5)
    assert score.neg_elbo == pytest.approx((terms.nll.mean() + terms.kl.sum()).item(), rel=1e-5)


def test_a_score_depends_on_the_image_and_the_seed_alone(model, digits):
    together = ask(model, digits[:5], "score")
    for index in range(5):
        assert ask(model, digits[index : index + 1], "score").iloc[0].equals(together.iloc[index])
    assert not ask(model, digits[:5], "score", seed=1).equals(together)


NAN, WIDE = np.full((1, 784), np.nan), np.zeros((1, 783))


@pytest.mark.parametrize(
    ("array", "params", "words"),
    [
        (WIDE, {}, ["(1, 783)", "(B, 784) and (B, 28, 28) and (B, 28, 28, 1)"]),
        (np.zeros(784), {}, ["(784,)"]),
        (np.zeros((0, 784)), {}, ["number of images is 0", "1 to 1,000"]),
        (np.zeros((10_000, 784), np.uint8), {}, ["10,000", "1 to 1,000"]),
        (NAN, {}, ["NaN"]),
        (np.full((1, 784), 256), {}, ["256 to 256", "0 to 1 and 0 to 255"]),
        (np.full((1, 784), -0.5), {}, ["-0.5"]),
        (np.array([["a"] * 784]), {}, ["not an array of numbers"]),
        (np.array([[1.0], [1.0, 2.0]], dtype=object), {}, ["not an array of numbers"]),
        (np.zeros((1, 784)), {"task": "draw"}, ["'draw'", "reconstruct, encode, decode, sample, score"]),
        (np.zeros((1, 784)), {"task": "score", "importance_samples": 0}, ["importance_samples is 0"]),
        (np.zeros((1000, 784)), {"task": "score", "importance_samples": 501}, ["501", "1 to 500"]),
        (np.zeros((1, 784)), {"task": "score", "importance_samples": "ten"}, ["importance_samples"]),
        (np.zeros((1, 3)), {"task": "decode"}, ["latents have shape (1, 3)", "(..., 2)"]),
        (NAN[:, :2], {"task": "decode"}, ["latents contain NaN"]),
        (np.zeros((1, 784)), {"task": "sample", "n": 0}, ["n is 0"]),
    ],
)
def test_bad_input_is_refused_in_one_line(model, array, params, words):
    with pytest.raises(mlflow.exceptions.MlflowException) as refused:
        model.predict(array, params=params)
    assert refused.value.get_http_status_code() == 400
    for word in words:
        assert word in refused.value.message
    assert "\n" not in refused.value.message


def test_a_model_without_its_project_needs_no_pickle_and_answers_the_same(model, logged, digits, tmp_path):
    shutil.copytree(logged, tmp_path / "model")
    np.save(tmp_path / "images.npy", digits[:2])
    program = """
import sys
sys.modules.update(dict.fromkeys("dvc mlxtend optuna psutil rich torchvision".split()))  # not in its requirements
import json, numpy as np, mlflow
model = mlflow.pyfunc.load_model("model")
import vae
assert vae.__file__.startswith(sys.argv[1]), vae.__file__
print(json.dumps(model.predict(np.load("images.npy")).tolist()))
"""
    environment = {**ENVIRONMENT, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_allclose(json.loads(done.stdout), ask(model, digits[:2], "reconstruct"), atol=1e-6)


def test_colour_images_go_in_and_come_out_as_pillow_has_them(tmp_path):
    vae = VAE(image_shape=(3, 6, 8), hidden_dims=[4], latent_dim=2, prior="standard").eval()
    vae.save(tmp_path / "vae.safetensors")
    images = (torch.rand(5, 144, generator=torch.Generator().manual_seed(0)) * 255).byte()
    result = evaluate(vae, images, None, EvaluateParams(importance_samples=3))
    params = Params().replaced({"data.binarization": "none", "evaluate.importance_samples": 3})
    bounds = tmp_path / "test_nll.npz"
    result.write_bounds(bounds, protocol_of(params, {"name": "mine"}, sha256(tmp_path / "vae.safetensors")))
    save_model(tmp_path / "model", tmp_path / "vae.safetensors", bounds, images[:2].numpy(), vae.image_shape)
    assert image_shape(tmp_path / "model") == (3, 6, 8)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    pictures = images.view(5, 3, 6, 8).permute(0, 2, 3, 1).numpy()
    example = mlflow.models.Model.load(str(tmp_path / "model")).load_input_example(str(tmp_path / "model"))
    np.testing.assert_array_equal(example, pictures[:2])
    expected = vae.reconstruct(images).view(5, 3, 6, 8).permute(0, 2, 3, 1)
    for form in (pictures, pictures / 255, images.numpy()):
        np.testing.assert_allclose(ask(model, form, "reconstruct"), expected, atol=1e-6)
    mu = ask(model, pictures, "encode")["mu"]
    np.testing.assert_allclose(ask(model, mu, "decode"), expected, atol=1e-6)
    assert ask(model, pictures, "sample", n=3).shape == (3, 6, 8, 3)
    assert ask(model, pictures, "score")["nll"].mean() == pytest.approx(result.metrics()["nll"], abs=1)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"\(B, 144\) and \(B, 6, 8, 3\)"):
        ask(model, pictures[..., 0], "reconstruct")


def test_no_file_of_the_model_is_a_pickle(logged):
    files = [path for path in logged.rglob("*") if path.is_file()]
    assert {"MLmodel", "model_code.py", "vae.safetensors", "test_nll.npz", "pyfunc.py"} <= {path.name for path in files}
    for path in files:
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))


def test_it_says_what_it_takes(logged):
    saved = mlflow.models.Model.load(str(logged))
    defaults = {param.name: param.default for param in saved.signature.params}
    assert defaults == {"task": "reconstruct", "n": 16, "importance_samples": 8, "seed": 0}
    assert saved.load_input_example(str(logged)).shape == (2, 784)
    requirements = (logged / "requirements.txt").read_text().splitlines()
    assert all("==" in line and "+" not in line for line in requirements)


@pytest.mark.parametrize("name", ["vae.safetensors", "test_nll.npz"])
def test_a_damaged_or_missing_artifact_is_named(logged, tmp_path, name):
    shutil.copytree(logged, tmp_path / "model")
    path = tmp_path / "model/artifacts" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*(damaged|can't be read)"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    path.unlink()
    with pytest.raises((OSError, ValueError), match=name):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
