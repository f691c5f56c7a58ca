"""Which optimizer updates which weights, and at which rate; and convolutions whose kernels are matrices."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim import Muon as TorchMuon

from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.device import Hardware
from vae.models.vae import VAE
from vae.training.loop import fit
from vae.training.optimizers import MUON_MAX_SIDE, MatrixMuon, make_optimizers, make_schedule

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
NETWORKS = {
    "mlp": {"hidden_dims": (201, 20), "latent_dim": 3},
    "skip": {"hidden_dims": (20, 20), "latent_dim": 3, "decoder_skip": True, "activation": "glu"},
    "mixture": {"hidden_dims": (20,), "latent_dim": 3, "prior": "gaussian_mixture", "prior_components": 4},
    "vampprior": {"hidden_dims": (20,), "latent_dim": 3, "prior": "vampprior", "prior_components": 4},
    "ladder": {"hidden_dims": (20, 10), "latent_dim": 3, "lower_latent_dim": 2},
    "conv": {
        "architecture": "conv",
        "hidden_dims": (4, 201),
        "dense_dims": (210, 20),
        "latent_dim": 3,
        "prior": "vampprior",
        "prior_components": 4,
        "lower_latent_dim": 2,
    },
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def model_of(name):
    return VAE.from_params(ModelParams(**NETWORKS[name]), 0)


def moved_by(optimizer):
    if isinstance(optimizer, MatrixMuon):
        return optimizer.weights
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def names_of(model, weights):
    wanted = set(map(id, weights))
    return {name for name, weight in model.named_parameters() if id(weight) in wanted}


@EVERY
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_every_weight_is_moved_by_exactly_one_optimizer(name, optimizer):
    model = model_of(name)
    optimizers = make_optimizers(model, TrainParams(optimizer=optimizer))
    assert [type(each) for each in optimizers] == ([Adam, MatrixMuon] if optimizer == "muon" else [Adam])
    moved = [id(weight) for each in optimizers for weight in moved_by(each)]
    assert sorted(moved) == sorted(map(id, model.parameters()))


@EVERY
def test_muon_gets_kernels_and_small_matrices_of_layers_and_adam_the_rest(name):
    model = model_of(name)
    adam, muon = make_optimizers(model, TrainParams(optimizer="muon"))
    for weight in names_of(model, moved_by(muon)):
        assert weight.endswith(".weight") and not weight.startswith("prior."), weight
    for weight in names_of(model, moved_by(adam)):
        if weight.endswith("bias") or weight.startswith("prior."):
            continue
        large = min(model.get_parameter(weight).flatten(1).shape) > MUON_MAX_SIDE
        assert large, weight


def test_muons_weights_by_name():
    assert MUON_MAX_SIDE == 200
    model = model_of("mlp")
    names = names_of(model, moved_by(make_optimizers(model, TrainParams(optimizer="muon"))[1]))
    assert names == {  # not encoder.hidden.0 and decoder.head: 201 × 784
        *("encoder.hidden.1.linear.weight", "encoder.head.weight"),
        *("decoder.hidden.0.linear.weight", "decoder.hidden.1.linear.weight"),
    }
    model = model_of("conv")
    adam, muon = (names_of(model, moved_by(each)) for each in make_optimizers(model, TrainParams(optimizer="muon")))
    assert {
        "encoder.hidden.0.weight",
        "hierarchy.inject.weight",
        "hierarchy.prior.1.weight",
        "hierarchy.posterior.4.weight",
    } < muon
    assert {"encoder.head.3.linear.weight", "encoder.head.4.weight"} < muon  # 20 × 210 and 6 × 20
    assert {"prior.pseudo_images", "decoder.output_bias", "encoder.head.2.linear.weight"} < adam  # 210 × 9,849


@EVERY
def test_a_step_of_muon_moves_every_weight(name):
    model = model_of(name)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    for optimizer in make_optimizers(model, TrainParams(optimizer="muon")):
        optimizer.step()
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_a_model_without_small_matrices_is_adams_alone():
    model = VAE(hidden_dims=[201], latent_dim=201)
    assert [type(each) for each in make_optimizers(model, TrainParams(optimizer="muon"))] == [Adam]


def test_each_optimizer_has_its_own_rate_and_both_have_the_weight_decay():
    params = TrainParams(optimizer="muon", learning_rate=2e-3, muon_learning_rate=7e-3, weight_decay=0.05)
    for optimizer, rate in zip(make_optimizers(model_of("mlp"), params), (2e-3, 7e-3), strict=True):
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (rate, 0.05)


@pytest.mark.parametrize("shape", [(12, 12), (6, 24), (24, 6)])
def test_muons_updates_are_orthogonal_and_as_large_as_adams(shape):
    """Liu et al. 2025, eq. 4: times 0.2 √max(n, m), so that the root mean square of an update is 0.2."""
    model = nn.Linear(shape[1], shape[0])
    model.weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = model.weight.detach().clone()
    _, muon = make_optimizers(model, TrainParams(optimizer="muon", muon_learning_rate=0.01))
    muon.step()
    update = (before - model.weight.detach()) / 0.01
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
    values = torch.linalg.svdvals(update) / (0.2 * math.sqrt(max(shape)))
    assert ((values > 0.6) & (values < 1.3)).all(), "Newton-Schulz brings the singular values near 1"
    assert (update * model.weight.grad).sum() > 0


def test_muon_updates_a_kernel_as_pytorchs_muon_does_its_matrix():
    """Also after the model's memory was replaced, as moving it to another device and back does."""
    kernel = nn.Parameter(torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    options = {"lr": 0.05, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = MatrixMuon([kernel], **options), TorchMuon([matrix], **options)
    for step in range(3):
        kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        theirs.step()
        assert torch.equal(kernel.flatten(1), matrix)
        kernel.data = kernel.data.clone()


# Schedules, a quarter of the way, half, three quarters, and at the end

STEPS = 40


def course(optimizer, schedule, **options):
    """The rate with which each of `STEPS` steps is taken, relative to the one that was asked for."""
    params = TrainParams(optimizer=optimizer, lr_schedule=schedule, **options)
    optimizers = make_optimizers(nn.Linear(3, 2), params)
    schedules = [make_schedule(each, params, STEPS) for each in optimizers]
    rates = []
    for _ in range(STEPS):
        rates.append([each.param_groups[0]["lr"] for each in optimizers])
        for each in (*optimizers, *schedules):
            each.step()
    asked = [params.learning_rate, params.muon_learning_rate][: len(optimizers)]
    return torch.tensor(rates, dtype=torch.float64) / torch.tensor(asked, dtype=torch.float64)


def cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(step):
    """Smith & Topin 2017, with PyTorch's shares: from 1/25 up in 30 % of the steps, then down to 1/250,000."""
    top = 0.3 * (STEPS + 1) - 1
    return cosine(1 / 25, 1, step / top) if step <= top else cosine(1, 1 / 250_000, (step - top) / (STEPS - top))


COURSES = {
    "constant": lambda step: 1.0,
    "step": lambda step: 1.0 if step < STEPS // 2 else 0.1 if step < STEPS * 3 // 4 else 0.01,
    "cosine": lambda step: cosine(1, 0, step / STEPS),
    "one_cycle": one_cycle,
}


@pytest.mark.filterwarnings("error")  # PyTorch's about the order of steps
@pytest.mark.parametrize("schedule", COURSES)
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_both_optimizers_rates_take_the_schedules_course(optimizer, schedule):
    expected = torch.tensor([COURSES[schedule](step) for step in range(STEPS)], dtype=torch.float64)
    found = course(optimizer, schedule, learning_rate=1e-3, muon_learning_rate=0.02)
    assert found.shape[1] == (2 if optimizer == "muon" else 1)
    for rates in found.T:
        torch.testing.assert_close(rates, expected, atol=1e-9, rtol=1e-9)


def test_one_cycle_leaves_adams_other_options_as_they_are():
    params = TrainParams(lr_schedule="one_cycle")
    (adam,) = make_optimizers(nn.Linear(3, 2), params)
    make_schedule(adam, params, STEPS)
    assert adam.param_groups[0]["betas"][1] == 0.999


# Training


def bars(n, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 8, 8, dtype=torch.uint8)
    images[torch.arange(n), torch.randint(0, 8, (n,), generator=generator)] = 220
    return Split(images.flatten(1), torch.zeros(n, dtype=torch.int64))


CONV_LADDER = {"architecture": "conv", "hidden_dims": (4, 6), "latent_dim": 2, "lower_latent_dim": 1}


def trained(network, rate):
    model = VAE.from_params(ModelParams(**network), 0, 64)
    model.initialize_from_data(bars(200, 0).images)
    rates = {"learning_rate": 1e-3, "muon_learning_rate": rate, "lr_schedule": "constant"}
    params = TrainParams(epochs=12, batch_size=50, optimizer="muon", **rates)
    return model, fit(model, bars(200, 0), bars(60, 1), params, CPU).history


@pytest.mark.parametrize(
    "network", [{"hidden_dims": (16, 16), "latent_dim": 2, "prior": "standard"}, CONV_LADDER], ids=["mlp", "conv"]
)
def test_muon_trains_and_repeats_itself_bit_for_bit(network):
    torch.manual_seed(1)
    model, history = trained(network, 0.03)
    torch.manual_seed(2)
    again, _ = trained(network, 0.03)
    theirs = again.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])] == []
    _, still = trained(network, 1e-30)
    assert history[-1]["val/neg_elbo"] < still[-1]["val/neg_elbo"] - 1, "the matrices must do the most of it"
    assert history[-1]["train/learning_rate"] == 1e-3
