"""Data-parallel training in real processes: the result is that of one process, up to rounding."""

import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from mlflow_server import free_port
from support import ENVIRONMENT
from vae.config import ModelParams, TrainParams
from vae.data.datasets import Split
from vae.device import Hardware
from vae.errors import ConfigError, ProcessError
from vae.models.vae import VAE
from vae.training import distributed
from vae.training.loop import fit

SMALL = {"hidden_dims": (16,), "latent_dim": 3, "prior": "standard"}
FLOW = {"prior": "realnvp", "prior_couplings": 2, "prior_width": 8}
CONV = {"architecture": "conv", "hidden_dims": (4, 6), "prior": "gaussian_mixture", "prior_components": 3}
IWAE = {"objective": "iwae", "importance_samples": 3}
TRAININGS = {
    "elbo": (SMALL, {}),
    "a last batch with one image": (SMALL, {"batch_size": 101}),
    "flow, muon, clipped, averaged": (SMALL | FLOW, {"optimizer": "muon", "max_grad_norm": 20.0, "ema_decay": 0.9}),
    "vampprior, doubly reparameterized": (
        SMALL | {"prior": "vampprior", "prior_components": 4},
        IWAE | {"doubly_reparameterized": True, "elbo_epochs": 1},
    ),
    "conv, three layers": (SMALL | CONV | {"lower_latent_dims": (2, 1)}, IWAE),
}
PROGRAM = """
import sys, torch
from test_distributed import TRAININGS, train
from vae.training import distributed

with distributed.process_group(torch.device("cpu"), 60):
    found = {name: train(name) for name in TRAININGS}
    firsts = distributed.of_the_first(found)
    assert all(torch.equal(weights, firsts[name][0]) for name, (weights, _) in found.items())
    if distributed.is_first():
        torch.save(found, sys.argv[1])
"""


def images(n, seed):
    pixels = torch.randint(0, 256, (n, 64), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Split(pixels, torch.zeros(n, dtype=torch.int64))


def train(name):
    """The weights, in one tensor, and the validation −ELBO by epoch."""
    network, options = TRAININGS[name]
    model = VAE.from_params(ModelParams(**network), 0, 64)
    params = TrainParams(**{"epochs": 3, "batch_size": 40, "optimizer": "adam"} | options)
    fitted = fit(model, images(102, 0), images(31, 1), params, Hardware(torch.device("cpu"), "fp32", compile=False))
    weights = torch.cat([value.flatten() for value in model.state_dict().values()])
    return weights, [record["val/neg_elbo"] for record in fitted.history]


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """Trains with a number of processes; the result of each of `TRAININGS`."""

    def results(nproc):
        folder = tmp_path_factory.mktemp("processes")
        (folder / "program.py").write_text(PROGRAM)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        paths = f"{ENVIRONMENT.get('PYTHONPATH', '')}:tests:tests/training"
        environment = ENVIRONMENT | {"PYTHONPATH": paths}
        subprocess.run([*command, folder / "program.py", folder / "found.pt"], env=environment, check=True)
        return torch.load(folder / "found.pt")

    return results


@pytest.mark.filterwarnings("ignore:the validation")
@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(by_processes):
    first, again, four = by_processes(2), by_processes(2), by_processes(4)
    for name in TRAININGS:
        weights, scores = train(name)
        assert torch.equal(first[name][0], again[name][0]), name
        tolerance = 2e-3 if "muon" in name else 1e-5  # Muon orthogonalizes its steps in bf16
        for found, theirs in (first[name], four[name]):
            assert (found - weights).norm() < tolerance * weights.norm(), name
            assert theirs == pytest.approx(scores, rel=1e-5), name


def test_rows_of_all_processes_are_those_of_the_batch(monkeypatch):
    for size in (1, 2, 3, 5):
        monkeypatch.setattr(distributed, "size", lambda size=size: size)
        for n in (1, 2, 7, 64):
            values, mean, rows = torch.randn(n), 0.0, []
            for rank in range(size):
                monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
                own, weight = distributed.share(n)
                mean += weight * values[own].mean().item() / size
                rows += range(n)[own] if weight else []
            assert rows == list(range(n))
            assert mean == pytest.approx(values.mean().item(), abs=1e-6)


def test_a_process_that_never_comes_is_waited_for_until_the_timeout(monkeypatch):
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "False", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (torchrun | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    lost = r"process 0 of 2 lost the others: .* for 2\.5 s \(train\.timeout\)"
    with pytest.raises(ProcessError, match=lost), distributed.process_group(torch.device("cpu"), 2.5):
        pytest.fail("there is no other process")
    assert not torch.distributed.is_initialized()


def test_a_device_of_all_processes_and_more_processes_than_gpus_are_refused_but_not_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="cuda:0, with train"):
        distributed.launch(TrainParams(nproc=2, device="cuda:0"))
    with pytest.raises(ConfigError, match="nproc is 2, allowed are up to 1"):
        distributed.launch(TrainParams(nproc=2))
    started = Mock()
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", started)
    assert distributed.launch(TrainParams(nproc=2, device="cpu"))
    assert started.call_args.args[0].nproc_per_node == 2


@pytest.mark.parametrize("option", ["mmd", "free_bits"])
def test_what_a_part_of_a_batch_does_not_tell_is_refused(monkeypatch, option):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ConfigError, match=rf"train\.{option} .* train\.nproc: 1"):
        fit(
            VAE(64, **SMALL),
            images(8, 0),
            images(8, 1),
            TrainParams(epochs=1, **{option: 1.0}),
            Hardware(torch.device("cpu"), "fp32", compile=False),
        )
