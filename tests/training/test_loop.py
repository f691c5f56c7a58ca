import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from vae.checkpoints import Checkpoints
from vae.config import ModelParams, TrainParams
from vae.data.binarization import binarize_once, to_float
from vae.data.datasets import Split
from vae.device import Hardware, resolve
from vae.errors import ConfigError, DivergedError
from vae.models.vae import VAE
from vae.training.loop import fit, validate
from vae.training.objectives import mmd

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
SMALL = ModelParams(hidden_dims=(32,), latent_dim=4, prior="standard")


def blobs(n, seed=0):
    """Grey images, each with a bright square at a random place."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 28, 28, dtype=torch.uint8)
    for image, (row, column) in zip(images, torch.randint(0, 20, (n, 2), generator=generator).tolist(), strict=True):
        image[row : row + 8, column : column + 8] = 230
    return Split(images.flatten(1), torch.randint(0, 10, (n,), generator=generator))


TRAIN, VALIDATION = blobs(300), blobs(90, seed=1)


def train(params=None, hardware=CPU, likelihood="auto", **options):
    model = VAE.from_params(SMALL.model_copy(update={"likelihood": likelihood}), options.get("seed", 0))
    settings = {"epochs": 3, "batch_size": 64, "optimizer": "adam"} | (params or {})
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


def test_metrics_of_an_epoch_are_means_over_images_whatever_the_batches():
    model = VAE.from_params(SMALL, 0)
    mu, logvar = model.encode((TRAIN.images > 127).float())
    exact = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(1).mean().item()
    for batch_size in (299, 150):
        params = TrainParams(epochs=1, batch_size=batch_size, learning_rate=1e-30, muon_learning_rate=1e-30)
        record = fit(model, TRAIN, VALIDATION, params, CPU, binarization="threshold").history[0]
        assert record["train/kl"] == pytest.approx(exact, rel=1e-4)


def test_beta_rises_step_by_step_and_anew_in_each_cycle():
    params = {"kl_warmup_epochs": 2, "kl_cycles": 3, "beta": 2.0, "batch_size": 150}  # two steps an epoch
    _, fitted = train({"epochs": 10, "learning_rate": 1e-30} | params, binarization="threshold")
    for record, mean in zip(fitted.history, [0.75, 1.75, 2.0, 2.0] * 2 + [0.75, 1.75], strict=True):
        kl_term = record["train/loss"] - record["train/reconstruction"]
        assert kl_term == pytest.approx(mean * record["train/kl"], rel=1e-2)
    assert [record["train/beta"] for record in fitted.history] == [1.0, 2.0, 2.0, 2.0] * 2 + [1.0, 2.0]


# One epoch of one batch, with a learning rate that changes nothing

PRIORS = {
    "standard": {},
    "mixture": {"prior": "gaussian_mixture", "prior_components": 3},
    "vampprior": {"prior": "vampprior", "prior_components": 3},
}
SAMPLES = 3


def model_with(prior):
    """A model whose posteriors differ from the prior and from each other."""
    model = VAE.from_params(SMALL.model_copy(update=PRIORS[prior]), 0)
    model.initialize_from_data(TRAIN.images)
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model


def normal(mu, logvar):
    return Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)


def log_prior(model, z):
    """log p(z), by torch.distributions alone."""
    if model.params.prior == "standard":
        return normal(torch.zeros(z.shape[-1]), torch.zeros(z.shape[-1])).log_prob(z)
    mu, logvar, log_weight = model.prior.components()
    return MixtureSameFamily(Categorical(logits=log_weight), normal(mu, logvar)).log_prob(z)


def terms_on(model, x, generator, samples):
    """Posteriors and samples z; and of each sample, by torch.distributions, −log p(x|z), log q(z|x) − log p(z) and KL.

    The KL is exact for the standard normal prior; for mixtures, log p(z) in it is that of the sample.
    """
    noise = torch.randn(len(x), samples, model.noise_dim, generator=generator)
    mu, logvar = (part[:, None] for part in model.encode(x))
    z = mu + torch.exp(0.5 * logvar) * noise
    nll = -Independent(Bernoulli(logits=model.decode(z)), 1).log_prob(x[:, None].expand(-1, samples, -1))
    ratio = normal(mu, logvar).log_prob(z) - log_prior(model, z)
    if model.params.prior == "standard":
        kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(-1)
    else:
        kl = -normal(mu, logvar).entropy() - log_prior(model, z)
    return (mu, logvar, z), nll, ratio, kl


def first_batch(seed=0):
    """The first batch of `fit`, and the generator after it."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(TRAIN), generator=generator)
    return (TRAIN.images[order] > 127).float(), generator


