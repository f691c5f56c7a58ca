"""Training and pictures for those who bring DataLoaders: the same as the pipeline's, with clear errors."""

import math

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import vae
from vae import VAE, VAETrainer, fit
from vae.config import TrainParams
from vae.data.datasets import Split, load
from vae.device import resolve
from vae.errors import ConfigError, DataError, WeightsError
from vae.models.distributions import gaussian_kl
from vae.models.likelihoods import bernoulli_nll
from vae.models.vae import slerp

PLAIN = {"precision": "fp32", "compile": False, "lr_schedule": "constant"}


def small(latent_dim=2):
    torch.manual_seed(0)
    return VAE(hidden_dims=[32], latent_dim=latent_dim, prior="standard")


def trained(trainer, loader, epochs=3):
    return trainer.train(loader, loader, epochs=epochs, progress=False)


# Training


def test_the_call_that_everybody_tries_first_works(loader):
    model = VAE(input_dim=784, hidden_dims=[64, 32], latent_dim=2)
    trainer = VAETrainer(model, "cpu", learning_rate=1e-3, beta=1.0)
    history = trainer.train(loader, loader, epochs=2)
    assert list(history["epoch"]) == [1, 2]
    assert history["val/neg_elbo"].iloc[1] < history["val/neg_elbo"].iloc[0]
    assert isinstance(trainer.plot_history(), Figure)


@pytest.mark.parametrize("binarization", ["dynamic", "threshold", "none"])
def test_a_loader_without_shuffling_trains_as_the_same_batches_by_hand(digits, binarization):
    images, _ = digits.tensors
    loader = DataLoader(digits, batch_size=100)
    model, expected = small(), small()
    VAETrainer(model, "cpu", 1e-3, 2.0, binarization=binarization, **PLAIN).train(loader, loader, 1, progress=False)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for x in images.flatten(1).split(100):
        if binarization == "dynamic":
            x = torch.bernoulli(x, generator=generator)
        if binarization == "threshold":
            x = (x > 0.5).float()
        noise = torch.randn(100, 2, generator=generator)
        mu, logvar = expected.encode(x)
        logits = expected.decode(mu + torch.exp(0.5 * logvar) * noise)
        loss = bernoulli_nll(logits, x).mean() + 2.0 * gaussian_kl(mu, logvar).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, weight in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, atol=1e-5), name


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 28, 28)])
@pytest.mark.parametrize("labelled", [True, False])
def test_batches_may_have_any_usual_shape_and_come_alone(digits, shape, labelled):
    images, labels = digits.tensors
    images = images.view(-1, *shape)
    expected = trained(VAETrainer(small(), "cpu", **PLAIN), DataLoader(digits, batch_size=100), 1)
    data = TensorDataset(images, labels) if labelled else images
    history = trained(VAETrainer(small(), "cpu", **PLAIN), DataLoader(data, batch_size=100), 1)
    assert history["val/neg_elbo"].equals(expected["val/neg_elbo"])


def test_bytes_are_pixels_from_0_to_255(digits):
    images, labels = digits.tensors
    data = TensorDataset((images * 255).round().to(torch.uint8), labels)
    records = [
        trained(VAETrainer(small(), "cpu", binarization="none", **PLAIN), DataLoader(part, batch_size=100), 1)
        for part in (digits, data)
    ]
    assert records[0]["val/neg_elbo"].item() == pytest.approx(records[1]["val/neg_elbo"].item(), rel=1e-5)


def test_a_loaders_transforms_are_seen_anew_in_every_epoch(digits):
    seen = []

    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            seen.append(index)
            return digits[index]

    VAETrainer(small(), "cpu").train(DataLoader(Counting(), 50), DataLoader(digits, 100), epochs=3, progress=False)
    assert len(seen) == 300


def without_times(history):
    return history[[name for name in history if "second" not in name]]


@pytest.mark.parametrize("options", [{}, {"optimizer_of": torch.optim.SGD}, {"kl_warmup_epochs": 3}], ids=str)
def test_training_on_is_the_same_as_training_for_longer(options, loader, tmp_path):
    """Two epochs and two more give the weights and the history of four, bit for bit."""
    results = []
    for calls in ([2, 2], [4]):
        model, settings = small(), dict(options)
        if optimizer := settings.pop("optimizer_of", None):
            settings["optimizer"] = optimizer(model.parameters(), lr=1e-3, momentum=0.9)
        trainer = VAETrainer(model, "cpu", **PLAIN, **settings)
        histories = [trained(trainer, loader, epochs) for epochs in calls]
        results.append((without_times(histories[-1]), model.state_dict()))
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
        trainer._fitted.state["model"]["decoder.head.bias"].zero_()  # from here on, it is worse
    history = trained(trainer, loader, 2)
    assert list(history["epoch"]) == list(range(1, 9))
    assert not history["improved"].iloc[6:].any()
    assert torch.equal(trainer.model.output_bias, best)


def test_patience_is_counted_anew_when_training_on(loader):
    options = {"early_stopping_patience": 2, "learning_rate": 1e-30}  # nothing ever gets better
    trainer = VAETrainer(small(), "cpu", binarization="threshold", **PLAIN, **options)
    assert [len(trained(trainer, loader, 9)) for _ in range(2)] == [3, 5]


