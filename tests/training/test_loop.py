import math
import shutil

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

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
    _, fitted = train({"beta": 3.0})
    for record in fitted.history:
        assert record["train/beta"] == 3.0
        assert record["train/loss"] == pytest.approx(record["train/reconstruction"] + 3 * record["train/kl"], rel=1e-4)


def test_beta_rises_step_by_step_and_anew_in_each_cycle(monkeypatch):
    seen = []

    def spy(terms, params, beta):
        seen.append(beta.item())
        return terms.nll.mean() + beta * terms.kl.sum(1).mean()

    monkeypatch.setattr("vae.training.loop._loss", spy)
    _, fitted = train({"epochs": 10, "kl_warmup_epochs": 2, "kl_cycles": 3, "beta": 2.0, "batch_size": 150})
    cycle = [0.5, 1.0, 1.5, 2.0] + [2.0] * 4  # two steps an epoch
    assert seen == cycle * 2 + cycle[:4]
    assert [record["train/beta"] for record in fitted.history] == [1.0, 2.0, 2.0, 2.0] * 2 + [1.0, 2.0]


# One epoch of one batch, with a learning rate too small to change anything

PRIORS = {
    "standard": {},
    "mixture": {"prior": "gaussian_mixture", "prior_components": 3},
    "vampprior": {"prior": "vampprior", "prior_components": 3},
    "lower": {"lower_latent_dim": 2},
    "lower vampprior": {"prior": "vampprior", "prior_components": 3, "lower_latent_dim": 2},
    "lower conv": {"architecture": "conv", "hidden_dims": (3, 4), "lower_latent_dim": 1},
}
SAMPLES = 3


def model_with(prior, seed=0):
    """A model with posteriors that differ from the prior, and from each other."""
    model = VAE.from_params(SMALL.model_copy(update=PRIORS[prior]), seed)
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


def decoded(model, x, z, noise):
    """Logits [B, K, D] and a second layer's log q(y|x, z) − log p(y|z) and KL, [B, K], a sample at a time."""
    if model.hierarchy is None:
        return model.decode(z), torch.zeros(()), torch.zeros(())
    samples = []
    for z_k, noise_k in zip(z.unbind(1), noise.unbind(1), strict=True):
        h = model.decoder.start(z_k)
        p_mu, p_logvar = model.hierarchy.prior(h).chunk(2, 1)
        shift, log_scale = model.hierarchy.posterior(torch.cat([model.encoder.features(x), h], 1)).chunk(2, 1)
        p = Normal(p_mu, torch.exp(0.5 * p_logvar))
        q = Normal(p_mu + shift, torch.exp(0.5 * (p_logvar + log_scale)))
        y = q.mean + q.stddev * noise_k.view_as(p_mu)
        logits = model.decoder.finish(h + model.hierarchy.inject(y), z_k)
        ratio = (q.log_prob(y) - p.log_prob(y)).flatten(1).sum(1)
        samples.append((logits, ratio, kl_divergence(q, p).flatten(1).sum(1)))
    return tuple(torch.stack(part, 1) for part in zip(*samples, strict=True))


def terms_on(model, x, samples, generator):
    """Posteriors and draws z [B, K, L]; −log p(x|·), the sampled log q − log p of all latents, and the KL, the prior's
    part of a mixture's at the draws: [B, K] each."""
    noise = torch.randn(len(x), samples, model.noise_dim, generator=generator)
    latents = model.params.latent_dim
    mu, logvar = (part[:, None] for part in model.encode(x))
    z = mu + torch.exp(0.5 * logvar) * noise[..., :latents]
    logits, lower_ratio, lower_kl = decoded(model, x, z, noise[..., latents:])
    nll = -Independent(Bernoulli(logits=logits), 1).log_prob(x[:, None].expand(-1, samples, -1))
    ratio = normal(mu, logvar).log_prob(z) - log_prior(model, z)
    if model.params.prior == "standard":
        kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(-1)
    else:
        kl = -normal(mu, logvar).entropy() - log_prior(model, z)
    return (mu, logvar, z), nll, ratio + lower_ratio, kl + lower_kl


