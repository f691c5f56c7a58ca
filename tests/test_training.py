import math
import shutil

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae.config import ModelParams, TrainParams
from vae.data import Split, binarize_once, to_float
from vae.device import Hardware, resolve
from vae.errors import DivergedError
from vae.model import VAE
from vae.objective import mmd
from vae.training import fit, validate

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
SMALL = ModelParams(hidden_dims=(32,), latent_dim=4)


def blobs(n, seed=0):
    """Grey images of one bright square each, at a random place: quick to learn, and not constant."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 28, 28, dtype=torch.uint8)
    for image, (row, column) in zip(images, torch.randint(0, 20, (n, 2), generator=generator).tolist(), strict=True):
        image[row : row + 8, column : column + 8] = 230
    return Split(images.flatten(1), torch.randint(0, 10, (n,), generator=generator))


TRAIN, VALIDATION = blobs(300), blobs(90, seed=1)


def train(params=None, hardware=CPU, **options):
    model = VAE.from_params(SMALL, options.get("seed", 0))
    settings = {"epochs": 3, "batch_size": 64, "learning_rate": 3e-3} | (params or {})
    return model, fit(model, TRAIN, VALIDATION, TrainParams(**settings), hardware, **options)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_training_lowers_the_loss_and_calls_back_once_an_epoch():
    seen = []
    _, fitted = train({"epochs": 8}, on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == list(range(1, 9))
    assert seen == fitted.history
    assert fitted.history[-1]["val/neg_elbo"] < 0.7 * fitted.history[0]["val/neg_elbo"]
    assert {"train/loss", "train/reconstruction", "train/kl", "train/learning_rate", "val/kl"} <= set(seen[0])


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others():
    torch.manual_seed(1)
    first, _ = train()
    torch.manual_seed(2)
    second, _ = train()
    other, _ = train(seed=1)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_figures_of_an_epoch_weigh_the_short_last_batch_rightly():
    """With a learning rate too small to change anything, an epoch's figures are those of the fixed weights."""
    model = VAE.from_params(SMALL, 0)
    fixed = {"epochs": 1, "batch_size": 299, "learning_rate": 1e-30}
    fitted = fit(model, TRAIN, VALIDATION, TrainParams(**fixed), CPU, binarization="none")
    by_halves = {**fixed, "batch_size": 150}
    again = fit(VAE.from_params(SMALL, 0), TRAIN, VALIDATION, TrainParams(**by_halves), CPU, binarization="none")
    x = to_float(TRAIN.images)
    mu, logvar = model.encode(x)
    exact = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(1).mean().item()
    for record in (fitted.history[0], again.history[0]):
        assert record["train/kl"] == pytest.approx(exact, rel=1e-4)


def test_validation_is_the_elbo_at_beta_one_as_torch_distributions_computes_it():
    model, _ = train({"beta": 7.0, "epochs": 1})
    targets = (VALIDATION.images > 127).to(torch.uint8) * 255
    figures = validate(model, targets, CPU)
    x = to_float(targets)
    mu, logvar = model.encode(x)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    torch.manual_seed(0)
    log_likelihood = torch.stack(
        [Independent(Bernoulli(logits=model.decode(posterior.sample())), 1).log_prob(x) for _ in range(200)]
    )
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean().item()
    spread = log_likelihood.mean(1).std().item()
    assert figures["kl"] == pytest.approx(kl, rel=1e-5)
    assert figures["reconstruction"] == pytest.approx(-log_likelihood.mean().item(), abs=5 * spread)
    assert figures["neg_elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"])
    assert validate(model, targets, CPU) == figures


def test_the_loss_is_reconstruction_plus_beta_times_kl():
    _, fitted = train({"beta": 3.0, "kl_warmup_epochs": 2})
    for record, beta in zip(fitted.history, [1.5, 3.0, 3.0], strict=True):
        assert record["train/beta"] == beta
        assert record["train/loss"] == pytest.approx(
            record["train/reconstruction"] + beta * record["train/kl"], rel=1e-4
        )


def test_the_mmd_term_pulls_the_aggregate_posterior_to_the_prior_where_no_kl_does():
    distances = []
    for weight in (0.0, 2000.0):
        model, fitted = train({"epochs": 20, "beta": 0.0, "mmd": weight})
        with torch.no_grad():
            mu, logvar = model.encode(to_float(binarize_once(TRAIN.images, "dynamic")))
            generator = torch.Generator().manual_seed(0)
            noise, prior = (torch.randn(mu.shape, generator=generator) for _ in range(2))
            distances.append(mmd(model.reparameterize(mu, logvar, noise), prior).item())
        last = fitted.history[-1]
        assert (last["train/loss"] > last["train/reconstruction"] + 1e-3) == bool(weight)
    without, with_term = distances
    assert with_term < 0.5 * without


