"""The explorer's JavaScript against torch, in Node: every kind of network and prior that params.yaml can make."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save

from vae.config import ModelParams
from vae.data.datasets import load
from vae.models.hierarchy import TopDown
from vae.models.vae import VAE, slerp
from vae.serving.explorer.build import FOLDER
from vae.serving.images import fit_digit

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="there is no node, in which the page's code runs")

MLP = {"hidden_dims": (24, 24, 16), "latent_dim": 5, "prior": "standard"}
CONV = {"architecture": "conv", "hidden_dims": (4, 6, 6), "latent_dim": 5, "activation": "relu", "prior": "standard"}
LOGISTIC = {"likelihood": "discretized_logistic", "likelihood_components": 3}
PRIORS = {
    "mixture": {"prior": "gaussian_mixture", "prior_components": 4},
    "vampprior": {"prior": "vampprior", "prior_components": 6},
    "realnvp": {"prior": "realnvp", "prior_couplings": 3, "prior_width": 8},
}
KINDS = {
    **{f"mlp {name}": MLP | {"activation": name} for name in ("silu", "relu", "gelu", "tanh", "glu")},
    "mlp plain": MLP | {"residual": False},
    "mlp skip": MLP | {"decoder_skip": True, "activation": "glu"},
    "mlp one layer": MLP | {"hidden_dims": (16,)},
    "mlp ladder": MLP | {"lower_latent_dims": (3, 2), "prior": "realnvp", "prior_couplings": 2, "prior_width": 8},
    "mlp glu ladder": MLP | {"lower_latent_dims": (3,), "activation": "glu", "decoder_skip": True},
    "conv": CONV,
    "conv one layer": CONV | {"hidden_dims": (3,), "residual": False},
    "conv dense": CONV | {"dense_dims": (12, 10), "activation": "silu"},
    "conv ladder": CONV | {"lower_latent_dims": (2, 1, 1), "prior": "vampprior", "prior_components": 3},
    **{f"prior {name}": MLP | prior for name, prior in PRIORS.items()},
    "mlp colour gaussian": MLP | {"likelihood": "gaussian", "image_shape": (3, 5, 8)},
    "mlp grey logistic": MLP | {"likelihood": "discretized_logistic", "image_shape": (1, 8, 8)},
    "conv colour logistic": CONV | LOGISTIC | {"image_shape": (3, 13, 18)},
    "conv colour ladder": CONV
    | LOGISTIC
    | {"image_shape": (3, 7, 11), "lower_latent_dims": (2, 1)}
    | PRIORS["vampprior"],
    **{
        f"conditional {name}": part | {"conditional": True}
        for name, part in {
            "mlp": MLP | PRIORS["realnvp"],
            "mlp skip ladder": MLP | {"decoder_skip": True, "lower_latent_dims": (2,)} | PRIORS["mixture"],
            "prior by class": MLP | {"conditional_prior": True} | PRIORS["realnvp"],
            "conv": CONV | LOGISTIC | {"image_shape": (3, 5, 6), "dense_dims": (12,)},
        }.items()
    },
}
LABEL, CLASSES = 2, 4
BATCH, SAMPLES = 5, 6

PROGRAM = """
import { readFileSync } from "node:fs";
import { readTensors } from "FOLDER/weights.mjs";
import { VAE, between } from "FOLDER/model.mjs";

