"""Which optimizer updates which weights, by how much, and with which learning-rate schedule."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Muon as TorchMuon

from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.device import Hardware
from vae.models.vae import VAE
from vae.training.loop import fit
from vae.training.optimizers import MatrixMuon, make_optimizers, make_schedule

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
NETWORKS = {
    "mlp": {"hidden_dims": (201, 20), "latent_dim": 3, "prior": "gaussian_mixture", "prior_components": 4},
    "ladder": {"hidden_dims": (20, 10), "latent_dim": 3, "lower_latent_dims": (2,), "decoder_skip": True},
    "conv": {
        "architecture": "conv",
        "hidden_dims": (4, 201),
        "dense_dims": (210, 20),
        "latent_dim": 3,
        "prior": "vampprior",
        "prior_components": 4,
        "lower_latent_dims": (2,),
    },
}


def model_of(name):
    return VAE.from_params(ModelParams(**NETWORKS[name]), 0)


def names_of(model, weights):
    names = {id(weight): name for name, weight in model.named_parameters()}
    return sorted(names[id(weight)] for weight in weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_muon_updates_kernels_and_small_matrices_of_layers_and_adam_the_rest(name):
    model = model_of(name)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    layers = {name for name in before if name.endswith(".weight") and not name.startswith("prior.")}
    small = {name for name in layers if min(before[name].flatten(1).shape) <= 200}
    assert len(small) >= 3 and before.keys() - small, "both optimizers must have weights"

    adam, muon = make_optimizers(model, TrainParams(optimizer="muon", weight_decay=0.05))

    assert adam.param_groups[0]["weight_decay"] == muon.param_groups[0]["weight_decay"] == 0.05
    assert names_of(model, muon.weights) == sorted(small)
    assert names_of(model, adam.param_groups[0]["params"]) == sorted(before.keys() - small)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    adam.step()
    muon.step()
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


@pytest.mark.parametrize(
    ("optimizer", "network"), [("adam", NETWORKS["conv"]), ("muon", {"hidden_dims": (201,), "latent_dim": 201})]
)
def test_adam_alone_updates_every_weight_if_chosen_or_if_no_matrix_is_small(optimizer, network):
    model = VAE.from_params(ModelParams(**{"prior": "standard"} | network), 0)
    (adam,) = make_optimizers(model, TrainParams(optimizer=optimizer))
    assert names_of(model, adam.param_groups[0]["params"]) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("shape", [(12, 12), (6, 24), (24, 6)])
def test_muons_updates_are_as_large_as_adams(shape):
    """Liu et al. 2025, eq. 4: the root mean square of an update is 0.2."""
    model = nn.Linear(shape[1], shape[0])
    model.weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = model.weight.detach().clone()
    _, muon = make_optimizers(model, TrainParams(optimizer="muon", muon_learning_rate=0.01))
    muon.step()
    update = (before - model.weight.detach()) / 0.01
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
    assert (update * model.weight.grad).sum() > 0


def test_muon_updates_a_kernel_as_pytorchs_muon_does_its_matrix():
    """The kernel's memory is replaced between steps, as moving a model to another device does."""
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


# Schedules

STEPS = 40


def cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


PEAK = 0.3 * (STEPS + 1) - 1  # Smith & Topin 2017 with PyTorch's defaults
COURSES = {
    "constant": lambda step: 1.0,
    "step": lambda step: 1.0 if step < STEPS // 2 else 0.1 if step < STEPS * 3 // 4 else 0.01,
    "cosine": lambda step: cosine(1, 0, step / STEPS),
    "one_cycle": lambda step: (
        cosine(1 / 25, 1, step / PEAK) if step < PEAK else cosine(1, 4e-6, (step - PEAK) / (STEPS - PEAK))
    ),
}


@pytest.mark.filterwarnings("error")  # PyTorch warns if steps are in the wrong order
@pytest.mark.parametrize("schedule", COURSES)
def test_the_learning_rates_of_both_optimizers_follow_the_schedule(schedule):
    params = TrainParams(optimizer="muon", lr_schedule=schedule, learning_rate=1e-3, muon_learning_rate=0.02)
    optimizers = make_optimizers(nn.Linear(3, 2), params)
    schedules = [make_schedule(each, params, STEPS) for each in optimizers]
    for step in range(STEPS):
        rates = [each.param_groups[0]["lr"] for each in optimizers]
        assert rates == pytest.approx([1e-3 * COURSES[schedule](step), 0.02 * COURSES[schedule](step)], rel=1e-9)
        for each in (*optimizers, *schedules):
            each.step()


# Training


def bars(n, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 8, 8, dtype=torch.uint8)
    images[torch.arange(n), torch.randint(0, 8, (n,), generator=generator)] = 220
    return Split(images.flatten(1), torch.zeros(n, dtype=torch.int64))


def trained(network, rate):
    model = VAE.from_params(ModelParams(**network), 0, 64)
    model.initialize_from_data(bars(200, 0).images)
    rates = {"learning_rate": 1e-3, "muon_learning_rate": rate, "lr_schedule": "constant"}
    params = TrainParams(epochs=12, batch_size=50, optimizer="muon", **rates)
    return model, fit(model, bars(200, 0), bars(60, 1), params, CPU).history


@pytest.mark.parametrize(
    "network",
    [
        {"hidden_dims": (16, 16), "latent_dim": 2, "prior": "standard"},
        {"architecture": "conv", "hidden_dims": (4, 6), "latent_dim": 2, "lower_latent_dims": (1,)},
    ],
    ids=str,
)
def test_muon_lowers_the_loss_and_repeats_itself_bit_for_bit(network):
    model, history = trained(network, 0.03)
    again, _ = trained(network, 0.03)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    _, adam_only = trained(network, 1e-30)
    assert history[-1]["val/neg_elbo"] < adam_only[-1]["val/neg_elbo"] - 1
