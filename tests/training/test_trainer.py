"""`VAETrainer`: the same training as the pipeline's, on DataLoaders, with clear errors."""

import math

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from vae import VAE, VAETrainer, fit
from vae.config import TrainParams
from vae.data.datasets import Split, load
from vae.device import resolve
from vae.errors import ConfigError, DataError
from vae.models.distributions import gaussian_kl

PLAIN = {"optimizer": "adam", "precision": "fp32", "compile": False, "lr_schedule": "constant"}


def small(**params):
    torch.manual_seed(0)
    return VAE(hidden_dims=[32], latent_dim=2, prior="standard", **params)


def small_for(binarization):
    return small(likelihood="discretized_logistic" if binarization == "none" else "bernoulli")


def trained(trainer, loader, epochs=3):
    return trainer.train(loader, loader, epochs=epochs, progress=False)


def test_a_model_is_trained_plotted_and_saved_in_a_few_lines(loader, tmp_path):
    model = VAE(input_dim=784, hidden_dims=[64, 32], latent_dim=2)
    trainer = VAETrainer(model, "cpu", learning_rate=1e-3, beta=1.0)
    history = trainer.train(loader, loader, epochs=2)
    assert list(history["epoch"]) == [1, 2]
    assert history["val/neg_elbo"].iloc[1] < history["val/neg_elbo"].iloc[0]
    assert isinstance(trainer.plot_history(), Figure)
    trainer.save(tmp_path / "vae.safetensors")
    assert torch.equal(VAE.load(tmp_path / "vae.safetensors").output_bias, model.output_bias)


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_a_loader_without_shuffling_trains_as_the_same_batches_by_hand(digits, loader, binarization):
    model, expected = small_for(binarization), small_for(binarization)
    VAETrainer(model, "cpu", 1e-3, 2.0, binarization=binarization, **PLAIN).train(loader, loader, 1, progress=False)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for x in digits.tensors[0].flatten(1).split(100):
        if binarization == "dynamic":
            x = torch.bernoulli(x, generator=generator)
        if binarization == "threshold":
            x = (x > 0.5).float()
        noise = torch.randn(100, 2, generator=generator)
        mu, logvar = expected.encode(x)
        output = expected.decode(mu + torch.exp(0.5 * logvar) * noise)
        loss = expected.likelihood.nll(output, x).mean() + 2.0 * gaussian_kl(mu, logvar).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, weight in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, atol=1e-5), name


@pytest.mark.parametrize(
    "data",
    [
        lambda images, labels: images.flatten(1),
        lambda images, labels: TensorDataset(images.view(-1, 28, 28), labels),
        lambda images, labels: TensorDataset((images * 255).round().to(torch.uint8), labels),
    ],
    ids=["flat, without labels", "without channels", "bytes"],
)
def test_batches_may_have_any_usual_shape_and_type(digits, loader, data):
    other = DataLoader(data(*digits.tensors), batch_size=100)
    expected, found = (
        trained(VAETrainer(small(), "cpu", binarization="threshold", **PLAIN), each, 1) for each in (loader, other)
    )
    assert found["val/neg_elbo"].item() == pytest.approx(expected["val/neg_elbo"].item(), rel=1e-5)


def test_a_loader_is_read_in_every_epoch(loader, digits):
    seen = []
    counted = DataLoader(digits, 100, collate_fn=lambda batch: seen.append(batch) or default_collate(batch))
    VAETrainer(small(), "cpu").train(counted, loader, epochs=3, progress=False)
    assert len(seen) == 3 * 5


