"""A training that is interrupted and resumed ends with the same weights, bit for bit; damaged checkpoints."""

import hashlib
import io
import pickle
from functools import partial

import pytest
import torch
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from vae.checkpoints import Checkpoints
from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.device import Hardware
from vae.models.vae import VAE
from vae.training.loop import fit

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
PIXELS = 16
SETTINGS = {"epochs": 4, "batch_size": 32, "learning_rate": 1e-2}


def stripes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 4, 4, dtype=torch.uint8)
    images[torch.arange(n), torch.randint(0, 4, (n,), generator=generator)] = 220
    return Split(images.flatten(1), torch.zeros(n, dtype=torch.int64))


TRAIN, VALIDATION = stripes(100, seed=0), stripes(40, seed=1)


def train(checkpoints=None, *, on_epoch=None, network=None, parts=None, data=TRAIN, seed=0, **params):
    """The model and what `fit` returned; `parts(model)` are an optimizer and a scheduler."""
    model = VAE.from_params(ModelParams(**{"hidden_dims": (8,), "latent_dim": 2} | (network or {})), seed, PIXELS)
    optimizer, scheduler = parts(model) if parts else (None, None)
    fitted = fit(
        model,
        data() if callable(data) else data,
        VALIDATION,
        TrainParams(**SETTINGS | params),
        CPU,
        on_epoch=on_epoch,
        optimizer=optimizer,
        scheduler=scheduler,
        checkpoints=checkpoints,
    )
    return model, fitted


class InterruptError(Exception):
    pass


def interrupt(folder, epoch, **options):
    """A training that ends in `epoch`, before its checkpoint."""

    def on_epoch(record):
        if record["epoch"] == epoch:
            raise InterruptError

    with pytest.raises(InterruptError):
        train(Checkpoints(folder), on_epoch=on_epoch, **options)


def interrupted_in(epoch, folder, **options):
    """A training that was interrupted and resumed, from other initial weights and another global random state."""
    interrupt(folder, epoch, **options)
    torch.manual_seed(1000 + epoch)
    seed = 99 if epoch > 1 else 0  # in the first epoch there is no checkpoint yet
    return train(Checkpoints(folder), seed=seed, **options)


def without_times(history):
    return [{name: value for name, value in record.items() if "second" not in name} for record in history]


def assert_same(found, expected):
    (model, fitted), (reference, uninterrupted) = found, expected
    assert without_times(fitted.history) == without_times(uninterrupted.history)
    assert fitted.best_epoch == uninterrupted.best_epoch
    theirs = reference.state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])] == []


VARIANTS = {
    "cyclical annealing, MMD": {"lr_schedule": "step", "kl_cycles": 2, "kl_warmup_epochs": 2, "mmd": 1.0},
    "DReG": {"objective": "iwae", "importance_samples": 3, "doubly_reparameterized": True, "lr_schedule": "constant"},
    "ELBO first, average": {"objective": "iwae", "importance_samples": 2, "elbo_epochs": 2, "ema_decay": 0.9},
    "vampprior": {"lr_schedule": "one_cycle", "max_grad_norm": 1.0, "network": {"prior": "vampprior"}},
    "realnvp, muon": {"optimizer": "muon", "network": {"prior": "realnvp", "prior_width": 8}},
    "two layers": {"lr_schedule": "cosine", "network": {"prior": "gaussian_mixture", "lower_latent_dims": (2,)}},
    "muon, conv, two layers": {
        "optimizer": "muon",
        "weight_decay": 0.01,
        "network": {"architecture": "conv", "hidden_dims": (3, 4), "dense_dims": (5,), "lower_latent_dims": (1,)},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_training_ends_as_an_uninterrupted_one(name, tmp_path):
    expected = train(**VARIANTS[name])
    for epoch in range(1, 5):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), **VARIANTS[name]), expected)


def test_interrupted_again_and_again_it_calls_back_for_the_remaining_epochs_only(tmp_path):
    for epoch in (2, 2, 3, 4):
        interrupt(tmp_path, epoch)
    seen = []
    resumed = train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99)
    assert seen == resumed[1].history[3:]
    assert_same(resumed, train())


STOPS_EARLY = {"epochs": 40, "optimizer": "adam", "learning_rate": 0.1, "early_stopping_patience": 2}


