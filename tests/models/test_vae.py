"""The VAE: shapes, networks against their formulas, initialization, files, errors and subclasses."""

import math
import pickle

import pytest
import torch
from safetensors.torch import save, save_file

from vae import VAE
from vae.config import EvaluateParams, ModelParams, TrainParams
from vae.data.binarization import binarize_once
from vae.data.datasets import Split
from vae.device import resolve
from vae.errors import ConfigError, DataError, WeightsError
from vae.evaluation.likelihood import evaluate
from vae.models.networks import Posterior
from vae.models.vae import slerp
from vae.training.loop import fit

MLP = {"hidden_dims": [24, 16], "latent_dim": 3, "prior": "standard"}
CONV = {"architecture": "conv", "hidden_dims": [4, 6], "latent_dim": 3, "prior": "standard"}
MIXTURE = {"prior": "gaussian_mixture", "prior_components": 4}
VAMP = {"prior": "vampprior", "prior_components": 4}
MODELS = {
    "mlp": MLP,
    "mixture": MLP | MIXTURE | {"residual": False, "activation": "tanh"},
    "vamp": MLP | VAMP | {"initialization": "orthogonal"},
    "ladder": MLP | {"decoder_skip": True, "activation": "glu", "lower_latent_dims": (2,)},
    "conv": CONV,
    "conv ladder": CONV | VAMP | {"dense_dims": [10, 10], "lower_latent_dims": (2,), "initialization": "xavier"},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return VAE.from_params(ModelParams(**request.param), seed=0)


def test_shapes_are_those_of_the_docstrings(model):
    x = torch.rand(5, 784)
    mu, logvar = model.encode(x.view(5, 1, 28, 28))
    terms = model(x, torch.randn(5, 4, model.noise_dim))
    assert mu.shape == logvar.shape == (5, 3)
    assert model(x).nll.shape == (5, 1)
    assert terms.nll.shape == terms.log_ratio.shape == (5, 4)
    assert terms.z.shape == (5, 4, 3)
    assert terms.kl.shape == (5, (3 if model.params.prior == "standard" else 1) + len(model.params.lower_latent_dims))
    assert model.decode(torch.randn(2, 7, 3)).shape == (2, 7, 784)
    assert model.decode(torch.randn(3)).shape == (784,)
    assert model.sample(4).shape == model.reconstruct(x[:4]).shape == (4, 784)


def test_a_second_layer_has_latents_at_each_position_of_the_feature_maps():
    assert VAE(**MODELS["ladder"]).noise_dim == 3 + 2
    assert VAE(**MODELS["conv ladder"]).noise_dim == 3 + 2 * 7 * 7


@pytest.mark.parametrize("image_shape", [(3, 32, 48), (1, 8, 8), (3, 9, 14), (1, 1, 5)])
@pytest.mark.parametrize("network", ["mlp", "conv", "conv ladder"])
def test_images_of_any_shape(image_shape, network, tmp_path):
    params = MODELS[network] | (
        {"hidden_dims": [4, 6, 5], "lower_latent_dims": (2, 2, 2)} if "ladder" in network else {}
    )
    model = VAE(image_shape=image_shape, **params).eval()
    x = torch.rand(2, *image_shape)
    terms = model(x, torch.randn(2, 3, model.noise_dim))
    assert terms.nll.shape == (2, 3) and terms.log_weights.isfinite().all()
    assert model.sample(2).shape == model.reconstruct(x).shape == (2, math.prod(image_shape))
    model.save(tmp_path / "vae.safetensors")
    assert torch.equal(VAE.load(tmp_path / "vae.safetensors").encode(x).mu, model.encode(x).mu)


@pytest.mark.parametrize("corner", [0, -1])
def test_a_convolutional_decoder_keeps_places_where_sides_are_not_divisible_by_four(corner):
    """41×63 is 11×16 after two layers; what is changed in a corner there changes that corner of the image."""
    decoder = VAE(image_shape=(2, 41, 63), **CONV | {"hidden_dims": [4, 4]}).decoder
    decoder.stem = torch.nn.Identity()
    h = torch.zeros(2, 11, 16, 4)
    h[1, corner, corner] = 1
    before, after = decoder(h.flatten(1)).view(2, 2, 41, 63)
    rows, columns = (before != after).any(0).nonzero(as_tuple=True)
    near = 4 * (1 + 1 + 2 + 1) + 2 * 3  # the reach of the convolutions at 11×16 and at 21×32, in pixels
    for places, side in ((rows, 41), (columns, 63)):
        assert (0 if corner == 0 else side - 1) in places
        assert (places < near if corner == 0 else places >= side - near).all()


def test_latents_are_decoded_independently_of_each_other(model):
    z = torch.randn(2, 3, 3)
    alone = torch.stack([model.decode(each[None])[0] for each in z.flatten(0, 1)]).view(2, 3, 784)
    torch.testing.assert_close(model.decode(z), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_pixels_of_0_and_1_are_black_and_white_whatever_their_type(dtype):
    model = VAE(**MLP)
    x = torch.randint(2, (3, 784))
    torch.testing.assert_close(model.encode(x.to(dtype)).mu, model.encode(x.to(torch.uint8) * 255).mu)


def test_wrong_shapes_are_refused():
    model = VAE(**MLP)
    with pytest.raises(DataError, match=r"images have shape \(3, 10\), allowed is \(B, ...\) with 784 pixels"):
        model.encode(torch.rand(3, 10))
    with pytest.raises(DataError, match=r"latents have shape \(3, 5\), allowed is \(..., 3\)"):
        model.decode(torch.rand(3, 5))


def test_gradients_reach_every_weight(model):
    terms = model(torch.rand(8, 784), torch.randn(8, 5, model.noise_dim))
    (terms.nll.mean() + terms.kl.sum(1).mean()).backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missed == []


# Interpolation


@pytest.mark.parametrize("spherical", [False, True])
def test_an_interpolation_is_of_mean_images_and_ends_at_both_latents(spherical):
    model = VAE(**MLP)
    start, end = torch.randn(2, 3)
    line = model.interpolate(start, end, 5, spherical)
    assert ((line > 0) & (line < 1)).all()
    torch.testing.assert_close(line[[0, -1]], model.images(torch.stack([start, end])), atol=1e-5, rtol=1e-4)
    if not spherical:
        torch.testing.assert_close(line[2], model.images((start + end) / 2))


def test_spherical_interpolation_turns_evenly():
    start, end = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    points = slerp(start, end, torch.linspace(0, 1, 5)[:, None])
    angles = torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    torch.testing.assert_close(points.norm(dim=1), torch.linspace(2, 4, 5))


@pytest.mark.parametrize("end", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_spherical_interpolation_of_parallel_latents_is_linear(end):
    weight, start = torch.linspace(0, 1, 4)[:, None], torch.tensor([1.0, 0.0])
    torch.testing.assert_close(slerp(start, torch.tensor(end), weight), torch.lerp(start, torch.tensor(end), weight))


# Networks and their initialization


def gated(linear, h):
    """(V h + c) · σ(W h + b), whose two matrices are the two halves of one (Dauphin et al. 2017, eq. 1)."""
    half = len(linear.weight) // 2
    value = h @ linear.weight[:half].T + linear.bias[:half]
    gate = h @ linear.weight[half:].T + linear.bias[half:]
    return value / (1 + torch.exp(-gate))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_gated_linear_units_encode_and_decode_by_their_formula(residual, skip):
    model = VAE(12, [6, 6], 6, activation="glu", residual=residual, decoder_skip=skip)
    x, z = torch.rand(5, 12), torch.randn(5, 6)
    first, second = (layer.linear for layer in model.encoder.hidden)
    h = gated(first, x)
    h = gated(second, h) + (h if residual else 0)
    expected = h @ model.encoder.head.weight.T + model.encoder.head.bias
    torch.testing.assert_close(torch.cat(list(model.encode(x)), 1), expected)
    first, second = (layer.linear for layer in model.decoder.hidden)
    joined = (lambda h: torch.cat([h, z], 1)) if skip else (lambda h: h)
    h = gated(first, z) + (z if residual else 0)
    h = gated(second, joined(h)) + (h if residual else 0)
    logits = joined(h) @ model.decoder.head.weight.T + model.decoder.head.bias
    torch.testing.assert_close(model.decode(z), logits)


def test_initialized_from_data_an_untrained_decoder_draws_the_mean_image(model):
    mean = torch.linspace(0, 1, 784)
    model.initialize_from_data(mean.expand(3, -1))
    with torch.no_grad():
        for parameter in set(model.parameters()) - {model.output_bias}:
            parameter.zero_()
    torch.testing.assert_close(model.sample(2), mean.clamp(1e-3, 1 - 1e-3).expand(2, -1))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_random_state_alone():
    params = ModelParams(hidden_dims=(8,), latent_dim=2)
    state = torch.get_rng_state()
    first, second, other = (VAE.from_params(params, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.output_bias, second.output_bias)
    assert not torch.equal(first.output_bias, other.output_bias)


@pytest.mark.parametrize("network", [MLP, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("initialization", ["xavier", "kaiming", "orthogonal"])
def test_an_initialization_has_the_spread_of_its_formula_and_zero_biases(network, initialization):
    model = VAE(**network, initialization=initialization)
    for layer in (each for each in model.modules() if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)):
        weight = layer.weight.detach()
        rows = weight.flatten(1)
        receptive = math.prod(getattr(layer, "kernel_size", ()))  # 1 for a linear layer
        n_out, n_in = len(rows) * receptive, rows.shape[1]
        assert layer.bias is None or not layer.bias.any()
        if initialization == "orthogonal":
            product = rows @ rows.T if len(rows) <= n_in else rows.T @ rows
            torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)
            continue
        # A uniform distribution on ±a has the variance a²/3.
        variance = 2 / (n_in + n_out) if initialization == "xavier" else 2 / n_in
        assert weight.abs().max().item() <= (3 * variance) ** 0.5 + 1e-6
        assert weight.var().item() == pytest.approx(variance, rel=6 / weight.numel() ** 0.5)


# Files


def test_save_and_load_bring_back_weights_and_configuration(model, tmp_path):
    model.save(tmp_path / "vae.safetensors")
    state = torch.get_rng_state()
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.params == model.params
    assert not loaded.training
    x, noise = torch.rand(3, 784), torch.randn(3, 2, model.noise_dim)
    assert all(torch.equal(*parts) for parts in zip(model(x, noise), loaded(x, noise), strict=True))
    first, second = (each.sample(3, torch.Generator().manual_seed(1)) for each in (model, loaded))
    assert torch.equal(first, second)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "vae.safetensors").read_bytes()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_not_a_weights_file_is_refused_in_one_line_and_not_executed(tmp_path):
    path = tmp_path / "vae.safetensors"
    with pytest.raises(WeightsError, match="not found"):
        VAE.load(path)
    VAE(hidden_dims=[8], latent_dim=2).save(path)
    content = path.read_bytes()
    contradictory = content.replace(b'\\"latent_dim\\": 2', b'\\"latent_dim\\": 3')
    assert contradictory != content
    for wrong, reason in (
        (content[:-100], "is not a VAE weights file"),
        (save({"a": torch.zeros(2)}), "is not a VAE weights file"),
        (pickle.dumps(Malicious(tmp_path / "it-ran")), "is not a VAE weights file"),
        (contradictory, "doesn't match its own configuration"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(WeightsError, match=rf"^[^\n]*{reason}[^\n]*$"):
            VAE.load(path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "metadata",
    ["[" * 5000, f'{{"latent_dim": {"9" * 5000}}}', '{"latent_dim": 1e300}', f'{{"latent_dim": {10**30}}}', "null"],
    ids=["nested brackets", "5,000 digits", "1e300", "a huge integer", "null"],
)
def test_hostile_metadata_is_refused_in_one_line(metadata, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "vae.safetensors", {"vae": metadata})
    with pytest.raises(WeightsError) as caught:
        VAE.load(tmp_path / "vae.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"laten_dim": 3}, "did you mean 'latent_dim'"),
        ({"prior": "mog"}, "^prior is 'mog', allowed is 'standard', 'gaussian_mixture', 'vampprior' or 'realnvp'$"),
        ({"dense_dims": [8]}, "^dense_dims requires architecture 'conv', not 'mlp': use hidden_dims$"),
        ({"image_shape": (28, 28)}, r"^image_shape is \(28, 28\), allowed is \(channels, height, width\)$"),
        ({"image_shape": (3, 0, 8)}, r"image_shape is \(3, 0, 8\)"),
        ({"image_shape": (3, 4, 4), "input_dim": 16}, "with 16 values in all, as input_dim says"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VAE(**arguments)


# Subclasses


class Shifted(VAE):
    def __init__(self, *args, **params):
        super().__init__(*args, **params)
        self.register_buffer("offset", torch.full((3,), 2.0), persistent=False)

    def encode(self, x):
        mu, logvar = super().encode(x)
        return Posterior(mu + self.offset, logvar)


class Doubled(VAE):
    def kl(self, mu, logvar, log_prior):
        return 2 * super().kl(mu, logvar, log_prior)


class Inverted(VAE):
    def decode(self, z):
        return -super().decode(z)


def test_a_subclass_with_a_buffer_that_is_not_saved_can_be_loaded(tmp_path):
    model = Shifted(**MLP)
    model.save(tmp_path / "vae.safetensors")
    loaded = Shifted.load(tmp_path / "vae.safetensors")
    x = torch.rand(2, 784)
    torch.testing.assert_close(loaded.encode(x).mu, model.encode(x).mu)


@pytest.mark.parametrize("subclass", [Shifted, Doubled, Inverted])
def test_an_overridden_method_takes_effect_in_training_validation_and_evaluation(subclass):
    split = Split(torch.randint(0, 256, (40, 784), dtype=torch.uint8), torch.arange(40) % 10)
    params = TrainParams(epochs=1, batch_size=20, learning_rate=1e-12, device="cpu", precision="fp32", compile=False)
    metrics = []
    for network in (VAE, subclass):
        model = network.from_params(ModelParams(**MLP), 0)
        record = fit(model, split, split, params, resolve(params), binarization="threshold").best
        targets = binarize_once(split.images, "threshold")
        test = evaluate(model, targets, split.labels, EvaluateParams(importance_samples=2)).metrics()
        metrics.append([record["train/neg_elbo"], record["val/neg_elbo"], -test["elbo"]])
    plain, overridden = metrics
    assert all(abs(a - b) > 1e-3 for a, b in zip(plain, overridden, strict=True))
