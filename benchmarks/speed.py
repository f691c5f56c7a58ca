"""How fast it trains: against the recipe that most people copy, and against the matrix products alone.

`make bench` measures everything in one run, in turns, and keeps each contender's best turn: timings on a shared
machine are noisy, ratios of neighbours less so. Writes benchmarks/speed.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from vae.config import DataParams, Params, TrainParams, load_params
from vae.data.datasets import FILES, Split, gunzip, load, split_validation
from vae.data.download import fetch
from vae.device import Hardware, resolve
from vae.files import write_json
from vae.models.vae import VAE
from vae.tracking import store as tracking
from vae.training.loop import Record, fit
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import mnist_dir

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "speed.json"
TURNS = 3
BATCH = 128


def small_vae() -> VAE:
    """784-400-20, the VAE of PyTorch's own example."""
    return VAE(784, hidden_dims=(400,), latent_dim=20, activation="relu", residual=False)


class CommonVAE(torch.nn.Module):
    """784-400-20 as it is mostly written: probabilities out of a sigmoid, plain functions."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mu, self.logvar = (
            torch.nn.Linear(784, 400),
            torch.nn.Linear(400, 20),
            torch.nn.Linear(400, 20),
        )
        self.back, self.pixels = torch.nn.Linear(20, 400), torch.nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 784] -> probabilities, mean, log-variance."""
        h = F.relu(self.hidden(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return torch.sigmoid(self.pixels(F.relu(self.back(z)))), mu, logvar


def common_recipe(root: Path, device: torch.device) -> float:
    """Images a second with a DataLoader over torchvision's MNIST and `.item()` at every step, fp32."""
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


def ours(train: Split, hardware: Hardware) -> float:
    """Images a second of `fit()` on the same grey images; the first epoch warms up."""
    records: list[Record] = []
    params = TrainParams(epochs=3, batch_size=BATCH)
    few = Split(train.images[:BATCH], train.labels[:BATCH])
    fit(small_vae(), train, few, params, hardware, binarization="none", on_epoch=records.append)
    return max(record["train/images_per_second"] for record in records[1:])


def products(hardware: Hardware) -> float:
    """Images a second if a training step were nothing but its matrix products."""
    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    steps = []
    for number, layer in enumerate(m for m in small_vae().modules() if isinstance(m, torch.nn.Linear)):
        x = torch.randn(BATCH, layer.in_features, device=hardware.device, dtype=dtype)
        weight = layer.weight.detach().to(hardware.device, dtype)
        gradient = torch.randn(BATCH, layer.out_features, device=hardware.device, dtype=dtype)
        steps.append((x, weight, gradient, number > 0))  # nobody asks for the images' gradient

    def step() -> None:
        for x, weight, gradient, needs_input_gradient in steps:
            torch.mm(x, weight.T)
            torch.mm(gradient.T, x)
            if needs_input_gradient:
                torch.mm(gradient, weight)

    return BATCH * repeated(step, hardware.device)


def repeated(step: Callable[[], Any], device: torch.device, seconds: float = 3.0) -> float:
    """Calls a second."""
    calls = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(50):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls += 50
    return calls / (time.perf_counter() - started)


def measure_speed(raw: Path, root: Path, train: Split) -> dict[str, dict[str, float]]:
    """Images a second of each contender, and the ratios that they give."""
    unpack_for_torchvision(raw, root)
    fast = resolve(TrainParams())
    plain = Hardware(fast.device, "fp32", fast.compile)
    contenders: dict[str, Callable[[], float]] = {
        "common_recipe": lambda: common_recipe(root, fast.device),
        "fp32": lambda: ours(train, plain),
        "products_fp32": lambda: products(plain),
        "auto": lambda: ours(train, fast),
        "products_auto": lambda: products(fast),
    }
    speed = dict.fromkeys(contenders, 0.0)
    for turn in range(TURNS):
        for name, contender in contenders.items():
            speed[name] = max(speed[name], contender())
            print(f"turn {turn + 1}/{TURNS}  {name:14} {speed[name]:>9,.0f} images/s at best", flush=True)
    return {
        "images_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": {name: round(speed[name] / speed["common_recipe"], 2) for name in ("fp32", "auto")},
        "matmul_fraction": {name: round(speed[name] / speed[f"products_{name}"], 2) for name in ("fp32", "auto")},
    }


def unpack_for_torchvision(raw: Path, root: Path) -> None:
    """Lay the files out as torchvision's datasets.MNIST looks for them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in (name for pair in FILES.values() for name in pair):
        (folder / name).write_bytes(gunzip((raw / f"{name}.gz").read_bytes(), name))


def measure_tracking(params: Params, train: Split, folder: Path) -> float:
    """Seconds spent in MLflow calls by a default training, as a share of the training's own seconds."""
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    hardware = resolve(params.train)
    records: list[Record] = []
    few = params.train.model_copy(update={"epochs": 2})
    model = VAE.from_params(params.model, seed=0)
    fit(model, train, Split(train.images[:3000], train.labels[:3000]), few, hardware, on_epoch=records.append)
    tracking.connect()  # creates the database, once for all runs
    started = time.perf_counter()
    tracking.connect()
    with tracking.run(tracking.run_name(params)) as run:
        tracking.log_params(run, params, hardware)
        for epoch in range(params.train.epochs):
            run.log_metrics(records[-1], step=epoch)
    return (time.perf_counter() - started) / (params.train.epochs * records[-1]["train/seconds"])


def measure_noop(folder: Path) -> float:
    """Time of `dvc repro` with nothing to do, over that of four stages that only copy a file."""
    ours, trivial = folder / "ours", folder / "trivial"
    for name in ("pipeline", "src", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        (ours / name).parent.mkdir(parents=True, exist_ok=True)
        copy(PROJECT / name, ours / name)
    params = YAML().load(PROJECT / "params.yaml")
    params["data"]["source"], params["train"]["epochs"], params["evaluate"]["importance_samples"] = "bundled", 1, 5
    YAML().dump(params, ours / "params.yaml")
    trivial.mkdir()
    (trivial / "0.txt").write_text("0")
    stages = {
        f"stage{n}": {"cmd": f"cp {n}.txt {n + 1}.txt", "deps": [f"{n}.txt"], "outs": [f"{n + 1}.txt"]}
        for n in range(4)
    }
    (trivial / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    for repo in (ours, trivial):
        for command in (["git", "init", "-q"], ["dvc", "init", "-q", "-f"], ["dvc", "repro", "-q"]):
            subprocess.run(command, cwd=repo, check=True, stdout=subprocess.DEVNULL)
    best = dict.fromkeys((ours, trivial), float("inf"))
    for _ in range(2 * TURNS):
        for repo in best:
            started = time.perf_counter()
            subprocess.run(["dvc", "repro", "-q"], cwd=repo, check=True)
            best[repo] = min(best[repo], time.perf_counter() - started)
    return best[ours] / best[trivial]


def main() -> None:
    """Measure, print and write the table."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["DVC_NO_ANALYTICS"] = "1"
    params = load_params(PROJECT / "params.yaml")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        raw.mkdir()
        dataset = fetch(DataParams(), mnist_dir(), raw, None)
        train = load(raw, "train")
        kept, _ = split_validation(train, params.data.validation_size)
        result: dict[str, Any] = {
            "device": str(resolve(TrainParams())),
            "dataset": dataset["name"],
            **measure_speed(raw, folder, train),
            "noop_repro_ratio": round(measure_noop(folder), 2),
            "tracking_overhead": round(measure_tracking(params, kept, folder), 4),
        }
    write_json(OUTPUT, result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, as README quotes it."""
    speed, ratio, fraction = result["images_per_second"], result["ratio"], result["matmul_fraction"]
    lines = [
        f"784-400-20, batch {BATCH}, {result['device']}",
        "",
        "| | images/s | × common recipe | of the matrix products alone |",
        "|---|---:|---:|---:|",
        f"| DataLoader, ToTensor, `.item()` | {speed['common_recipe']:,} | 1.00 | |",
        *(f"| `fit()`, {name} | {speed[name]:,} | {ratio[name]:.2f} | {fraction[name]:.0%} |" for name in ratio),
        "",
        f"no-op `dvc repro`: {result['noop_repro_ratio']:.2f} × that of a trivial pipeline; "
        f"MLflow: {result['tracking_overhead']:.2%} of a default training",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