def test_an_optimizer_of_ones_own_is_used(loader):
    model, expected = small(), small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    trained(VAETrainer(model, "cpu", optimizer=optimizer, **PLAIN), loader, 1)
    assert optimizer.state and "momentum_buffer" in next(iter(optimizer.state.values()))
    trained(VAETrainer(expected, "cpu", learning_rate=1e-4, **PLAIN), loader, 1)  # Adam
    assert not torch.equal(model.output_bias, expected.output_bias)


def test_a_scheduler_of_ones_own_moves_once_an_epoch(loader):
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    history = trained(VAETrainer(model, "cpu", optimizer=optimizer, scheduler=scheduler, **PLAIN), loader, 3)
    assert list(history["train/learning_rate"]) == [0.01, 0.005, 0.0025]


def test_a_scheduler_that_waits_for_a_plateau_looks_at_the_validation(loader):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for group in optimizer.param_groups:
        group["params"].clear()  # so that nothing ever gets better
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    trainer = VAETrainer(model, "cpu", optimizer=optimizer, scheduler=scheduler, **PLAIN)
    history = trained(trainer, loader, 5)
    assert scheduler.best == history["val/neg_elbo"].iloc[0]
    assert list(history["train/learning_rate"]) == [1.0] * 3 + [0.1] * 2


def test_options_are_those_of_the_training(loader):
    options = {"lr_schedule": "cosine", "kl_warmup_epochs": 2, "free_bits": 0.1, "max_grad_norm": 1.0}
    trainer = VAETrainer(small(), "cpu", beta=4.0, early_stopping_patience=5, weight_decay=0.01, **PLAIN | options)
    history = trained(trainer, loader, 3)
    assert list(history["train/beta"]) == [2.0, 4.0, 4.0]
    assert history["train/learning_rate"].iloc[-1] == pytest.approx(0.0, abs=1e-12)


def test_a_split_trains_the_same_with_the_trainer_and_with_fit(bundled):
    split = load(bundled[0], "test")
    params = TrainParams(epochs=2, device="cpu", **PLAIN)
    model, expected = small(), small()
    fit(expected, split, split, params, resolve(params), seed=3)
    VAETrainer(model, "cpu", seed=3, **PLAIN, batch_size=params.batch_size).train(split, split, 2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


# What is refused


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0, allowed is greater than 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"max_gradient_norm": 3}, "unknown key 'max_gradient_norm': did you mean 'max_grad_norm'"),
        ({"device": "cuda:99"}, "train.device is 'cuda:99', this machine has"),
        ({"device": "mps:9"}, "train.device is 'mps:9', this machine has"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(ConfigError, match=reason):
        VAETrainer(small(), **options)


@pytest.mark.parametrize(
    "images, reason",
    [
        (torch.rand(8, 1, 32, 32), r"images have shape \(8, 1, 32, 32\), allowed is \(B, ...\) with 784 pixels"),
        (torch.rand(8), r"images have shape \(8,\)"),
        (torch.rand(8, 784) * 2 - 1, "pixels are from -0.9.* to 0.9.*, allowed is 0 to 1: leave out Normalize"),
        (torch.rand(8, 784) * 300, "pixels are from 0.* to 29.*, allowed is 0 to 1"),
        (torch.full((8, 784), math.nan), "pixels are from nan to nan, allowed is 0 to 1"),
    ],
)
@pytest.mark.parametrize("where", ["training", "validation", "picture"])
def test_images_that_cannot_be_are_refused(loader, images, reason, where):
    wrong = DataLoader(images, batch_size=8)
    with pytest.raises(DataError, match=reason):
        if where == "picture":
            vae.visualize_reconstruction(small(), wrong)
        else:
            pair = (wrong, loader) if where == "training" else (loader, wrong)
            VAETrainer(small(), "cpu").train(*pair, epochs=1, progress=False)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([torch.rand(784)])


@pytest.mark.parametrize(
    "wrong, error, reason",
    [
        (DataLoader(TensorDataset(torch.rand(0, 784)), 8), DataError, "yields nothing"),
        (DataLoader(TensorDataset(torch.rand(4, 784)), 8, drop_last=True), DataError, "yields nothing"),
        (DataLoader(Endless(), 8), DataError, "must have a length"),
        (DataLoader(["a", "b"], 2), DataError, "a batch must be a tensor of images, or begin with one"),
        (Split(torch.zeros(0, 784, dtype=torch.uint8), torch.zeros(0)), DataError, "there are no images"),
    ],
)
def test_there_must_be_something_to_train_on(loader, wrong, error, reason):
    with pytest.raises(error, match=reason):
        VAETrainer(small(), "cpu").train(wrong, loader, epochs=1, progress=False)


def test_there_must_be_something_to_validate_on(loader):
    with pytest.raises(DataError, match="no images to train or validate on"):
        VAETrainer(small(), "cpu").train(loader, DataLoader(TensorDataset(torch.rand(0, 784))), 1, progress=False)


def test_a_loader_cannot_be_binarized_once(loader):
    with pytest.raises(ConfigError, match="'static'"):
        VAETrainer(small(), "cpu", binarization="static").train(loader, loader, 1, progress=False)


def test_no_epochs_are_refused(loader):
    with pytest.raises(ConfigError, match="epochs is 0"):
        VAETrainer(small(), "cpu").train(loader, loader, epochs=0)


def test_a_model_names_the_shapes_that_it_takes():
    model = small()
    assert model.encode(torch.rand(3, 1, 28, 28))[0].shape == (3, 2)
    with pytest.raises(DataError, match=r"images have shape \(3, 10\), allowed is \(B, ...\) with 784 pixels"):
        model.encode(torch.rand(3, 10))
    with pytest.raises(DataError, match=r"latents have shape \(3, 5\), allowed is \(..., 2\)"):
        model.decode(torch.rand(3, 5))


def test_a_model_is_saved_and_loaded_back(loader, tmp_path):
    trainer = VAETrainer(small(), "cpu")
    trained(trainer, loader, 1)
    trainer.save(tmp_path / "vae.safetensors")
    assert torch.equal(VAE.load(tmp_path / "vae.safetensors").output_bias, trainer.model.output_bias)
    torch.save(trainer.model.state_dict(), tmp_path / "vae.pt")  # a pickle: read as one, it could run anything
    with pytest.raises(WeightsError, match="is not a VAE weights file"):
        VAE.load(tmp_path / "vae.pt")


# What can't go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doubly_reparameterized": True}, "doubly_reparameterized requires objective 'iwae'"),
        ({"objective": "iwae", "free_bits": 0.1}, "free_bits requires objective 'elbo'"),
        ({"objective": "iwae", "mmd": 1.0}, "mmd requires objective 'elbo'"),
        ({"objective": "vae"}, "objective is 'vae', allowed is 'elbo' or 'iwae'"),
    ],
)
def test_options_that_exclude_each_other_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=f"^{message}[^\\n]*$"):
        VAETrainer(small(), "cpu", **options)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ({"prior": "vampprior"}, {"free_bits": 0.1}, "free_bits requires a KL per dimension"),
        ({"prior": "gaussian_mixture"}, {"free_bits": 0.1}, "free_bits requires a KL per dimension"),
        ({"lower_latent_dim": 2, "prior": "standard"}, {"free_bits": 0.1}, "free_bits requires a KL per dimension"),
        (
            {"lower_latent_dim": 2},
            {"objective": "iwae", "doubly_reparameterized": True},
            "requires a model without lower_latent_dim",
        ),
    ],
)
def test_a_model_that_cannot_be_trained_so_is_refused_before_it_is(network, options, message, loader):
    model = VAE(hidden_dims=[8], latent_dim=2, **network)
    before = model.output_bias.clone()
    with pytest.raises(ConfigError, match=message) as caught:
        trained(VAETrainer(model, "cpu", **options, **PLAIN), loader)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.output_bias, before)