def test_a_split_trains_the_same_with_the_trainer_and_with_fit(bundled):
    split = load(bundled[0], "test")
    params = TrainParams(epochs=2, device="cpu", **PLAIN)
    model, expected = small(), small()
    fit(expected, split, split, params, resolve(params), seed=3)
    VAETrainer(model, "cpu", seed=3, **PLAIN, batch_size=params.batch_size).train(split, split, 2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_options_are_those_of_the_training(loader):
    options = {"lr_schedule": "cosine", "kl_warmup_epochs": 2, "free_bits": 0.1, "max_grad_norm": 1.0}
    history = trained(VAETrainer(small(), "cpu", beta=4.0, weight_decay=0.01, **PLAIN | options), loader)
    assert list(history["train/beta"]) == [2.0, 4.0, 4.0]
    assert history["train/learning_rate"].iloc[-1] == pytest.approx(0.0, abs=1e-12)


# Training on


@pytest.mark.parametrize("options", [{}, {"optimizer_of": torch.optim.SGD}, {"kl_warmup_epochs": 3}], ids=str)
def test_two_epochs_and_two_more_are_four_epochs_bit_for_bit(options, loader):
    results = []
    for calls in ([2, 2], [4]):
        model, settings = small(), dict(options)
        if optimizer := settings.pop("optimizer_of", None):
            settings["optimizer"] = optimizer(model.parameters(), lr=1e-3, momentum=0.9)
        trainer = VAETrainer(model, "cpu", **PLAIN | settings)
        history = [trained(trainer, loader, epochs) for epochs in calls][-1]
        results.append((history[[name for name in history if "second" not in name]], model.state_dict()))
    (history, weights), (expected, expected_weights) = results
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def test_training_on_keeps_the_best_epoch_of_all_and_starts_the_schedule_anew(loader):
    trainer = VAETrainer(small(), "cpu", **PLAIN | {"lr_schedule": "cosine"}, learning_rate=1e-3)
    rates = trained(trainer, loader, 3)["train/learning_rate"].tolist()
    assert trained(trainer, loader, 3)["train/learning_rate"].tolist() == rates + rates
    best = trainer.model.output_bias.clone()
    trainer.params = trainer.params.model_copy(update={"learning_rate": 1e-30})
    with torch.no_grad():
        trainer._fitted.state["model"]["decoder.head.bias"].zero_()  # further epochs are worse
    history = trained(trainer, loader, 2)
    assert list(history["epoch"]) == list(range(1, 9))
    assert not history["improved"].iloc[6:].any()
    assert torch.equal(trainer.model.output_bias, best)


def test_patience_is_counted_anew_when_training_on(loader):
    options = {"early_stopping_patience": 2, "learning_rate": 1e-30}  # no epoch is better than the first
    trainer = VAETrainer(small(), "cpu", binarization="threshold", **PLAIN, **options)
    assert [len(trained(trainer, loader, 9)) for _ in range(2)] == [3, 5]


# Optimizers and schedulers of the caller


def test_a_scheduler_is_stepped_once_an_epoch(loader):
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    history = trained(VAETrainer(model, "cpu", **PLAIN | {"optimizer": optimizer, "scheduler": scheduler}), loader)
    assert list(history["train/learning_rate"]) == [0.01, 0.005, 0.0025]
    assert optimizer.state


def test_a_plateau_scheduler_is_stepped_with_the_validation_metric(loader):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups[0]["params"].clear()  # no epoch is better than the first
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    history = trained(VAETrainer(model, "cpu", **PLAIN | {"optimizer": optimizer, "scheduler": scheduler}), loader, 5)
    assert scheduler.best == history["val/neg_elbo"].iloc[0]
    assert list(history["train/learning_rate"]) == [1.0] * 3 + [0.1] * 2


# What is refused


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, allowed is greater than 0"),
        ({"max_gradient_norm": 3}, "unknown key 'max_gradient_norm': did you mean 'max_grad_norm'"),
        ({"doubly_reparameterized": True}, "^doubly_reparameterized requires objective 'iwae'$"),
        ({"device": "mps:9"}, "train.device is 'mps:9', this machine has"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"epochs": 2, "nproc": 2}, "takes no epochs, nproc: it trains in one process, for the epochs that train"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        VAETrainer(small(), **options)


@pytest.mark.parametrize("options", [{"objective": "iwae", "elbo_epochs": 99}, {"kl_cycles": 9, "kl_warmup_epochs": 9}])
def test_options_that_depend_on_the_epochs_are_checked_when_these_are_known(loader, options):
    trainer = VAETrainer(small(), "cpu", **options)
    with pytest.raises(ConfigError, match="_epochs is 9"):
        trainer.train(loader, loader, epochs=9)


def test_a_scheduler_without_its_optimizer_is_refused(loader):
    model = small()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(torch.optim.Adam(model.parameters()), 0.5)
    with pytest.raises(ConfigError, match="a scheduler is given without an optimizer"):
        VAETrainer(model, "cpu", scheduler=scheduler).train(loader, loader, epochs=1)


@pytest.mark.parametrize(
    "images, reason",
    [
        (torch.rand(8, 1, 32, 32), r"images have shape \(8, 1, 32, 32\), allowed is \(B, ...\) with 784 pixels"),
        (torch.rand(8), r"images have shape \(8,\)"),
        (torch.rand(8, 784) * 2 - 1, "pixels are from -0.9.* to 0.9.*, allowed is 0 to 1: leave out Normalize"),
        (torch.full((8, 784), math.nan), "pixels are from nan to nan, allowed is 0 to 1"),
    ],
)
def test_images_of_a_wrong_shape_or_range_are_refused(loader, images, reason):
    with pytest.raises(DataError, match=reason):
        VAETrainer(small(), "cpu").train(DataLoader(images, batch_size=8), loader, epochs=1, progress=False)


class WithoutLength(IterableDataset):
    def __iter__(self):
        return iter([torch.rand(784)])


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (DataLoader(TensorDataset(torch.rand(0, 784)), 8), "yields nothing"),
        (DataLoader(WithoutLength(), 8), "must have a length"),
        (DataLoader(["a", "b"], 2), "a batch must be a tensor of images, or begin with one"),
        (Split(torch.zeros(0, 784, dtype=torch.uint8), torch.zeros(0)), "there are no images"),
    ],
    ids=["empty", "without length", "text", "empty split"],
)
def test_there_must_be_images_to_train_on(loader, wrong, reason):
    with pytest.raises(DataError, match=reason):
        VAETrainer(small(), "cpu").train(wrong, loader, epochs=1, progress=False)


def test_there_must_be_images_to_validate_on(loader):
    with pytest.raises(DataError, match="no images to train or validate on"):
        VAETrainer(small(), "cpu").train(loader, DataLoader(TensorDataset(torch.rand(0, 784))), 1, progress=False)


@pytest.mark.parametrize(
    "options, epochs, reason",
    [({"binarization": "static"}, 1, "'static' needs the whole data set"), ({}, 0, "epochs is 0")],
)
def test_static_binarization_of_a_loader_and_no_epochs_are_refused(loader, options, epochs, reason):
    with pytest.raises(ConfigError, match=reason):
        VAETrainer(small(), "cpu", **options).train(loader, loader, epochs, progress=False)
