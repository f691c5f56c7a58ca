"""How fast `fit()` trains, compared with a common training loop, pythae and the matrix products alone.

`make bench` measures all contenders alternately and keeps the best turn of each: on a shared machine, ratios are less
noisy than timings. Writes benchmarks/speed.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from timing import best_rates, rate
from vae import tracking
from vae.config import DataParams, EvaluateParams, ModelParams, Params, TrainParams
from vae.data.batches import ShuffledBatches
from vae.data.binarization import binarize_once
from vae.data.datasets import FILES, Split, gunzip, load, split_validation
from vae.data.download import fetch
from vae.device import COMPILE_FROM, Hardware, resolve
from vae.evaluation.likelihood import evaluate
from vae.files import write_json
from vae.models.vae import VAE
from vae.training.loop import Record, _step_function, fit
from vae.training.optimizers import make_optimizers
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import mnist_dir

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "speed.json"
TURNS = 2
BATCH = 128
EPOCHS, IMAGES = 2, 20_000  # of a turn of `fit()`
PEERS = PROJECT / "results" / "peers"
PACKAGES = ("pythae==0.1.2", "imageio==2.37.0")  # what pythae needs beside the packages of this project


def small_vae() -> VAE:
    """784-400-20, the VAE of PyTorch's examples."""
    return VAE(784, hidden_dims=(400,), latent_dim=20, activation="relu", residual=False, prior="standard")


