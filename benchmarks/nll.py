"""How fast the NLL of test images is estimated: against the decoder's matrix products alone, and one image at a time.

`make bench` measures everything in one run, in turns, and keeps each contender's best turn. The unit is a latent: one
importance sample of one image, decoded and weighted. Writes benchmarks/nll.json.
"""

import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from vae.config import EvaluateParams, Params, TrainParams, load_params
from vae.device import Hardware, resolve
from vae.evaluation.likelihood import evaluate
from vae.files import write_json
from vae.models.vae import VAE
from vae.workflow.command_line import errors_in_one_line

PROJECT = Path(__file__).resolve().parents[1]
OUTPUT = PROJECT / "benchmarks" / "nll.json"
TURNS, SECONDS = 10, 1.0  # of each contender in a turn, at least: short turns see the same neighbours
IMAGES, SAMPLES = 4, 5000
TEST_IMAGES = 10_000
CHUNKS = 1000, 16_000  # for the memory

Contender = Callable[[], int]  # evaluates some latents, and says how many


def default_model(params: Params, device: torch.device) -> VAE:
    """The model of params.yaml with untrained weights, which take as long as trained ones."""
    return VAE.from_params(params.model, seed=0).to(device).eval()


def images(n: int, device: torch.device) -> Tensor:
    """`n` binary images, uint8 [n, 784], a fifth of the pixels white."""
    return (torch.rand(n, 784, generator=torch.Generator().manual_seed(0)) < 0.2).to(device, torch.uint8) * 255


def ours(model: VAE, params: EvaluateParams, device: torch.device, n: int = IMAGES) -> Contender:
    """`evaluate()` of `n` images."""
    targets, labels = images(n, device), torch.zeros(n, dtype=torch.int64)

    def contender() -> int:
        evaluate(model, targets, labels, params)
        return n * params.importance_samples

    return contender


def products(model: VAE, rows: int, hardware: Hardware) -> Contender:
    """The matrix products of the decoder and nothing else, into memory that is there already."""
    dtype = torch.bfloat16 if hardware.precision == "bf16" else torch.float32
    operands = []
    for layer in (part for part in model.decoder.modules() if isinstance(part, torch.nn.Linear)):
        weight = layer.weight.detach().to(dtype)
        h = torch.randn(rows, layer.in_features, device=hardware.device, dtype=dtype)
        operands.append((h, weight.T, torch.empty(rows, layer.out_features, device=hardware.device, dtype=dtype)))

    def contender() -> int:
        for _ in range(10):
            for h, weight, out in operands:
                torch.mm(h, weight, out=out)
        return 10 * rows

    return contender


@torch.no_grad()
def log_weights(model: VAE, x: Tensor) -> Tensor:
    """log p(x, z) − log q(z|x) with one draw z for each row of `x`, as it is mostly written: [B, D] -> [B]."""
    mu, logvar = model.encode(x)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    z = posterior.sample()
    nll = F.binary_cross_entropy_with_logits(model.decode(z), x, reduction="none").sum(1)
    log_ratio: Tensor = (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)
    return -nll - log_ratio


def copies(model: VAE, device: torch.device) -> Contender:
    """One image at a time, repeated SAMPLES times: every copy is encoded, and all are decoded in one batch."""
    x = images(1, device).float() / 255

    def contender() -> int:
        (torch.logsumexp(log_weights(model, x.repeat(SAMPLES, 1)), 0) - math.log(SAMPLES)).item()
        return SAMPLES

    return contender


def one_by_one(model: VAE, device: torch.device, samples: int = 200) -> Contender:
    """One image at a time, and one sample at a time: a batch of one through encoder and decoder."""
    x = images(1, device).float() / 255

    def contender() -> int:
        weights = [log_weights(model, x).item() for _ in range(samples)]
        torch.logsumexp(torch.tensor(weights), 0)
        return samples

    return contender


def rate(contender: Contender, device: torch.device) -> float:
    """Latents a second."""
    latents, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SECONDS:
        latents += contender()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return latents / seconds


