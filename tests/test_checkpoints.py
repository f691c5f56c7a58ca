"""A training that is interrupted and started again ends as if it hadn't been: with the same weights, bit for bit."""

import hashlib
import io
import pickle
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from support import ENVIRONMENT
from vae.checkpoints import Checkpoints
from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.device import Hardware
from vae.models.vae import VAE
from vae.training.loop import fit

CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
PIXELS = 16
SMALL = {"hidden_dims": (8,), "latent_dim": 2}
SETTINGS = {"epochs": 4, "batch_size": 32, "learning_rate": 1e-2}


def stripes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(n, 4, 4, dtype=torch.uint8)
    images[torch.arange(n), torch.randint(0, 4, (n,), generator=generator)] = 220
    return Split(images.flatten(1), torch.zeros(n, dtype=torch.int64))


TRAIN, VALIDATION = stripes(100, seed=0), stripes(40, seed=1)


def train(checkpoints=None, *, on_epoch=None, network=None, parts=None, data=TRAIN, seed=0, **params):
    """The model and what `fit` returned; `parts(model)` are an optimizer and a scheduler of the caller's."""
    model = VAE.from_params(ModelParams(**SMALL | (network or {})), seed, PIXELS)
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


def interrupt_in(epoch):
    def on_epoch(record):
        if record["epoch"] == epoch:
            raise InterruptError

    return on_epoch


def interrupted_in(epoch, folder, **options):
    """What was trained in two processes, as it were: the second starts from weights and a random state of its own."""
    with pytest.raises(InterruptError):
        train(Checkpoints(folder), on_epoch=interrupt_in(epoch), **options)
    torch.manual_seed(1000 + epoch)
    seed = 99 if epoch > 1 else 0  # an interruption in the first epoch leaves nothing to go on from
    return train(Checkpoints(folder), seed=seed, **options)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def without_times(history):
    return [{name: value for name, value in record.items() if "second" not in name} for record in history]


def assert_same(found, expected):
    (model, fitted), (reference, uninterrupted) = found, expected
    assert without_times(fitted.history) == without_times(uninterrupted.history)
    assert fitted.best_epoch == uninterrupted.best_epoch
    ours, theirs = weights(model), weights(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


VARIANTS = {
    "constant": {"lr_schedule": "constant"},
    "step": {"lr_schedule": "step"},
    "cosine": {"lr_schedule": "cosine"},
    "one_cycle": {"lr_schedule": "one_cycle", "max_grad_norm": 1.0},
    "cycles": {"kl_cycles": 2, "kl_warmup_epochs": 2, "mmd": 1.0},
    "iwae": {"objective": "iwae", "importance_samples": 3, "doubly_reparameterized": True},
    "vampprior": {"network": {"prior": "vampprior", "prior_components": 5}},
    "two layers": {"network": {"prior": "gaussian_mixture", "lower_latent_dim": 2}},
    "muon": {"optimizer": "muon", "lr_schedule": "one_cycle", "weight_decay": 0.01},
    "muon, conv, two layers": {
        "optimizer": "muon",
        "lr_schedule": "cosine",
        "network": {"architecture": "conv", "hidden_dims": (3, 4), "dense_dims": (5,), "lower_latent_dim": 1},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_interrupted_in_any_epoch_it_ends_as_if_it_hadnt_been(name, tmp_path):
    expected = train(**VARIANTS[name])
    for epoch in range(1, 5):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), **VARIANTS[name]), expected)


def test_checkpoints_change_nothing_about_a_training_that_is_not_interrupted(tmp_path):
    assert_same(train(Checkpoints(tmp_path)), train())


def test_interrupted_again_and_again_it_still_ends_the_same(tmp_path):
    expected = train()
    for epoch in (2, 2, 3, 4, 4):
        with pytest.raises(InterruptError):
            train(Checkpoints(tmp_path), on_epoch=interrupt_in(epoch))
    assert_same(train(Checkpoints(tmp_path)), expected)


def test_the_callback_sees_the_epochs_that_are_left(tmp_path):
    with pytest.raises(InterruptError):
        train(Checkpoints(tmp_path), on_epoch=interrupt_in(3))
    seen = []
    _, fitted = train(Checkpoints(tmp_path), on_epoch=seen.append)
    assert [record["epoch"] for record in seen] == [3, 4]
    assert seen == fitted.history[2:]


STOPS_EARLY = {"epochs": 40, "learning_rate": 0.2, "early_stopping_patience": 2}


def test_early_stopping_waits_as_long_as_without_the_interruption(tmp_path):
    expected = train(**STOPS_EARLY)
    last, best = len(expected[1].history), expected[1].best_epoch
    assert 3 < last < 40
    assert best == last - 2
    for epoch in range(best, last + 1):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), **STOPS_EARLY), expected)


@pytest.mark.parametrize("params", [SETTINGS, STOPS_EARLY], ids=["all epochs", "early stopping"])
def test_what_had_ended_already_trains_no_further(params, tmp_path):
    expected = train(Checkpoints(tmp_path), **params)
    seen = []
    assert_same(train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99, **params), expected)
    assert seen == []


def sgd_until_a_plateau(model):
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def sgd_by_halves(model):
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    return optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5)


@pytest.mark.parametrize("parts", [sgd_until_a_plateau, sgd_by_halves])
def test_a_callers_optimizer_and_scheduler_go_on_where_they_were(parts, tmp_path):
    expected = train(parts=parts, epochs=8)
    rates = [record["train/learning_rate"] for record in expected[1].history]
    assert len(set(rates)) > 1
    for epoch in range(1, 9):
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), parts=parts, epochs=8), expected)