def first_epoch(model, **params):
    """The record of one epoch that leaves the weights unchanged."""
    fixed = TrainParams(**{"epochs": 1, "batch_size": len(TRAIN), "learning_rate": 1e-30, "optimizer": "adam"} | params)
    return fit(model, TRAIN, VALIDATION, fixed, CPU, binarization="threshold").history[0]


def test_free_bits_and_mmd_are_in_the_loss():
    model = model_with("standard")
    record = first_epoch(model, beta=0.7, importance_samples=SAMPLES, free_bits=0.2, mmd=500.0)
    with torch.no_grad():
        x, generator = first_batch()
        (mu, logvar, z), nll, _, _ = terms_on(model, x, generator, SAMPLES)
        kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).mean((0, 1))
        floored = torch.maximum(kl, torch.tensor(0.2)).sum()
        distance = 500 * mmd(z[:, 0], torch.randn(len(TRAIN), 4, generator=generator))
    assert floored > kl.sum() + 0.01, "a dimension must be below the floor"
    assert distance > 1
    assert record["train/kl"] == pytest.approx(kl.sum().item(), rel=1e-4)
    assert record["train/loss"] == pytest.approx((nll.mean() + 0.7 * floored + distance).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("samples", [1, SAMPLES])
@pytest.mark.parametrize(
    "objective", [{}, {"objective": "iwae"}, {"objective": "iwae", "doubly_reparameterized": True}]
)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_loss_is_that_of_the_formula(prior, samples, objective, beta):
    """ELBO: −log p(x|z) + β KL. Importance-weighted bound: −log (1/K) Σ_k p(x|z_k) (p(z_k)/q(z_k|x))^β."""
    model = model_with(prior)
    with torch.enable_grad():
        record = first_epoch(model, importance_samples=samples, beta=beta, **objective)
    _, nll, ratio, kl = terms_on(model, *first_batch(), samples)
    if objective:
        kl, loss = ratio, -(-nll - beta * ratio).double().exp().mean(1).log().mean()
    else:
        assert abs(kl.mean() - ratio.mean()) > 1e-4, "the closed form must differ from the sampled one"
        loss = (nll + beta * kl).mean()
    assert record["train/reconstruction"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert record["train/kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert record["train/neg_elbo"] == pytest.approx(record["train/reconstruction"] + record["train/kl"])
    assert record["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("prior", ["standard", "vampprior"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_doubly_reparameterized_gradient_is_that_of_the_formula(prior, beta):
    """Decoder and prior: Σ w̃ ∂log w; encoder: Σ ((1 − β) w̃ + β w̃²) ∂log w/∂z ∂z/∂φ.

    The gradient of the encoder through a VampPrior is of the first kind.
    """
    model = model_with(prior)
    names, parameters = zip(*model.named_parameters(), strict=True)
    x, generator = first_batch()
    (mu, logvar, z), nll, ratio, _ = terms_on(model, x, generator, SAMPLES)
    weights = (-nll - beta * ratio).detach().softmax(1)
    share = (1 - beta) * weights + beta * weights.square()
    free = z.detach().requires_grad_()
    log_weights = Independent(Bernoulli(logits=model.decode(free)), 1).log_prob(x[:, None].expand(-1, SAMPLES, -1))
    log_q = normal(mu.detach(), logvar.detach()).log_prob(free)
    log_weights = log_weights + beta * (log_prior(model, free) - log_q)
    usual = torch.autograd.grad((weights * log_weights).sum(), parameters, retain_graph=True, allow_unused=True)
    (slope,) = torch.autograd.grad(log_weights.sum(), free)
    through_z = torch.autograd.grad((share[..., None] * slope * z).sum(), parameters, allow_unused=True)

    objective = {"objective": "iwae", "importance_samples": SAMPLES, "doubly_reparameterized": True, "beta": beta}
    params = TrainParams(epochs=1, batch_size=len(TRAIN), **objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, TRAIN, VALIDATION, params, CPU, binarization="threshold", optimizer=optimizer)
    for name, parameter, *parts in zip(names, parameters, usual, through_z, strict=True):
        expected = -sum(part for part in parts if part is not None) / len(TRAIN)
        assert (parameter.grad - expected).norm() < 1e-4 * expected.norm(), name


@torch.no_grad()
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("samples", [1, 20])
def test_validation_is_that_of_torch_distributions_at_beta_one(prior, samples):
    model = model_with(prior)
    targets = (VALIDATION.images > 127).to(torch.uint8) * 255
    metrics = validate(model, targets, CPU, importance_samples=samples)
    generator = torch.Generator().manual_seed(0)
    bounds, nlls, kls = [], [], []
    for batch in to_float(targets).split(1024 // samples):
        _, nll, ratio, kl = terms_on(model, batch, generator, samples)
        bounds.append((-nll - ratio).double().exp().mean(1).log())
        nlls.append(nll)
        kls.append(kl.expand(len(batch), samples))
    assert metrics["neg_bound"] == pytest.approx(-torch.cat(bounds).mean().item(), rel=1e-5)
    assert metrics["reconstruction"] == pytest.approx(torch.cat(nlls).mean().item(), rel=1e-5)
    assert metrics["kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4)
    assert metrics["neg_elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"])
    if samples == 1:
        del metrics["neg_bound"]
        assert validate(model, targets, CPU) == metrics


@pytest.mark.parametrize(("objective", "best"), [("elbo", 3), ("iwae", 2)])
def test_the_best_epoch_is_chosen_by_the_objectives_own_metric(objective, best, monkeypatch):
    metrics = iter(
        {"neg_elbo": neg_elbo, "neg_bound": neg_bound}
        for neg_elbo, neg_bound in [(9.0, 8.0), (7.0, 5.0), (6.0, 5.5), (6.5, 7.0)]
    )
    monkeypatch.setattr("vae.training.loop.validate", lambda *_: next(metrics))
    _, fitted = train({"epochs": 4, "objective": objective, "importance_samples": 2})
    assert fitted.best_epoch == best
    assert [record["improved"] for record in fitted.history] == [int(epoch <= best) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "network",
    [{"prior": "gaussian_mixture"}, {"prior": "realnvp"}, {"prior": "vampprior", "lower_latent_dims": (2,)}],
    ids=str,
)
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_other_priors_and_layers_learn_too(network, objective):
    model = VAE.from_params(SMALL.model_copy(update={"prior_components": 3} | network), 0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    params = TrainParams(epochs=8, batch_size=64, optimizer="adam", objective=objective, importance_samples=2)
    history = fit(model, TRAIN, VALIDATION, params, CPU).history
    assert history[-1]["val/neg_elbo"] < 0.7 * history[0]["val/neg_elbo"]
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("network", "params", "message"),
    [
        ({"prior": "gaussian_mixture"}, {"free_bits": 0.1}, "free_bits requires a KL per dimension"),
        (
            {"lower_latent_dims": (2,)},
            {"objective": "iwae", "doubly_reparameterized": True},
            "doubly_reparameterized requires a model without lower_latent_dims",
        ),
    ],
)
def test_params_that_do_not_fit_the_model_are_refused_and_leave_it_unchanged(network, params, message):
    model = VAE.from_params(SMALL.model_copy(update=network), 0)
    before = weights(model)
    with pytest.raises(ConfigError, match=rf"^train\.{message}[^\n]*$"):
        fit(model, TRAIN, VALIDATION, TrainParams(**params), CPU)
    assert torch.equal(weights(model), before)


def test_the_mmd_term_pulls_the_aggregate_posterior_to_the_prior():
    distances = []
    for weight in (0.0, 2000.0):
        model, _ = train({"epochs": 20, "beta": 0.0, "mmd": weight})
        with torch.no_grad():
            mu, logvar = model.encode(to_float(binarize_once(TRAIN.images, "dynamic")))
            noise, prior = torch.randn(2, *mu.shape, generator=torch.Generator().manual_seed(0))
            distances.append(mmd(model.reparameterize(mu, logvar, noise), prior).item())
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    ("objective", "metric", "samples"),
    [({}, "neg_elbo", 0), ({"objective": "iwae", "importance_samples": 4}, "neg_bound", 4)],
    ids=["elbo", "iwae"],
)
def test_the_best_epochs_weights_are_kept_and_patience_stops_the_training(objective, metric, samples):
    """With a learning rate that is far too high, the model first gets better, then worse."""
    params = {"epochs": 60, "learning_rate": 0.03, "early_stopping_patience": 2, "batch_size": 16}
    model, fitted = train(params | objective)
    scores = [record[f"val/{metric}"] for record in fitted.history]
    assert len(scores) < 60
    assert fitted.best_epoch == len(scores) - 2 == scores.index(min(scores)) + 1
    targets = binarize_once(VALIDATION.images, "dynamic")
    assert validate(model, targets, CPU, samples)[metric] == pytest.approx(min(scores), rel=1e-5)


def test_the_moving_average_is_what_callbacks_see_and_what_is_kept():
    """With one step an epoch, the weights of each step are known from a training without the average."""

    def weights_by_epoch(**params):
        steps = []
        options = {"epochs": 5, "batch_size": 300} | params
        model = VAE.from_params(SMALL, 0)
        fitted = fit(
            model, TRAIN, VALIDATION, TrainParams(**options), CPU, on_epoch=lambda _: steps.append(weights(model))
        )
        return steps, weights(model), fitted.best_epoch

    steps, _, _ = weights_by_epoch()
    averages, kept, best = weights_by_epoch(ema_decay=0.7)
    expected = steps[0]
    for step, average in zip(steps, averages, strict=True):
        expected = 0.7 * expected + 0.3 * step
        torch.testing.assert_close(average, expected)
    assert torch.equal(kept, averages[best - 1])


def test_the_first_epochs_are_those_of_the_elbo_and_the_others_those_of_the_bound():
    elbo, bound = {"objective": "elbo"}, {"objective": "iwae", "importance_samples": 30}
    options = {"epochs": 4, "learning_rate": 1e-12, "lr_schedule": "constant"}  # so that the loss alone changes
    first, second, both = (train(options | each)[1].history for each in (elbo, bound, bound | {"elbo_epochs": 2}))
    losses = [[record["train/loss"] for record in history] for history in (first, second, both)]
    assert losses[2][:2] == losses[0][:2]
    assert losses[2][2:] == pytest.approx(losses[1][2:], abs=0.5)  # other noise
    assert max(losses[1]) < min(losses[0]) - 2
    assert all("val/neg_bound" in record for record in both)


def test_clipping_bounds_the_norm_of_the_gradient():
    def norm(**params):
        model = VAE.from_params(SMALL, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        fit(model, TRAIN, VALIDATION, TrainParams(epochs=1, **params), CPU, optimizer=optimizer)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()

    assert norm() > 1
    assert norm(max_grad_norm=0.5) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "none"])
def test_the_model_sees_every_image_once_an_epoch_binarized_as_configured(binarization, monkeypatch):
    seen = []
    encode = VAE.encode

    def spy(self, x):
        if self.training:
            seen.append(x.clone())
        return encode(self, x)

    monkeypatch.setattr(VAE, "encode", spy)
    likelihood = "discretized_logistic" if binarization == "none" else "bernoulli"
    train({"epochs": 2}, binarization=binarization, likelihood=likelihood)
    first, second = (sorted(epoch.tolist()) for epoch in torch.cat(seen).split(len(TRAIN)))
    values = torch.cat(seen).unique().tolist()
    assert values == pytest.approx([0.0, 230 / 255] if binarization == "none" else [0.0, 1.0])
    assert (first == second) == (binarization != "dynamic")
    if binarization == "none":
        assert first == sorted(to_float(TRAIN.images).tolist())


def test_a_loss_that_stops_being_finite_names_epoch_step_and_term_and_keeps_the_callback_clean():
    seen = []
    with pytest.raises(DivergedError, match=r"epoch 1, step \d of 5: .*(reconstruction|KL).*learning_rate") as caught:
        train({"learning_rate": 1e9}, on_epoch=seen.append)
    assert seen == []
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(resolve(TrainParams(device="cpu")).precision != "bf16", reason="this CPU has no bf16 hardware")
def test_bf16_trains_to_about_the_same_figures():
    half = Hardware(torch.device("cpu"), "bf16", compile=False)
    _, reference = train({"epochs": 5})
    model, fitted = train({"epochs": 5}, hardware=half)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=0.03)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


OBJECTIVES = {
    "elbo": {},
    "mmd, free bits": {"mmd": 1.0, "free_bits": 0.1},
    "iwae": {"objective": "iwae", "importance_samples": 3},
    "DReG": {"objective": "iwae", "importance_samples": 3, "doubly_reparameterized": True, "beta": 0.5},
}
COMPILED = Hardware(torch.device("cpu"), "fp32", compile=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_training_step_is_one_graph(objective, monkeypatch):
    """Compiled with fullgraph=True, and without Inductor, which takes seconds, it gives the same weights."""
    compile_ = torch.compile
    monkeypatch.setattr(
        "vae.training.loop.torch.compile",
        lambda step, mode, dynamic: compile_(step, dynamic=dynamic, fullgraph=True, backend="aot_eager"),
    )
    params = {"epochs": 1, "batch_size": 300} | OBJECTIVES[objective]
    (model, _), (reference, _) = train(params, hardware=COMPILED), train(params)
    torch.testing.assert_close(weights(model), weights(reference), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_ninth_model_of_a_process_is_compiled_too(monkeypatch):
    """PyTorch compiles at most 8 variants of a function, and silently runs further ones eagerly.

    Each model is compiled once, for batches of 200: the last one of an epoch, with 100 images, runs eagerly.
    """
    graphs, compile_ = [], torch.compile

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("vae.training.loop.torch.compile", lambda step, **_: compile_(step, backend=backend))
    for latents in range(1, 11):
        model = VAE.from_params(SMALL.model_copy(update={"latent_dim": latents}), 0)
        fit(model, TRAIN, VALIDATION, TrainParams(epochs=2, batch_size=200), COMPILED)
        assert len(graphs) == latents


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_trains_to_the_same_metrics():
    params = {"epochs": 2, "batch_size": 100} | OBJECTIVES["DReG"]
    (_, fitted), (_, reference) = train(params, hardware=COMPILED), train(params)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_training_resumes_bit_for_bit(tmp_path):
    def interrupt(record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    whole, fitted = train({"epochs": 4}, hardware=COMPILED)
    with pytest.raises(KeyboardInterrupt):
        train({"epochs": 4}, hardware=COMPILED, on_epoch=interrupt, checkpoints=Checkpoints(tmp_path))
    resumed, continued = train({"epochs": 4}, hardware=COMPILED, checkpoints=Checkpoints(tmp_path))
    assert torch.equal(weights(resumed), weights(whole))
    assert continued.history[3]["val/neg_elbo"] == fitted.history[3]["val/neg_elbo"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_second_process_finds_the_compiled_step_in_the_cache(tmp_path):
    program = (
        "import torch\nfrom torch._dynamo.utils import counters\nfrom vae import VAE, VAETrainer\n"
        "from vae.data.datasets import Split\n"
        "images = Split(torch.zeros(64, 784, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64))\n"
        "model = VAE(784, hidden_dims=[8], latent_dim=2)\n"
        "trainer = VAETrainer(model, 'cpu', compile=True, batch_size=32, precision='fp32', optimizer='adam')\n"
        "trainer.train(images, images, 1, progress=False)\n"
        "print(counters['inductor']['fxgraph_cache_miss'], counters['inductor']['fxgraph_cache_hit'])"
    )
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    first, second = (subprocess.check_output(command, env=environment, text=True).split() for _ in range(2))
    assert int(first[0]) > 0 and first[1] == "0"
    assert second == ["0", first[0]]


def test_training_computes_in_full_fp32_and_restores_the_setting():
    inside = []
    torch.set_float32_matmul_precision("high")
    try:
        train(
            {"epochs": 1},
            on_epoch=lambda _: inside.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)),
        )
        assert inside == [("highest", False)]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# Networks that learn nothing


def test_a_model_no_better_than_the_mean_image_warns_once():
    model = VAE.from_params(SMALL, 0)
    model.initialize_from_data(TRAIN.images)
    params = TrainParams(epochs=6, learning_rate=1e-30, kl_warmup_epochs=3)
    warned = {}
    with pytest.warns(UserWarning, match="no better than that of the data's mean image.*kl_warmup_epochs") as caught:
        fit(
            model, TRAIN, VALIDATION, params, CPU, on_epoch=lambda record: warned.update({record["epoch"]: len(caught)})
        )
    assert warned == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 6: 1}
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_a_model_that_learns_does_not_warn():
    model = VAE.from_params(SMALL, 0)
    model.initialize_from_data(TRAIN.images)
    fit(model, TRAIN, VALIDATION, TrainParams(epochs=20, batch_size=16, learning_rate=1e-2), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_trains_with_its_automatic_settings():
    hardware = resolve(TrainParams(device="cuda"))
    assert hardware.compile
    _, reference = train({"epochs": 5})
    _, fitted = train({"epochs": 5}, hardware=hardware)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=0.05)


@pytest.mark.parametrize(
    ("likelihood", "binarization", "reason"),
    [
        ("auto", "none", "'bernoulli' requires black-and-white images"),
        ("discretized_logistic", "threshold", "requires grey or colour values: data.binarization 'none'"),
    ],
)
def test_a_likelihood_of_other_images_is_refused(likelihood, binarization, reason):
    with pytest.raises(ConfigError, match=reason):
        train(binarization=binarization, likelihood=likelihood)


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_logistic"])
def test_grey_images_are_learned_by_each_likelihood_for_them(likelihood):
    model, fitted = train({"epochs": 12, "learning_rate": 1e-2}, binarization="none", likelihood=likelihood)
    curve = [record["val/neg_elbo"] for record in fitted.history]
    assert min(curve) < curve[0] - 200
    x = to_float(VALIDATION.images)
    errors = [(images - x).square().mean() for images in (model.reconstruct(x), x.mean(0))]
    assert errors[0] < 0.8 * errors[1]