class CommonVAE(torch.nn.Module):
    """784-400-20 as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(784, 400)
        self.mu, self.logvar = torch.nn.Linear(400, 20), torch.nn.Linear(400, 20)
        self.back, self.pixels = torch.nn.Linear(20, 400), torch.nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 784] -> probabilities, mean, log-variance."""
        h = F.relu(self.hidden(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return torch.sigmoid(self.pixels(F.relu(self.back(z)))), mu, logvar


def common_recipe(root: Path, device: torch.device) -> float:
    """Images per second with a DataLoader of torchvision's MNIST and `.item()` at each step, fp32."""
    loader = DataLoader(datasets.MNIST(str(root), transform=transforms.ToTensor()), BATCH, shuffle=True)
    model = CommonVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total = 0.0
    started = time.perf_counter()
    for x, _ in loader:
        x = x.to(device).view(-1, 784)
        optimizer.zero_grad()
        probabilities, mu, logvar = model(x)
        reconstruction = F.binary_cross_entropy(probabilities, x, reduction="sum")
        loss = reconstruction - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        total += loss.item()
        optimizer.step()
    return len(loader.dataset) / (time.perf_counter() - started)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Network:
    """A network and the batch size that it is trained with."""

    make: Callable[[], VAE]
    params: TrainParams


NETWORKS = {
    "784-400-20": Network(small_vae, TrainParams(batch_size=BATCH, optimizer="adam")),
    "784-400-20, batch 512": Network(small_vae, TrainParams(batch_size=512, optimizer="adam")),
    "default": Network(lambda: VAE.from_params(ModelParams(), seed=0), TrainParams()),
}


def ours(network: Network, train: Split, hardware: Hardware) -> float:
    """Images per second of `fit()`; the first epoch, in which the step is compiled, is a warm-up."""
    records: list[Record] = []
    params = network.params.model_copy(update={"epochs": 1 + EPOCHS})
    fit(network.make(), train, train.rows(slice(BATCH)), params, hardware, on_epoch=records.append)
    return max(record["train/images_per_second"] for record in records[1:])


def products(network: Network, hardware: Hardware) -> float:
    """Images per second if a training step consisted of its matrix products only; those of a flow are in fp32."""
    batch, layers = network.params.batch_size, []
    linear = [(name, part) for name, part in network.make().named_modules() if isinstance(part, torch.nn.Linear)]
    for number, (name, layer) in enumerate(linear):
        half = hardware.precision == "bf16" and not name.startswith("prior.")
        weight = layer.weight.detach().to(hardware.device, torch.bfloat16 if half else torch.float32)
        x, gradient = weight.new_ones(batch, layer.in_features), weight.new_ones(batch, layer.out_features)
        layers.append((x, weight, gradient, number > 0))  # the images need no gradient

    def steps() -> int:
        for _ in range(10):
            for x, weight, gradient, needs_input_gradient in layers:
                torch.mm(x, weight.T)
                torch.mm(gradient.T, x)
                if needs_input_gradient:
                    torch.mm(gradient, weight)
        return 10 * batch

    return rate(steps, hardware.device, seconds=1.0)


def parts_of_a_step(network: Network, train: Split, hardware: Hardware) -> dict[str, float]:
    """Milliseconds of the parts of a training step, and of a whole one of `fit()`, which was measured separately."""
    model, params, device = network.make().to(hardware.device), network.params, hardware.device
    generator = torch.Generator(device).manual_seed(0)
    batches = ShuffledBatches(train.images, params.batch_size, "dynamic", generator)
    step, optimizers = _step_function(model, params, hardware), make_optimizers(model, params)
    seconds = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
    clock = time.perf_counter

    def done(part: str, started: float) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[part] += clock() - started
        return clock()

    for epoch in range(2):
        if epoch:  # the first one is a warm-up
            seconds = dict.fromkeys(seconds, 0.0)
        started = clock()
        for x, _ in batches:
            noise = torch.randn(len(x), 1, model.noise_dim, generator=generator, device=device)
            started = done("data", started)
            loss, *_ = step(x, None, noise, torch.ones((), device=device), None)
            started = done("forward", started)
            model.zero_grad()
            loss.backward()
            started = done("backward", started)
            for optimizer in optimizers:
                optimizer.step()
            started = done("optimizer", started)
    parts = {name: 1000 * value / len(batches) for name, value in seconds.items()}
    parts["fit()"] = 1000 * params.batch_size / ours(network, train, hardware)
    return {name: round(value, 2) for name, value in parts.items()}


def have_peers() -> bool:
    """Install pythae into a folder of its own, unless it is there; False where that fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *PACKAGES]
    if PEERS.is_dir() or not subprocess.run(command).returncode:
        return True
    print("pythae is left out: it could not be installed", file=sys.stderr)
    return False


def peers(train: Split, folder: Path) -> dict[str, float]:
    """Images per second of pythae's trainer, and images × samples per second of its NLL, in a process of its own."""
    np.save(folder / "images.npy", train.images.numpy())
    command = [sys.executable, str(PROJECT / "benchmarks" / "peers.py"), str(folder / "images.npy")]
    environment = os.environ | {"PYTHONPATH": str(PEERS)}
    rates: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout.splitlines()[-1]
    )
    return rates


def measure_speed(raw: Path, root: Path, train: Split, with_peers: bool) -> dict[str, Any]:
    """Images per second of each contender, by network."""
    folder = root / "MNIST" / "raw"  # where torchvision expects the files, unpacked
    folder.mkdir(parents=True)
    for name in (name for pair in FILES.values() for name in pair):
        (folder / name).write_bytes(gunzip((raw / f"{name}.gz").read_bytes(), name))
    fast = resolve(TrainParams(), images=COMPILE_FROM)
    hardware = {
        f"{precision}, {'compiled' if compiled else 'eager'}": Hardware(fast.device, precision, compiled)
        for precision in dict.fromkeys(("fp32", fast.precision))
        for compiled in dict.fromkeys((False, fast.compile))
    }
    result: dict[str, Any] = {"images_per_second": {}, "milliseconds_of_a_step": {}}
    for name, network in NETWORKS.items():
        contenders: dict[str, Callable[[], float]] = {}
        if name == "784-400-20":
            contenders["common recipe"] = lambda: common_recipe(root, fast.device)
            if with_peers:
                contenders["pythae"] = lambda: peers(train, root)["train"]
        for kind, settings in hardware.items():
            contenders[kind] = partial(ours, network, train, settings)
        for precision in dict.fromkeys(("fp32", fast.precision)):
            contenders[f"{precision}, products"] = partial(products, network, hardware[f"{precision}, eager"])
        print(name)
        rates = best_rates(contenders, TURNS, "images")
        result["images_per_second"][name] = {kind: round(rate) for kind, rate in rates.items()}
        parts = partial(parts_of_a_step, network, train)
        result["milliseconds_of_a_step"][name] = {
            kind: parts(settings) for kind, settings in hardware.items() if settings.precision == fast.precision
        }
    if with_peers:
        few = train.rows(slice(256))
        nll = {"pythae": lambda: peers(few, root)["nll"], "evaluate()": lambda: nll_rate(train)}
        result["nll"] = {name: round(rate) for name, rate in best_rates(nll, TURNS, "latents").items()}
    return result


def nll_rate(train: Split) -> float:
    """Images × samples per second of `evaluate()` for 784-400-20, in fp32, as `peers` measures pythae's."""
    targets, params = binarize_once(train.images[:4], "dynamic"), EvaluateParams(importance_samples=5000)
    model = small_vae()

    def estimate() -> int:
        evaluate(model, targets, None, params)
        return len(targets) * params.importance_samples

    return rate(estimate, torch.device("cpu"), seconds=2.0)


def measure_tracking(dataset: dict[str, Any], train: Split, folder: Path) -> float:
    """Seconds that a default training spends in MLflow calls, divided by those of its training."""
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    params = Params()
    hardware = resolve(params.train)
    records: list[Record] = []
    short = params.train.model_copy(update={"epochs": 2})
    few = train.rows(slice(3000))
    fit(VAE.from_params(params.model, seed=0), train, few, short, hardware, on_epoch=records.append)
    tracking.connect()  # creates the database, which is needed once for all runs
    started = time.perf_counter()
    tracking.connect()
    with tracking.open_run(tracking.run_name(params)) as run:
        tracking.log_settings(run, params, hardware, dataset)
        for epoch in range(params.train.epochs):
            run.log_metrics(records[-1], step=epoch)
    return (time.perf_counter() - started) / (params.train.epochs * records[-1]["train/seconds"])


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, as docs/speed.md shows it."""
    rows, steps = [], []
    baseline = result["images_per_second"]["784-400-20"]["common recipe"]
    for network, rates in result["images_per_second"].items():
        for kind, speed in rates.items():
            times = "" if network == "default" else f"{speed / baseline:.2f}"
            products = rates.get(f"{kind.partition(',')[0]}, products")
            rows.append([network, kind, f"{speed:,}", times, f"{speed / products:.0%}" if products else ""])
        for kind, parts in result["milliseconds_of_a_step"][network].items():
            steps.append([network, kind, *(f"{value:.2f}" for value in parts.values())])
    columns = ["network", "", "images/s", "× common recipe", "of the products"]
    speeds = pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)
    columns = ["ms of a step", "", "data", "forward", "backward", "optimizer", "`fit()`"]
    parts = pd.DataFrame(steps, columns=columns).to_markdown(index=False, disable_numparse=True)
    nll = ""
    if "nll" in result:
        times = result["nll"]["evaluate()"] / result["nll"]["pythae"]
        nll = f"NLL of 784-400-20, fp32: {times:.1f} × pythae's images × samples/s\n"
    mlflow = f"MLflow: {result['tracking_overhead']:.2%} of a default training"
    return f"{result['device']}\n\n{speeds}\n\n{parts}\n\n{nll}{mlflow}"


def main() -> None:
    """Measure, print and write benchmarks/speed.json; with the argument `peers`, also pythae."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        raw.mkdir()
        dataset = fetch(DataParams(), mnist_dir(), raw, None)
        train = load(raw, "train")
        result: dict[str, Any] = {
            "device": str(resolve(TrainParams(compile=False))),
            "dataset": dataset["name"],
            **measure_speed(raw, folder, train.rows(slice(IMAGES)), "peers" in sys.argv and have_peers()),
            "tracking_overhead": round(
                measure_tracking(dataset, split_validation(train, DataParams().validation_size)[0], folder), 4
            ),
        }
    write_json(OUTPUT, result)
    print(table(result))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