@pytest.mark.parametrize("network", [{"prior": "vampprior", "prior_components": 7}, {"lower_latent_dim": 2}])
@pytest.mark.parametrize("options", [{}, {"objective": "iwae", "importance_samples": 3}])
def test_other_priors_and_bounds_train_with_it_too(network, options, loader):
    model = VAE(hidden_dims=[16], latent_dim=2, **network)
    history = trained(VAETrainer(model, "cpu", **options, **PLAIN), loader)
    key = "val/neg_bound" if options else "val/neg_elbo"
    assert history[key].iloc[-1] < history[key].iloc[0]


# Latents


def test_digit_means_are_means_over_the_labels_images(loader, digits):
    model = small()
    images, labels = digits.tensors
    mu, _ = model.encode(images)
    means = vae.latent_means(model, loader)
    assert set(means) == set(labels.tolist())
    for label, mean in means.items():
        assert torch.allclose(mean, mu[labels == label].mean(0), atol=1e-5)


def test_spherical_interpolation_turns_evenly():
    start, end = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    points = slerp(start, end, torch.linspace(0, 1, 5)[:, None])
    angles = torch.atan2(points[:, 1], points[:, 0])
    assert torch.allclose(angles, torch.linspace(0, math.pi / 2, 5), atol=1e-5)
    assert torch.allclose(points.norm(dim=1), torch.linspace(2, 4, 5), atol=1e-5)


@pytest.mark.parametrize("end", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_spherical_interpolation_without_an_angle_is_the_line(end):
    weight = torch.linspace(0, 1, 4)[:, None]
    start = torch.tensor([1.0, 0.0])
    assert torch.allclose(
        slerp(start, torch.tensor(end), weight), torch.lerp(start, torch.tensor(end), weight), atol=1e-5
    )


def test_the_ends_of_an_interpolation_are_the_two_images():
    model = small(4)
    start, end = torch.randn(2, 4)
    for spherical in (False, True):
        path = model.interpolate(start, end, 6, spherical)
        assert torch.allclose(path[[0, -1]], model.images(torch.stack([start, end])), atol=1e-5)
