"""How fast the test NLL is estimated, compared with common implementations and with the matrix products alone.

`make bench` measures all contenders alternately and keeps the best turn of each. The unit is a latent: one importance
sample of one image, decoded and weighted. Writes benchmarks/nll.json.
"""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from timing import best_rates, rate
from vae.config import EvaluateParams, ModelParams, TrainParams
from vae.device import Hardware, resolve
from vae.evaluation.likelihood import evaluate
from vae.files import write_json
from vae.models.vae import VAE
from vae.workflow.command_line import errors_in_one_line

OUTPUT = Path(__file__).with_name("nll.json")
TURNS, SECONDS = 10, 1.0  # per contender and turn: short turns meet the same load
IMAGES, SAMPLES = 4, 5000
FEW = 200  # samples where they are taken one at a time
TEST_IMAGES = 10_000
CHUNKS = 1000, 16_000  # of the memory measurement

Contender = Callable[[], int]  # evaluates some latents and returns how many


def default_model(device: torch.device) -> VAE:
    """The default model with untrained weights, which are as fast as trained ones."""
    return VAE.from_params(ModelParams(), seed=0).to(device).eval()


def images(n: int, device: torch.device) -> Tensor:
    """`n` binary images, uint8 [n, 784], with a fifth of the pixels white."""
    return (torch.rand(n, 784, generator=torch.Generator().manual_seed(0)) < 0.2).to(device, torch.uint8) * 255


def ours(model: VAE, params: EvaluateParams, device: torch.device) -> Contender:
    """`evaluate()` of a few images."""
    targets, labels = images(IMAGES, device), torch.zeros(IMAGES, dtype=torch.int64)

    def contender() -> int:
        evaluate(model, targets, labels, params)
        return IMAGES * params.importance_samples

    return contender


def products(model: VAE, rows: int, hardware: Hardware) -> Contender:
    """The matrix products of decoder and prior only, into memory that is already allocated; the prior's are in fp32."""
    operands = []
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.startswith(("decoder.", "prior.")):
            half = hardware.precision == "bf16" and name.startswith("decoder.")
            weight = layer.weight.detach().to(torch.bfloat16 if half else torch.float32)
            h, out = weight.new_ones(rows, layer.in_features), weight.new_ones(rows, layer.out_features)
            operands.append((h, weight.T, out))

    def contender() -> int:
        for _ in range(10):
            for h, weight, out in operands:
                torch.mm(h, weight, out=out)
        return 10 * rows

    return contender


@torch.no_grad()
def log_weights(model: VAE, x: Tensor) -> Tensor:
    """log p(x, z) − log q(z|x) for one sample z per row of `x`, as it is usually written: [B, D] -> [B]."""
    mu, logvar = model.encode(x)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    z = posterior.sample()
    nll = F.binary_cross_entropy_with_logits(model.decode(z), x, reduction="none").sum(1)
    log_ratio: Tensor = posterior.log_prob(z).sum(1) - model.prior.log_density(z)
    return -nll - log_ratio


def copies(model: VAE, device: torch.device) -> Contender:
    """One image at a time, copied SAMPLES times: each copy is encoded, and all are decoded in one batch."""
    x = images(1, device).float() / 255

    def contender() -> int:
        (torch.logsumexp(log_weights(model, x.repeat(SAMPLES, 1)), 0) - math.log(SAMPLES)).item()
        return SAMPLES

    return contender


def one_by_one(model: VAE, device: torch.device) -> Contender:
    """One image and one sample at a time."""
    x = images(1, device).float() / 255

    def contender() -> int:
        torch.logsumexp(torch.tensor([log_weights(model, x).item() for _ in range(FEW)]), 0)
        return FEW

    return contender


def measure_speed() -> dict[str, Any]:
    """Latents per second of each contender, and ratios between contenders."""
    fast = resolve(TrainParams())
    plain = Hardware(fast.device, "fp32", compile=False)
    model = default_model(fast.device)
    contenders = {"one_by_one": one_by_one(model, fast.device), "copies": copies(model, fast.device)}
    precisions = {"fp32": plain} | ({"bf16": fast} if fast.precision == "bf16" else {})
    for name, hardware in precisions.items():
        params = EvaluateParams.model_validate({"importance_samples": SAMPLES, "precision": name})
        contenders[name] = ours(model, params, fast.device)
        contenders[f"products_{name}"] = products(model, params.chunk_size, hardware)
    timed = {name: lambda work=work: rate(work, fast.device, SECONDS) for name, work in contenders.items()}
    speed = best_rates(timed, TURNS, "latents")
    compared = ("one_by_one", "copies", *precisions)
    return {
        "device": str(plain).split(", fp32")[0],
        "latents_per_second": {name: round(value) for name, value in speed.items()},
        "minutes_of_10000_images": {name: round(TEST_IMAGES * SAMPLES / speed[name] / 60, 1) for name in compared},
        "times_one_by_one": {name: round(speed[name] / speed["one_by_one"], 1) for name in compared},
        "matmul_fraction": {name: round(speed[name] / speed[f"products_{name}"], 2) for name in precisions},
    }


def measure_memory() -> dict[str, int]:
    """Peak memory of `evaluate()` on the CPU in MiB by chunk size, each in a process of its own; on Linux only."""
    if sys.platform != "linux":
        return {}
    command = [sys.executable, __file__]
    return {
        str(chunk): int(subprocess.run([*command, str(chunk)], check=True, capture_output=True).stdout)
        for chunk in CHUNKS
    }


def memory_of(chunk_size: int) -> int:
    """MiB by which an evaluation increases the memory of this process, at its peak."""
    cpu = torch.device("cpu")
    model = default_model(cpu)
    ours(model, EvaluateParams(importance_samples=16, chunk_size=16), cpu)()  # loads the libraries
    before = int(psutil.Process().memory_info().rss)
    ours(model, EvaluateParams(importance_samples=SAMPLES, chunk_size=chunk_size), cpu)()
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    return round((int(peak[1]) * 1024 - before) / 2**20)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, as docs/speed.md shows it."""
    names = {
        "one_by_one": "one image, one sample at a time",
        "copies": f"one image at a time, {SAMPLES:,} copies encoded and decoded",
        "fp32": "`evaluate()`, fp32",
        "bf16": "`evaluate()`, bf16",
    }
    columns = {
        "images × samples/s": {k: f"{v:,}" for k, v in result["latents_per_second"].items()},
        f"{TEST_IMAGES:,} images, minutes": {k: f"{v:,.0f}" for k, v in result["minutes_of_10000_images"].items()},
        "× one by one": result["times_one_by_one"],
        "of the matrix products alone": {k: f"{v:.0%}" for k, v in result["matmul_fraction"].items()},
    }
    rows = pd.DataFrame(columns).reindex([*result["times_one_by_one"]]).fillna("").rename(index=names)
    memory = ", ".join(f"{mib} MiB with chunk_size {n}" for n, mib in result["memory_mib"].items())
    title = f"NLL with {SAMPLES:,} samples, default model, {result['device']}"
    return f"{title}\n\n{rows.to_markdown(disable_numparse=True)}\n\npeak memory: {memory or 'measured on Linux only'}"


def main() -> None:
    """Measure, print, and write benchmarks/nll.json."""
    result = measure_speed() | {"memory_mib": measure_memory()}
    write_json(OUTPUT, {"samples": SAMPLES, **result})
    print(table(result))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        if sys.argv[1:]:
            print(memory_of(int(sys.argv[1])))
        else:
            main()