def terms_of(model, samples, seed=0):
    """`terms_on` the first batch of `fit`, and what is left of the generator."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(TRAIN), generator=generator)
    x = (TRAIN.images[order] > 127).float()
    return *terms_on(model, x, samples, generator), generator


def first_epoch(model, seed=0, **params):
    """The record of an epoch that changes nothing."""
    fixed = TrainParams(**{"epochs": 1, "batch_size": len(TRAIN), "learning_rate": 1e-30} | params)
    return fit(model, TRAIN, VALIDATION, fixed, CPU, binarization="threshold", seed=seed).history[0]


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("samples", [1, SAMPLES])
def test_the_elbos_loss_is_the_mean_over_images_and_samples(prior, samples):
    model = model_with(prior)
    record = first_epoch(model, beta=0.7, importance_samples=samples)
    with torch.no_grad():
        _, nll, ratio, kl, _ = terms_of(model, samples)
    assert abs(kl.mean() - ratio.mean()) > 1e-4, "the closed form must differ from the sampled one"
    assert record["train/reconstruction"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert record["train/kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert record["train/neg_elbo"] == pytest.approx(record["train/reconstruction"] + record["train/kl"])
    assert record["train/loss"] == pytest.approx((nll.mean() + 0.7 * kl.mean()).item(), rel=1e-5)


def test_free_bits_hold_up_each_dimensions_mean_and_mmd_is_added_to_the_loss():
    model = model_with("standard")
    record = first_epoch(model, beta=0.7, importance_samples=SAMPLES, free_bits=0.2, mmd=500.0)
    with torch.no_grad():
        (mu, logvar, z), nll, _, _, generator = terms_of(model, SAMPLES)
        kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).mean((0, 1))
        prior = torch.randn(len(TRAIN), 4, generator=generator)
        floored = torch.maximum(kl, torch.tensor(0.2)).sum()
        distance = 500 * mmd(z[:, 0], prior)
    assert floored > kl.sum() + 0.01, "a dimension must be below the floor"
    assert distance > 1
    assert record["train/kl"] == pytest.approx(kl.sum().item(), rel=1e-4)
    assert record["train/loss"] == pytest.approx((nll.mean() + 0.7 * floored + distance).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("prior", "doubly"),
    [*((prior, False) for prior in PRIORS), ("standard", True), ("mixture", True), ("vampprior", True)],
)
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_importance_weighted_loss_is_the_formulas(prior, beta, doubly):
    """−log (1/K) Σ_k p(x|z_k) (p(z_k)/q(z_k|x))^β, averaged over images; β = 1 is eq. 8 of Burda et al. 2016."""
    model = model_with(prior)
    record = first_epoch(model, objective="iwae", importance_samples=SAMPLES, beta=beta, doubly_reparameterized=doubly)
    with torch.no_grad():
        _, nll, ratio, _, _ = terms_of(model, SAMPLES)
        weights = torch.exp((-nll - beta * ratio).double())
        loss = -weights.mean(1).log().mean()
    assert record["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["train/reconstruction"] == pytest.approx(nll.mean().item(), rel=1e-5)
    assert record["train/kl"] == pytest.approx(ratio.mean().item(), rel=1e-4)
    assert record["train/loss"] < nll.mean().item() + beta * ratio.mean().item()


@pytest.mark.parametrize("prior", ["standard", "vampprior"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_a_doubly_reparameterized_step_goes_where_the_formula_says(prior, beta):
    """Decoder and prior: Σ w̃ ∂log w; encoder: Σ ((1 − β) w̃ + β w̃²) ∂log w/∂z ∂z/∂φ, with log w by torch.distributions.

    A VampPrior's part of the encoder is of the first kind.
    """
    model = model_with(prior)
    names, parameters = zip(*model.named_parameters(), strict=True)
    (mu, logvar, z), nll, ratio, _, _ = terms_of(model, SAMPLES)
    weights = (-nll - beta * ratio).detach().softmax(1)
    share = (1 - beta) * weights + beta * weights.square()
    x = (TRAIN.images[torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))] > 127).float()
    free = z.detach().requires_grad_()
    log_weights = Independent(Bernoulli(logits=model.decode(free)), 1).log_prob(x[:, None].expand(-1, SAMPLES, -1))
    log_q = normal(mu.detach(), logvar.detach()).log_prob(free)
    log_weights = log_weights + beta * (log_prior(model, free) - log_q)
    usual = torch.autograd.grad((weights * log_weights).sum(), parameters, retain_graph=True, allow_unused=True)
    (slope,) = torch.autograd.grad(log_weights.sum(), free)
    through_z = torch.autograd.grad((share[..., None] * slope * z).sum(), parameters, allow_unused=True)

    params = TrainParams(
        epochs=1,
        batch_size=len(TRAIN),
        objective="iwae",
        importance_samples=SAMPLES,
        beta=beta,
        doubly_reparameterized=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fit(model, TRAIN, VALIDATION, params, CPU, binarization="threshold", optimizer=optimizer)
    for name, parameter, *parts in zip(names, parameters, usual, through_z, strict=True):
        expected = -sum(part for part in parts if part is not None) / len(TRAIN)
        assert (parameter.grad - expected).norm() < 1e-4 * expected.norm(), name
    assert any(part is None for part in usual) == (prior == "standard")


@pytest.mark.parametrize("prior", ["standard", "mixture", "lower"])
def test_one_importance_sample_has_the_elbos_loss_on_average(prior):
    model = model_with(prior)
    one_each = [
        first_epoch(model, seed=seed, objective="iwae")["train/loss"] - first_epoch(model, seed=seed)["train/loss"]
        for seed in range(40)
    ]
    differences = torch.tensor(one_each)
    assert 0 < differences.std() < 1
    assert abs(differences.mean()) < 4 * differences.std() / math.sqrt(len(one_each))


@torch.no_grad()
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("samples", [1, 20])
def test_validation_of_the_bound_is_that_of_torch_distributions(prior, samples):
    model = model_with(prior)
    targets = (VALIDATION.images > 127).to(torch.uint8) * 255
    figures = validate(model, targets, CPU, importance_samples=samples)
    generator = torch.Generator().manual_seed(0)
    bounds, nlls, kls = [], [], []
    for batch in to_float(targets).split(1024 // samples):
        _, nll, ratio, kl = terms_on(model, batch, samples, generator)
        bounds.append((-nll - ratio).double().exp().mean(1).log())
        nlls.append(nll)
        kls.append(kl.expand(len(batch), samples))
    assert figures["neg_bound"] == pytest.approx(-torch.cat(bounds).mean().item(), rel=1e-5)
    assert figures["reconstruction"] == pytest.approx(torch.cat(nlls).mean().item(), rel=1e-5)
    assert figures["kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4)
    assert figures["neg_elbo"] == pytest.approx(figures["reconstruction"] + figures["kl"])
    assert samples == 1 or figures["neg_bound"] < figures["neg_elbo"]
    assert "neg_bound" not in validate(model, targets, CPU)


def test_with_the_importance_weighted_objective_the_best_epoch_has_the_best_bound():
    params = {"objective": "iwae", "importance_samples": 4, "epochs": 60, "learning_rate": 0.03, "batch_size": 16}
    model, fitted = train(params | {"early_stopping_patience": 2})
    bounds = [record["val/neg_bound"] for record in fitted.history]
    assert len(bounds) < 60
    assert fitted.best_epoch == len(bounds) - 2 == bounds.index(min(bounds)) + 1
    targets = binarize_once(VALIDATION.images, "dynamic")
    assert validate(model, targets, CPU, 4)["neg_bound"] == pytest.approx(min(bounds), rel=1e-5)
    assert all(record["val/neg_bound"] <= record["val/neg_elbo"] for record in fitted.history)


@pytest.mark.parametrize(("objective", "best"), [("elbo", 3), ("iwae", 2)])
def test_the_best_epoch_is_chosen_by_the_objectives_own_figure(objective, best, monkeypatch):
    figures = iter([(9.0, 8.0), (7.0, 5.0), (6.0, 5.5), (6.5, 7.0)])

    def prepared(*arguments):
        neg_elbo, neg_bound = next(figures)
        return {"neg_elbo": neg_elbo, "neg_bound": neg_bound}

    monkeypatch.setattr("vae.training.loop.validate", prepared)
    _, fitted = train({"epochs": 4, "objective": objective, "importance_samples": 2})
    assert fitted.best_epoch == best
    assert [record["improved"] for record in fitted.history] == [int(epoch <= best) for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize("prior", ["mixture", "vampprior", "lower", "lower vampprior"])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_other_priors_and_layers_learn_too(prior, objective):
    model = VAE.from_params(SMALL.model_copy(update=PRIORS[prior]), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    params = TrainParams(epochs=8, batch_size=64, learning_rate=3e-3, objective=objective, importance_samples=2)
    history = fit(model, TRAIN, VALIDATION, params, CPU).history
    assert history[-1]["val/neg_elbo"] < 0.7 * history[0]["val/neg_elbo"]
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("prior", "params", "message"),
    [
        ("vampprior", {"free_bits": 0.1}, "free_bits"),
        ("mixture", {"free_bits": 0.1}, "free_bits"),
        ("lower", {"free_bits": 0.1}, "free_bits"),
        ("lower", {"objective": "iwae", "doubly_reparameterized": True}, "doubly_reparameterized"),
    ],
)
def test_a_model_that_cannot_be_trained_so_is_refused(prior, params, message):
    with pytest.raises(ConfigError, match=rf"^train\.{message} .*$") as caught:
        fit(model_with(prior), TRAIN, VALIDATION, TrainParams(**params), CPU)
    assert "\n" not in str(caught.value)


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
    monkeypatch.setattr("vae.training.loop.torch.randn", lambda *a, **options: drawn.append(a) or randn(*a, **options))
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
        train({"learning_rate": 1e9}, on_epoch=seen.append)
    assert seen == []
    assert "\n" not in str(caught.value)


def test_all_images_are_seen_once_an_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr("vae.data.batches.to_float", lambda images: seen.append(images) or to_float(images))
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


OBJECTIVES = {
    "elbo": {},
    "mmd, free bits": {"mmd": 1.0, "free_bits": 0.1},
    "iwae": {"objective": "iwae", "importance_samples": 3},
    "DReG": {"objective": "iwae", "importance_samples": 3, "doubly_reparameterized": True, "beta": 0.5},
}
COMPILED = Hardware(torch.device("cpu"), "fp32", compile=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_training_step_is_one_graph(objective, monkeypatch):
    """Compiled without a graph break, and without Inductor, which takes seconds, it has the same history."""
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
    """PyTorch keeps 8 variants of a function, and runs further ones eagerly."""
    sizes, compile_ = [], torch.compile

    def backend(graph, inputs):
        sizes.append(inputs)
        return graph.forward

    monkeypatch.setattr("vae.training.loop.torch.compile", lambda step, **_: compile_(step, backend=backend))
    for latents in range(1, 11):
        model = VAE.from_params(SMALL.model_copy(update={"latent_dim": latents}), 0)
        fit(model, TRAIN, VALIDATION, TrainParams(epochs=1, batch_size=300), COMPILED)
        assert len(sizes) == latents


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_trains_to_the_same_metrics():
    params = {"epochs": 2, "batch_size": 100} | OBJECTIVES["DReG"]
    (_, fitted), (_, reference) = train(params, hardware=COMPILED), train(params)
    assert fitted.best["val/neg_elbo"] == pytest.approx(reference.best["val/neg_elbo"], rel=1e-3)


def test_training_leaves_no_reduced_fp32_precision_behind():
    inside = []

    def record(_):
        inside.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    torch.set_float32_matmul_precision("high")
    try:
        train({"epochs": 1}, on_epoch=record)
        assert inside == [("highest", False)]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# Networks that learn nothing


def test_a_model_no_better_than_the_mean_image_warns_once():
    model = VAE.from_params(SMALL, 0)
    model.initialize_from_data(TRAIN.images)
    params = TrainParams(epochs=6, learning_rate=1e-30, kl_warmup_epochs=3)
    epochs = []
    with pytest.warns(UserWarning, match="no better than that of the data's mean image.*kl_warmup_epochs") as caught:
        fit(
            model, TRAIN, VALIDATION, params, CPU, on_epoch=lambda record: epochs.append((record["epoch"], len(caught)))
        )
    assert len(caught) == 1
    assert epochs == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 1)]
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
