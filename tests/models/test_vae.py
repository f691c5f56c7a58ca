import math
import pickle

import pytest
import torch
from safetensors.torch import save_file

from vae import VAE
from vae.config import EvaluateParams, ModelParams, TrainParams
from vae.data.binarization import binarize_once
from vae.data.datasets import Split
from vae.device import resolve
from vae.errors import ConfigError, WeightsError
from vae.evaluation.likelihood import evaluate
from vae.models.distributions import importance_weighted_bound
from vae.models.networks import Posterior
from vae.training.loop import fit

MLP = {"hidden_dims": [24, 16], "latent_dim": 3, "prior": "standard"}
CONV = {"architecture": "conv", "hidden_dims": [4, 6], "latent_dim": 3, "prior": "standard"}


SKIP = {**MLP, "decoder_skip": True}
PLAIN = {**MLP, "residual": False, "activation": "tanh"}


GLU = {**MLP, "activation": "glu", "hidden_dims": [24, 24]}
MIXTURE = {**PLAIN, "prior": "gaussian_mixture", "prior_components": 4}
VAMP = {**MLP, "prior": "vampprior", "prior_components": 4}
CONV_VAMP = {**CONV, "prior": "vampprior", "prior_components": 4}
CONV_DENSE = {**CONV, "dense_dims": [10, 10]}
LADDER = {**SKIP, "lower_latent_dim": 2, "activation": "glu"}
CONV_LADDER = {**CONV_DENSE, "prior": "vampprior", "prior_components": 4, "lower_latent_dim": 2}
MODELS = {
    "mlp": MLP,
    "plain": PLAIN,
    "skip": SKIP,
    "conv": CONV,
    "glu": GLU,
    "mixture": MIXTURE,
    "vamp": VAMP,
    "conv-vamp": CONV_VAMP,
    "conv-dense": CONV_DENSE,
    "ladder": LADDER,
    "conv-ladder": CONV_LADDER,
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def model(request):
    return VAE.from_params(ModelParams(**request.param), seed=0)


def test_shapes_are_those_that_the_docstrings_promise(model):
    x = torch.rand(5, 784)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 3)
    assert [part.shape for part in model(x)[:1]] == [(5, 1)]
    terms = model(x, torch.randn(5, 4, model.noise_dim))
    assert terms.nll.shape == terms.log_ratio.shape == (5, 4)
    assert terms.z.shape == (5, 4, 3)
    assert len(terms.kl) == 5
    assert model.decode(torch.randn(2, 7, 3)).shape == (2, 7, 784)
    assert model.decode(torch.randn(3)).shape == (784,)
    assert model.sample(4).shape == model.reconstruct(x[:4]).shape == (4, 784)


def test_what_is_decoded_in_one_go_is_what_is_decoded_one_by_one(model):
    z = torch.randn(2, 3, 3)
    one_by_one = torch.stack([torch.stack([model.decode(z[i, j][None])[0] for j in range(3)]) for i in range(2)])
    torch.testing.assert_close(model.decode(z), one_by_one, atol=1e-5, rtol=1e-4)


def test_images_are_probabilities_and_interpolation_ends_where_it_should(model):
    start, end = torch.randn(2, 3)
    line = model.interpolate(start, end, 5)
    assert line.shape == (5, 784)
    assert ((line > 0) & (line < 1)).all()
    torch.testing.assert_close(line[[0, -1]], model.images(torch.stack([start, end])))
    torch.testing.assert_close(line[2], model.images((start + end)[None] / 2)[0])


