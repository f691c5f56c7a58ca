"""How fast `fit()` trains, compared with a common training loop and with the matrix products alone.

`make bench` measures all contenders alternately and keeps the best turn of each: on a shared machine, ratios are less
noisy than timings. Writes benchmarks/speed.json.
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

import pandas as pd
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from timing import best_rates, rate
from vae import tracking
from vae.config import DataParams, Params, TrainParams
from vae.data.datasets import FILES, Split, gunzip, load, split_validation
from vae.data.download import fetch
from vae.device import Hardware, resolve
from vae.files import write_json
from vae.models.vae import VAE
from vae.training.loop import Record, fit
from vae.workflow.command_line import errors_in_one_line
from vae.workflow.stages import mnist_dir

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "speed.json"
TURNS = 3
BATCH = 128


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


def ours(train: Split, hardware: Hardware) -> float:
    """Images per second of `fit()` on the same grey images; the first epoch is a warm-up."""
    records: list[Record] = []
    few = train.rows(slice(BATCH))
    params = TrainParams(epochs=3, batch_size=BATCH, optimizer="adam")  # as the common recipe
    fit(small_vae(), train, few, params, hardware, binarization="none", on_epoch=records.append)
    return max(record["train/images_per_second"] for record in records[1:])


def products(hardware: Hardware) -> float:
    """Images per second if a training step consisted of its matrix products only."""
    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    layers = []
    for number, layer in enumerate(m for m in small_vae().modules() if isinstance(m, torch.nn.Linear)):
        x = torch.randn(BATCH, layer.in_features, device=hardware.device, dtype=dtype)
        weight = layer.weight.detach().to(hardware.device, dtype)
        gradient = torch.randn(BATCH, layer.out_features, device=hardware.device, dtype=dtype)
        layers.append((x, weight, gradient, number > 0))  # the images need no gradient

    def steps() -> int:
        for _ in range(50):
            for x, weight, gradient, needs_input_gradient in layers:
                torch.mm(x, weight.T)
                torch.mm(gradient.T, x)
                if needs_input_gradient:
                    torch.mm(gradient, weight)
        return 50 * BATCH

    return rate(steps, hardware.device, seconds=3.0)


def measure_speed(raw: Path, root: Path, train: Split) -> dict[str, dict[str, float]]:
    """Images per second of each contender, and ratios between contenders."""
    folder = root / "MNIST" / "raw"  # where torchvision expects the files, unpacked
    folder.mkdir(parents=True)
    for name in (name for pair in FILES.values() for name in pair):
        (folder / name).write_bytes(gunzip((raw / f"{name}.gz").read_bytes(), name))
    fast = resolve(TrainParams())
    plain = Hardware(fast.device, "fp32", fast.compile)
    contenders: dict[str, Callable[[], float]] = {
        "common_recipe": lambda: common_recipe(root, fast.device),
        "fp32": lambda: ours(train, plain),
        "products_fp32": lambda: products(plain),
        "auto": lambda: ours(train, fast),
        "products_auto": lambda: products(fast),
    }
    speed = best_rates(contenders, TURNS, "images")
    return {
        "images_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": {name: round(speed[name] / speed["common_recipe"], 2) for name in ("fp32", "auto")},
        "matmul_fraction": {name: round(speed[name] / speed[f"products_{name}"], 2) for name in ("fp32", "auto")},
    }


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


def measure_noop(folder: Path) -> float:
    """Seconds of a `dvc repro` without changes, divided by those of four stages that copy a file."""
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


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, as docs/speed.md shows it."""
    speed, ratio, fraction = result["images_per_second"], result["ratio"], result["matmul_fraction"]
    rows = [["DataLoader, ToTensor, `.item()`", f"{speed['common_recipe']:,}", "1.00", ""]]
    rows += [[f"`fit()`, {name}", f"{speed[name]:,}", f"{ratio[name]:.2f}", f"{fraction[name]:.0%}"] for name in ratio]
    columns = ["", "images/s", "× common recipe", "of the matrix products alone"]
    markdown = pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)
    return (
        f"784-400-20, batch {BATCH}, {result['device']}\n\n{markdown}\n\n"
        f"`dvc repro` without changes: {result['noop_repro_ratio']:.2f} × that of a trivial pipeline; "
        f"MLflow: {result['tracking_overhead']:.2%} of a default training"
    )


def main() -> None:
    """Measure, print and write benchmarks/speed.json."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["DVC_NO_ANALYTICS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "raw"
        raw.mkdir()
        dataset = fetch(DataParams(), mnist_dir(), raw, None)
        train = load(raw, "train")
        result: dict[str, Any] = {
            "device": str(resolve(TrainParams())),
            "dataset": dataset["name"],
            **measure_speed(raw, folder, train),
            "noop_repro_ratio": round(measure_noop(folder), 2),
            "tracking_overhead": round(
                measure_tracking(dataset, split_validation(train, DataParams().validation_size)[0], folder), 4
            ),
        }
    write_json(OUTPUT, result)
    print(table(result))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