@pytest.mark.parametrize("weight", [0.0, 1e-30])
def test_the_noise_for_the_mmd_term_is_drawn_only_where_there_is_one(weight, monkeypatch):
    drawn = []
    randn = torch.randn
    monkeypatch.setattr("vae.training.torch.randn", lambda *a, **options: drawn.append(a) or randn(*a, **options))
    train({"epochs": 1, "mmd": weight})
    steps, validations = math.ceil(len(TRAIN) / 64), 1
    assert len(drawn) == steps * (2 if weight else 1) + validations


def test_a_higher_beta_buys_a_lower_rate_with_a_higher_distortion():
    (_, low), (_, high) = train({"epochs": 10, "beta": 0.2}), train({"epochs": 10, "beta": 5.0})
    assert high.history[-1]["val/kl"] < low.history[-1]["val/kl"]
    assert high.history[-1]["val/reconstruction"] > low.history[-1]["val/reconstruction"]


def test_the_best_epochs_weights_are_kept_and_patience_stops_the_training():
    """A constant, far too high rate first gets better, then worse."""
    model, fitted = train({"epochs": 60, "learning_rate": 0.03, "early_stopping_patience": 2, "batch_size": 16})
    scores = [record["val/neg_elbo"] for record in fitted.history]
    assert len(scores) < 60
    assert fitted.best_epoch == len(scores) - 2 == scores.index(min(scores)) + 1
    assert [record["improved"] for record in fitted.history[-2:]] == [0, 0]
    targets = binarize_once(VALIDATION.images, "dynamic")
    assert validate(model, targets, CPU)["neg_elbo"] == pytest.approx(min(scores), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1e-2, 1e-2, 1e-2, 1e-2]),
        ("step", [1e-2, 1e-3, 1e-4, 1e-4]),
        ("cosine", [1e-2 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]),
    ],
)
def test_learning_rate_schedules_end_each_epoch_where_their_formula_says(schedule, expected):
    _, fitted = train({"epochs": 4, "batch_size": 300, "learning_rate": 1e-2, "lr_schedule": schedule})
    rates = [record["train/learning_rate"] for record in fitted.history]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_one_cycle_rises_to_its_peak_and_ends_near_zero():
    _, fitted = train({"epochs": 10, "learning_rate": 1e-2, "lr_schedule": "one_cycle"})
    rates = [record["train/learning_rate"] for record in fitted.history]
    assert rates[0] < 5e-3 < max(rates) <= 1e-2
    assert max(rates) == rates[2]
    assert rates[-1] < 1e-4


def test_clipping_bounds_the_gradients_norm(monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def spy(self, *arguments):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train({"epochs": 1, "max_grad_norm": 0.5})
    assert max(norms) <= 0.5 + 1e-4
    norms.clear()
    train({"epochs": 1})
    assert max(norms) > 0.5


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "none"])
def test_what_the_model_sees_follows_the_binarization(binarization, monkeypatch):
    seen = []
    encode = VAE.encode

    def spy(self, x):
        if self.training:
            seen.append(x.clone())
        return encode(self, x)

    monkeypatch.setattr(VAE, "encode", spy)
    train({"epochs": 2, "batch_size": 300}, binarization=binarization)
    values = torch.cat(seen).unique().tolist()
    first, second = ((255 * epoch).round().long().sum(0) for epoch in seen)  # in whatever order
    assert values == pytest.approx([0.0, 230 / 255] if binarization == "none" else [0.0, 1.0])
    assert torch.equal(first, second) == (binarization != "dynamic")


def test_a_loss_that_stops_being_finite_names_epoch_step_and_term_and_keeps_the_callback_clean():
    seen = []
    with pytest.raises(DivergedError, match=r"epoch 1, step \d of 5: .*(reconstruction|KL).*learning_rate") as caught:
        train({"learning_rate": 1e18}, on_epoch=seen.append)
    assert seen == []
    assert "\n" not in str(caught.value)


def test_all_images_are_seen_once_an_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr("vae.batches.to_float", lambda images: seen.append(images) or to_float(images))
    train({"epochs": 1}, binarization="none")
    shown = torch.cat(seen)
    assert sorted(map(bytes, shown.numpy())) == sorted(map(bytes, TRAIN.images.numpy()))


@pytest.mark.skipif(resolve(TrainParams(device="cpu")).precision != "bf16", reason="this CPU has no bf16 hardware")
def test_bf16_trains_to_about_the_same_figures():
    half = Hardware(torch.device("cpu"), "bf16", compile=False)
    _, reference = train({"epochs": 5})
    model, fitted = train({"epochs": 5}, hardware=half)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=0.03)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_trains_to_the_same_figures():
    compiled = Hardware(torch.device("cpu"), "fp32", compile=True)
    _, reference = train({"epochs": 2})
    _, fitted = train({"epochs": 2}, hardware=compiled)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_with_its_automatic_settings():
    hardware = resolve(TrainParams(device="cuda"))
    assert hardware.compile
    _, reference = train({"epochs": 5})
    _, fitted = train({"epochs": 5}, hardware=hardware)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=0.05)