def test_reparameterized_samples_have_the_posteriors_moments(model):
    mu, logvar = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.0, 1.0, -2.0]])
    torch.manual_seed(0)
    z = model.reparameterize(mu.expand(100_000, -1), logvar.expand(100_000, -1))
    torch.testing.assert_close(z.mean(0), mu[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_gradients_reach_every_weight(model, objective):
    x, noise = torch.rand(8, 784), torch.randn(8, 5, model.noise_dim)
    terms = model(x, noise)
    if objective == "elbo":
        loss = terms.nll.mean() + terms.kl.sum(1).mean()
    else:
        loss = -importance_weighted_bound(terms.log_weights).mean()
    loss.backward()
    missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missed == []


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
    assert (first.weight.shape, second.weight.shape) == ((12, 12), (12, 6))
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
    noise = torch.randn(5, 1, 6)
    mu, logvar = (part[:, None] for part in model.encode(x))
    samples = model.sample_posterior(model.encode(x), noise)
    torch.testing.assert_close(samples.output, model.decode(mu + torch.exp(0.5 * logvar) * noise))


def test_the_output_bias_makes_an_untrained_decoder_start_from_the_mean_image(model):
    mean = torch.linspace(0.05, 0.95, 784)
    model.initialize_from_data(mean.expand(3, -1))
    torch.testing.assert_close(model.output_bias.sigmoid(), mean)
    zero_weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    zero_weights["decoder.output_bias" if "decoder.output_bias" in zero_weights else "decoder.head.bias"] = (
        model.output_bias.detach()
    )
    model.load_state_dict(zero_weights)
    torch.testing.assert_close(model.sample(2), mean.expand(2, -1))


def test_pixels_that_are_always_black_get_a_finite_bias(model):
    model.initialize_from_data(torch.tensor([0, 255], dtype=torch.uint8).repeat(392)[None])
    assert model.output_bias.isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_random_state_alone():
    params = ModelParams(hidden_dims=(8,), latent_dim=2)
    state = torch.get_rng_state()
    first, second, other = (VAE.from_params(params, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.output_bias, second.output_bias)
    assert not torch.equal(first.output_bias, other.output_bias)


def test_residual_layers_add_their_input_where_widths_are_equal():
    with_skip = VAE(hidden_dims=[8, 8], latent_dim=2, residual=True)
    without = VAE(hidden_dims=[8, 8], latent_dim=2, residual=False)
    without.load_state_dict(with_skip.state_dict())
    x = torch.rand(3, 784)
    h = with_skip.encoder.hidden[0](x)
    torch.testing.assert_close(with_skip.encoder.hidden(x), h + without.encoder.hidden(x))


def test_with_decoder_skips_the_latents_still_reach_the_image_when_a_hidden_layer_loses_them():
    z = torch.randn(2, 3)
    for skip, distinct in ((True, True), (False, False)):
        model = VAE(hidden_dims=[8, 8], latent_dim=3, residual=False, decoder_skip=skip)
        with torch.no_grad():
            model.decoder.hidden[0].linear.weight.zero_()
        first, second = model.decode(z)
        assert torch.equal(first, second) != distinct


def test_decoder_skips_join_every_layer_after_the_first_and_change_no_width():
    model = VAE(hidden_dims=[24, 16], latent_dim=3, decoder_skip=True)
    layers = [*(layer.linear for layer in model.decoder.hidden), model.decoder.head]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(3, 16), (16 + 3, 24), (24 + 3, 784)]


def layers_of(model):
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]


@pytest.mark.parametrize("network", [MLP, CONV], ids=["mlp", "conv"])
@pytest.mark.parametrize("initialization", ["xavier", "kaiming", "orthogonal"])
def test_an_initialization_has_the_spread_of_its_formula_and_zero_biases(network, initialization):
    for layer in layers_of(VAE(**network, initialization=initialization)):
        weight = layer.weight.detach()
        rows = weight.flatten(1)
        receptive = math.prod(getattr(layer, "kernel_size", ()))  # 1 of a linear layer
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


def test_the_default_initialization_is_pytorchs_own():
    torch.manual_seed(0)
    expected = torch.nn.Linear(784, 8).weight
    torch.manual_seed(0)
    model = VAE(hidden_dims=[8], latent_dim=2, initialization="default")
    assert torch.equal(model.encoder.hidden[0].linear.weight, expected)


@pytest.mark.parametrize("initialization", ["xavier", "kaiming", "orthogonal"])
def test_save_and_load_bring_back_a_model_with_another_initialization(initialization, tmp_path):
    model = VAE(**SKIP, initialization=initialization)
    model.save(tmp_path / "vae.safetensors")
    z = torch.randn(4, 3)
    assert torch.equal(VAE.load(tmp_path / "vae.safetensors").decode(z), model.decode(z))


def test_save_and_load_bring_back_weights_and_configuration(model, tmp_path):
    model.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert loaded.params == model.params
    z = torch.randn(4, 3)
    torch.testing.assert_close(loaded.decode(z), model.decode(z), atol=0, rtol=0)
    assert not loaded.training
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "vae.safetensors").read_bytes()