def measure_speed(params: Params) -> dict[str, Any]:
    """Latents a second of each contender, and the ratios that they give."""
    fast = resolve(TrainParams())
    plain = Hardware(fast.device, "fp32", compile=False)
    model = default_model(params, fast.device)
    contenders = {"one_by_one": one_by_one(model, fast.device), "copies": copies(model, fast.device)}
    precisions = {"fp32": plain} | ({"bf16": fast} if fast.precision == "bf16" else {})
    for name, hardware in precisions.items():
        settings = params.evaluate.model_copy(update={"importance_samples": SAMPLES, "precision": name})
        contenders[name] = ours(model, settings, fast.device)
        contenders[f"products_{name}"] = products(model, params.evaluate.chunk_size, hardware)
    speed = dict.fromkeys(contenders, 0.0)
    for turn in range(TURNS):
        for name, contender in contenders.items():
            speed[name] = max(speed[name], rate(contender, fast.device))
            print(f"turn {turn + 1}/{TURNS}  {name:13} {speed[name]:>12,.0f} latents/s at best", flush=True)
    compared = ("one_by_one", "copies", *precisions)
    return {
        "device": str(plain).removesuffix(", fp32"),
        "latents_per_second": {name: round(value) for name, value in speed.items()},
        "minutes_of_10000_images": {name: round(TEST_IMAGES * SAMPLES / speed[name] / 60, 1) for name in compared},
        "times_one_by_one": {name: round(speed[name] / speed["one_by_one"], 1) for name in compared},
        "times_copies": {name: round(speed[name] / speed["copies"], 2) for name in precisions},
        "matmul_fraction": {name: round(speed[name] / speed[f"products_{name}"], 2) for name in precisions},
    }


def measure_memory() -> dict[str, int]:
    """MiB that `evaluate()` takes at its peak on the CPU, by chunk size: each in a process of its own."""
    return {
        str(chunk): int(subprocess.run([sys.executable, __file__, str(chunk)], check=True, capture_output=True).stdout)
        for chunk in CHUNKS
    }


def memory_of(chunk_size: int) -> int:
    """MiB that this process' memory grows by, at its peak, while it evaluates."""
    params = load_params(PROJECT / "params.yaml")
    cpu = torch.device("cpu")
    model = default_model(params, cpu)
    settings = params.evaluate.model_copy(update={"importance_samples": SAMPLES, "chunk_size": chunk_size})
    ours(model, settings.model_copy(update={"importance_samples": 16, "chunk_size": 16}), cpu)()  # libraries load
    before = int(psutil.Process().memory_info().rss)
    ours(model, settings, cpu)()
    return round((peak_memory() - before) / 2**20)


def peak_memory() -> int:
    """The most bytes of memory that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage would begin with the parent's peak
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown, as README quotes it."""
    speed, times, fraction = result["latents_per_second"], result["times_one_by_one"], result["matmul_fraction"]
    minutes = result["minutes_of_10000_images"]
    rows = {
        "one_by_one": "one image, one sample at a time",
        "copies": f"one image at a time, {SAMPLES:,} copies encoded and decoded",
        **{name: f"`evaluate()`, {name}" for name in fraction},
    }
    lines = [
        f"NLL with {SAMPLES:,} samples, default model, {result['device']}",
        "",
        f"| | images × samples/s | {TEST_IMAGES:,} images, minutes | × one by one | of the matrix products alone |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {text} | {speed[name]:,} | {minutes[name]:,.0f} | {times[name]:.1f} | "
            f"{format(fraction[name], '.0%') if name in fraction else ''} |"
            for name, text in rows.items()
        ),
        "",
        "peak memory: " + ", ".join(f"{mib} MiB with chunk_size {n}" for n, mib in result["memory_mib"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write benchmarks/nll.json."""
    result = measure_speed(load_params(PROJECT / "params.yaml")) | {"memory_mib": measure_memory()}
    write_json(OUTPUT, {"samples": SAMPLES, **result})
    print(table(result))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        if sys.argv[1:]:
            print(memory_of(int(sys.argv[1])))
        else:
            main()