def shuffled_by_the_global_generator():
    return DataLoader(TensorDataset(TRAIN.images), batch_size=32, shuffle=True)


def shuffled_by_its_own_generator():
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(TRAIN.images), batch_size=32, shuffle=True, generator=generator)


def shuffled_by_its_samplers_generator():
    images = TensorDataset(TRAIN.images)
    sampler = RandomSampler(images, generator=torch.Generator().manual_seed(3))
    return DataLoader(images, batch_size=32, sampler=sampler)


@pytest.mark.parametrize(
    "data",
    [shuffled_by_the_global_generator, shuffled_by_its_own_generator, shuffled_by_its_samplers_generator],
)
def test_a_shuffling_loader_goes_on_with_the_order_that_it_would_have_had(data, tmp_path):
    torch.manual_seed(5)
    expected = train(data=data)
    for epoch in range(2, 5):
        torch.manual_seed(5)
        assert_same(interrupted_in(epoch, tmp_path / str(epoch), data=data), expected)


# Processes that are killed

LONG = {"epochs": 150}


def train_and_tell(folder):
    train(Checkpoints(folder), on_epoch=lambda record: print(record["epoch"], flush=True), **LONG)


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_what_the_next_goes_on_from(tmp_path):
    code = f"import test_checkpoints as t; t.train_and_tell({str(tmp_path)!r})"
    reached = [0]
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        assert first - reached[-1] in (0, 1), "it begins with the epoch after its checkpoint"
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -9, "it ended by itself: make it longer"
        reached.append(max(map(int, process.stdout.read().split()), default=first))
        process.stdout.close()
    assert_same(train(Checkpoints(tmp_path), seed=99, **LONG), train(**LONG))
    Checkpoints(tmp_path).delete()
    assert not tmp_path.exists()


# Damage


def flip_a_bit(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a flipped bit": flip_a_bit,
    "zeros at the end": lambda content: content[:-4096] + bytes(4096),
    "something else": lambda content: b"PK\x03\x04 or so",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before(damage, tmp_path):
    with pytest.raises(InterruptError):
        train(Checkpoints(tmp_path), on_epoch=interrupt_in(4))
    newest = tmp_path / "000003.pt"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    seen = []
    with pytest.warns(UserWarning, match=r"000003\.pt can't be read and is skipped: ") as caught:
        resumed = train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99)
    assert [record["epoch"] for record in seen] == [3, 4]
    assert len(caught) == 1
    assert len(str(caught[0].message).splitlines()) == 1
    assert_same(resumed, train())


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    """Also in the tensors, which `torch.load` reads without a look at the archive's checksums."""
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
    with pytest.raises(InterruptError):
        train(Checkpoints(tmp_path), on_epoch=interrupt_in(4))
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


def pickled(content):
    return pickle.dumps(content, protocol=2)


def saved_by_torch(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [pickled, saved_by_torch])
@pytest.mark.parametrize("checksum", [True, False])
def test_a_pickle_offered_as_a_checkpoint_does_not_run(write, checksum, tmp_path):
    content = write({"training": Malicious(tmp_path / "it-ran"), "history": []})
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "000003.pt").write_bytes(content + (hashlib.sha256(content).digest() if checksum else b""))
    with pytest.warns(UserWarning, match="is skipped"):
        assert Checkpoints(folder).load(CPU.device) is None
    assert not (tmp_path / "it-ran").exists()


# Files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept(tmp_path):
    seen = []
    train(Checkpoints(tmp_path / "new" / "folder"), on_epoch=lambda record: seen.append(record["epoch"]))
    assert seen == [1, 2, 3, 4]
    assert names(tmp_path / "new" / "folder") == ["000003.pt", "000004.pt"]


def test_never_more_than_two_are_there_and_the_tenth_comes_after_the_ninth(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in range(1, 13):
        checkpoints.save(epoch, {"epoch": epoch})
        assert names(tmp_path) == [f"{kept:06d}.pt" for kept in (epoch - 1, epoch) if kept]
        assert checkpoints.load(CPU.device) == {"epoch": epoch}


def test_none_are_loaded_from_a_folder_that_is_not_there(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.load(CPU.device) is None
    checkpoints.delete()
    assert not (tmp_path / "none").exists()


def test_deleting_takes_the_folder_and_what_a_killed_process_left_in_it(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    train(checkpoints)
    (folder / ".000005.pt.k3x_9w").write_bytes(b"half of it")
    checkpoints.delete()
    assert not folder.exists()


@pytest.fixture
def full_disk():
    """A file can't become longer than 2 kB: a write fails midway, as on a full disk, even for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(full):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048 if full else soft, hard))

    yield fill
    fill(False)


def test_a_write_that_fails_leaves_nothing_over_and_the_one_before_alone(tmp_path, full_disk):
    expected = train()

    def on_epoch(record):
        full_disk(record["epoch"] == 3)

    with pytest.raises(OSError, match="too large"):
        train(Checkpoints(tmp_path), on_epoch=on_epoch)
    full_disk(False)
    assert names(tmp_path) == ["000001.pt", "000002.pt"]
    seen = []
    assert_same(train(Checkpoints(tmp_path), on_epoch=seen.append, seed=99), expected)
    assert [record["epoch"] for record in seen] == [3, 4]