const model = new VAE(readTensors(new Uint8Array(readFileSync(process.argv[2]))));
const given = JSON.parse(readFileSync(0));
model.label = given.label[0];
const list = (object) => Object.fromEntries(Object.entries(object).map(([k, v]) => [k, v.length ? [...v] : v]));
const [x, z, noise] = [given.x, given.z, given.noise].map((values) => Float32Array.from(values));
const images = z.length / model.latentDim;
const one = x.subarray(0, model.inputDim);
const layerNoise = model.layerDims.map((dim) => Float32Array.from(given.layerNoise.splice(0, images * dim)));
const { mu, logvar } = model.encode(x, x.length / model.inputDim);
const numbers = { normal: () => given.normals.shift(), uniform: () => given.uniform[0] };
const [start, end] = [z.subarray(0, model.latentDim), z.subarray(model.latentDim, 2 * model.latentDim)];
console.log(JSON.stringify(list({
  mu, logvar,
  output: model.decode(z, images).output,
  sampled: model.images(z, images, layerNoise),
  rebuilt: model.reconstruct(one),
  price: list(model.price(one, noise)),
  density: model.prior.logDensity(z, images),
  drawn: model.sample(numbers).z,
  line: between(start, end, 0.3, false),
  circle: between(start, end, 0.3, true),
})));
"""


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_of(kind):
    """A model with weights that fp16 has, far from how they are initialized."""
    params = dict(KINDS[kind])
    image_shape = params.pop("image_shape", (1, 28, 28))
    model = VAE.from_params(ModelParams(**params), 0, image_shape=image_shape, classes=CLASSES)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * normals(*parameter.shape, seed=100 + index))
            parameter.copy_(parameter.half().float())
    return model.eval()


def in_node(model, folder, **given):
    """What the page's code computes of these inputs."""
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"vae": json.dumps(model.config)}))
    (folder / "program.mjs").write_text(PROGRAM.replace("FOLDER", FOLDER.as_uri()))
    done = subprocess.run(
        ["node", "program.mjs", "model.safetensors"],
        input=json.dumps({name: np.asarray(value).flatten().tolist() for name, value in given.items()}),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sample_by_torch(prior, noise, uniform):
    """A sample [L] of each prior from standard normal numbers and a uniform one."""
    if hasattr(prior, "components"):
        mu, logvar, log_weight = (part.double() for part in prior.components())
        chosen = int((log_weight.exp().cumsum(0) <= uniform).sum())
        return mu[chosen] + torch.exp(0.5 * logvar[chosen]) * noise
    for coupling in reversed(getattr(prior, "couplings", [])):
        noise = coupling.inverse(noise)
    return noise


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_page_computes_what_torch_computes(kind, tmp_path):
    model = model_of(kind)
    x = torch.rand(BATCH, model.input_dim, generator=torch.Generator().manual_seed(1))
    x = (
        torch.bernoulli(0.4 * x)
        if model.params.likelihood == "bernoulli"
        else (x * 300 - 20).clamp(0, 255).round() / 255
    )
    z, latents = normals(BATCH, 5, seed=2), model.params.latent_dim
    noise = normals(1, SAMPLES, model.noise_dim, seed=3)
    layer_noise = [normals(BATCH, layer.noise_dim, seed=4) for layer in model.hierarchy]
    drawn = normals(model.noise_dim, seed=5)
    numbers = {"normals": drawn, "uniform": 0.4, "label": LABEL}
    flat = torch.cat([part.flatten() for part in layer_noise]) if layer_noise else []
    found = in_node(model, tmp_path, x=x, z=z, noise=noise, layerNoise=flat, **numbers)

    def equal(name, expected, places=2e-5):
        assert np.array(found[name]) == pytest.approx(expected.flatten().numpy(), abs=places, rel=places), name

    posterior, terms = model.encode(x, LABEL), model(x[:1], noise, labels=LABEL)
    equal("mu", posterior.mu)
    equal("logvar", posterior.logvar)
    equal("output", model.decode(z, LABEL))
    equal("sampled", model.likelihood.mean(model.decode(z, LABEL, top_down=TopDown(layer_noise))))
    equal("rebuilt", model.reconstruct(x[:1], LABEL))
    equal("density", model.prior.log_density(z))
    equal("drawn", sample_by_torch(model.prior, drawn[:latents], 0.4), 1e-4)
    equal("line", torch.lerp(z[0], z[1], 0.3))
    equal("circle", slerp(z[0], z[1], torch.tensor([[0.3]])))
    price = found["price"]
    assert price["reconstruction"] == pytest.approx(terms.nll.mean().item(), abs=1e-3)  # nats
    assert price["kl"] == pytest.approx(terms.kl.sum().item(), abs=1e-3)
    assert sum(price["pixels"]) == pytest.approx(price["reconstruction"])


def drawn_in_node(drawing, folder):
    """What the page makes of a square drawing, uint8: uint8 [28, 28]."""
    program = "import { toMNIST } from 'FOLDER/digit.mjs'; import { readFileSync } from 'node:fs';"
    program += (
        "const ink = JSON.parse(readFileSync(0)); console.log(JSON.stringify([...toMNIST(ink, ink.length ** 0.5)]))"
    )
    (folder / "digit.mjs").write_text(program.replace("FOLDER", FOLDER.as_uri()))
    ink = json.dumps((drawing.flatten() / 255).tolist())
    done = subprocess.run(["node", "digit.mjs"], input=ink, cwd=folder, capture_output=True, text=True, check=True)
    return np.rint(255 * np.reshape(json.loads(done.stdout), (28, 28))).astype(np.uint8)


def test_a_digit_of_mnist_drawn_on_the_page_stays_as_it_is(bundled, tmp_path):
    digit = load(bundled[0], "test").images[0].numpy().reshape(28, 28)
    np.testing.assert_array_equal(drawn_in_node(digit, tmp_path), digit)


def test_all_ink_of_a_lopsided_drawing_stays_inside_as_in_fit_digit(tmp_path):
    drawing = np.zeros((280, 280), np.uint8)
    drawing[100:180, 40:80] = 255  # a blob on the left
    drawing[132:138, 80:240] = 255  # and a line to the right
    drawn, fitted = (np.argwhere(image > 20) for image in (drawn_in_node(drawing, tmp_path), fit_digit(drawing)))
    np.testing.assert_array_equal([drawn.min(0), drawn.max(0)], [fitted.min(0), fitted.max(0)])
    assert drawn[:, 1].max() == 27