def test_early_stopping_waits_as_long_as_without_the_interruption(tmp_path):
    expected = train(**STOPS_EARLY)
    last, best = len(expected[1].history), expected[1].best_epoch
    assert 3 < last < 40 and best == last - 2
    for epoch in range(best, last + 1):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), **STOPS_EARLY), expected)


@pytest.mark.parametrize("params", [SETTINGS, STOPS_EARLY], ids=["all epochs", "early stopping"])
def test_a_training_that_has_ended_is_not_continued(params, tmp_path):
    expected = train(Checkpoints(tmp_path), **params)
    seen = []
    assert_same(train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99, **params), expected)
    assert seen == []


def sgd_until_a_plateau(model):
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


@pytest.mark.parametrize("scheduler", [lr_scheduler.ReduceLROnPlateau, lr_scheduler.ExponentialLR])
def test_optimizer_and_scheduler_of_the_caller_resume(scheduler, tmp_path):
    options = {"patience": 0} if scheduler is lr_scheduler.ReduceLROnPlateau else {"gamma": 0.5}

    def parts(model):
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        return optimizer, scheduler(optimizer, **options)

    expected = train(parts=parts, epochs=8)
    assert len({record["train/learning_rate"] for record in expected[1].history}) > 1
    for epoch in (1, 4, 6, 8):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), parts=parts, epochs=8), expected)


@pytest.mark.parametrize("generator_of", ["global", "loader", "sampler"])
def test_a_shuffling_loader_resumes_with_the_order_that_it_would_have_had(generator_of, tmp_path):
    def data():
        images, generator = TensorDataset(TRAIN.images), torch.Generator().manual_seed(3)
        order = {
            "global": {"shuffle": True},
            "loader": {"shuffle": True, "generator": generator},
            "sampler": {"sampler": RandomSampler(images, generator=generator)},
        }
        return DataLoader(images, batch_size=32, **order[generator_of])

    torch.manual_seed(5)
    expected = train(data=data)
    for epoch in range(2, 5):
        torch.manual_seed(5)
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), data=data), expected)


# Damage


def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before(tmp_path):
    interrupt(tmp_path, 4)
    newest = tmp_path / "000003.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    seen = []
    with pytest.warns(UserWarning, match=r"^[^\n]*000003\.pt can't be read and is skipped: [^\n]+$") as caught:
        resumed = train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99)
    assert [record["epoch"] for record in seen] == [3, 4]
    assert len(caught) == 1
    assert_same(resumed, train())


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weight": torch.arange(4.0)})
    path = tmp_path / "000001.pt"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="is skipped"):
            assert checkpoints.load(CPU.device) is None
    path.write_bytes(content)
    assert checkpoints.load(CPU.device)["weight"].tolist() == [0, 1, 2, 3]


def test_where_all_are_damaged_the_training_begins_anew(tmp_path):
    interrupt(tmp_path, 4)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is skipped") as caught:
        resumed = train(Checkpoints(tmp_path))
    assert sum("is skipped" in str(warning.message) for warning in caught) == 2
    assert_same(resumed, train())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [partial(pickle.dump, protocol=2), torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(save, tmp_path):
    buffer, folder = io.BytesIO(), tmp_path / "checkpoints"
    save({"training": Malicious(tmp_path / "it-ran"), "history": []}, buffer)
    folder.mkdir()
    (folder / "000003.pt").write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.warns(UserWarning, match="is skipped"):
        assert Checkpoints(folder).load(CPU.device) is None
    assert not (tmp_path / "it-ran").exists()


# Files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in range(1, 12):
        checkpoints.save(epoch, {"epoch": epoch})
        assert names(tmp_path) == [f"{kept:06d}.pt" for kept in (epoch - 1, epoch) if kept]
        assert checkpoints.load(CPU.device) == {"epoch": epoch}


def test_deleting_takes_the_folder_and_what_a_killed_process_left_in_it(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {})
    (checkpoints.folder / ".000005.pt.k3x_9w").write_bytes(b"half of it")
    checkpoints.delete()
    assert not checkpoints.folder.exists()
    assert checkpoints.load(CPU.device) is None
    checkpoints.delete()