def test_a_pickle_offered_as_weights_is_refused_and_does_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "it-ran"), "w"))

    path = tmp_path / "vae.safetensors"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(WeightsError, match="is not a VAE weights file"):
        VAE.load(path)
    assert not (tmp_path / "it-ran").exists()


def test_weights_that_are_truncated_foreign_or_missing_are_refused_by_name(model, tmp_path):
    path = tmp_path / "vae.safetensors"
    with pytest.raises(WeightsError, match="not found"):
        VAE.load(path)
    model.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is not a VAE weights file"):
        VAE.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="is not a VAE weights file"):
        VAE.load(path)


def test_weights_that_contradict_their_own_configuration_are_refused_in_one_line(tmp_path):
    path = tmp_path / "vae.safetensors"
    VAE(hidden_dims=[8], latent_dim=2).save(path)
    content = path.read_bytes()
    assert content.count(b'\\"latent_dim\\":2') or content.count(b'\\"latent_dim\\": 2')
    path.write_bytes(content.replace(b'\\"latent_dim\\": 2', b'\\"latent_dim\\": 3'))
    with pytest.raises(WeightsError, match="doesn't match its own configuration") as caught:
        VAE.load(path)
    assert "\n" not in str(caught.value)


def test_hostile_metadata_is_refused_in_one_line(tmp_path):
    for metadata in ("[" * 5000, '{"latent_dim": ' + "9" * 5000 + "}", '{"latent_dim": 1e300}', "null"):
        save_file({"a": torch.zeros(2)}, tmp_path / "vae.safetensors", {"vae": metadata})
        with pytest.raises(WeightsError) as caught:
            VAE.load(tmp_path / "vae.safetensors")
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"hidden_dims": []}, "hidden_dims"),
        ({"architecture": "transformer"}, "architecture is 'transformer', allowed is 'mlp' or 'conv'"),
        ({"activation": "relux"}, "activation"),
        ({"laten_dim": 3}, "did you mean 'latent_dim'"),
        ({"initialization": "zeros"}, "initialization is 'zeros', allowed is 'default', 'xavier', 'kaiming' or"),
        ({"architecture": "conv", "decoder_skip": True}, "^decoder_skip requires architecture 'mlp', not 'conv'$"),
        ({"architecture": "conv", "activation": "glu"}, "^activation 'glu' requires architecture 'mlp', not 'conv'$"),
        ({"prior": "mog"}, "^prior is 'mog', allowed is 'standard', 'gaussian_mixture' or 'vampprior'$"),
        ({"prior_components": 0}, "prior_components is 0"),
        ({"lower_latent_dim": 0}, "lower_latent_dim is 0"),
        ({"dense_dims": [8]}, "^dense_dims requires architecture 'conv', not 'mlp': use hidden_dims$"),
        ({"architecture": "conv", "input_dim": 100, "hidden_dims": [4]}, "side divisible by 4"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VAE(**arguments)


class Shifted(VAE):
    """Overrides one method; the posterior's offset is a non-persistent buffer."""

    def __init__(self, *args, **params):
        super().__init__(*args, **params)
        self.register_buffer("offset", torch.full((3,), 2.0), persistent=False)

    def encode(self, x):
        mu, logvar = super().encode(x)
        return Posterior(mu + self.offset, logvar)


def test_a_subclass_with_a_buffer_that_is_not_saved_can_be_loaded(tmp_path):
    model = Shifted(**MLP)
    model.save(tmp_path / "vae.safetensors")
    loaded = Shifted.load(tmp_path / "vae.safetensors")
    x = torch.rand(2, 784)
    torch.testing.assert_close(loaded.encode(x).mu, model.encode(x).mu)


class Doubled(VAE):
    def kl(self, mu, logvar, log_prior):
        return 2 * super().kl(mu, logvar, log_prior)


class Inverted(VAE):
    def decode(self, z):
        return -super().decode(z)


@pytest.mark.parametrize("subclass", [Shifted, Doubled, Inverted])
def test_what_a_subclass_overrides_takes_effect_in_training_validation_and_evaluation(subclass):
    """Each override changes the first epoch's training metrics, the validation's and the evaluation's."""
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
