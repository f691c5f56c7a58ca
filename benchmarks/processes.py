"""How two cores are used best: by one training of two threads or two processes, or by two trainings side by side.

`make processes` measures the fastest epoch of each, then the time of gloo's all-reduce, which averages gradients
between processes. Images are random, which does not change the speed. Writes benchmarks/processes.json.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipes import CONV
from vae.config import Params
from vae.data.datasets import Split
from vae.device import resolve
from vae.files import write_json
from vae.models.vae import VAE
from vae.training.distributed import is_first, process_group
from vae.training.loop import fit
from vae.workflow.command_line import errors_in_one_line

OUTPUT = Path(__file__).with_name("processes.json")
EPOCHS = 3  # the first one is a warm-up
# The parameters of a model, and the training steps of an epoch.
MODELS = {
    "default": (Params(), 50),
    "conv": (Params().replaced(CONV | {"train.compile": False}), 10),
    "wide": (Params().replaced({"model.hidden_dims": (7000, 7000, 7000)}), 1),
}
# Trainings side by side, processes of each, threads of each process.
WAYS = {
    "1 process of 1 thread": (1, 1, 1),
    "1 process of 2 threads": (1, 1, 2),
    "2 processes of 1 thread": (1, 2, 1),
    "2 trainings of 1 thread": (2, 1, 1),
}
SIZES = (2**12, 2**23, 2**29)  # bytes


def step_seconds(params: Params, steps: int) -> float:
    """Seconds of a training step, in the fastest epoch."""
    train = Split(torch.randint(0, 256, (steps * params.train.batch_size, 784), dtype=torch.uint8), None)
    short = params.train.model_copy(update={"epochs": EPOCHS, "elbo_epochs": EPOCHS})
    model = VAE.from_params(params.resolved_model, 0)
    history = fit(model, train, train.rows(slice(8)), short, resolve(short)).history
    return min(record["train/seconds"] for record in history[1:]) / steps


def all_reduce_seconds() -> dict[int, float]:
    """Seconds in which a sum over all processes is made, by its bytes: the best of ten."""
    seconds = {}
    for size in SIZES:
        values, times = torch.ones(size // 4), []
        for _ in range(10):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(values)
            times.append(time.perf_counter() - started)
        seconds[size] = min(times)
    return seconds


def run(*arguments: str, trainings: int = 1, processes: int = 1, threads: int = 1) -> list[Any]:
    """What this program prints when it is run with `arguments` in other processes, for each training."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, __file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}  # nothing is learned
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(trainings)]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def child(what: str) -> None:
    """Measure in this process, beside others, and print the result as JSON."""
    with process_group(torch.device("cpu"), 600):
        result = all_reduce_seconds() if what == "all-reduce" else step_seconds(*MODELS[what])
        if is_first():
            print(json.dumps(result))


def main() -> None:
    """Measure, print, and write benchmarks/processes.json."""
    result: dict[str, Any] = {}
    for name, (params, _) in MODELS.items():
        best = {}
        for way, (trainings, processes, threads) in WAYS.items():
            found = run(name, trainings=trainings, processes=processes, threads=threads)
            best[way] = sum(found) / len(found) / trainings
        parameters = sum(p.numel() for p in VAE.from_params(params.resolved_model, 0).parameters())
        result[name] = {"parameters": parameters, "batch_size": params.train.batch_size, "seconds_a_step": {}}
        print(f"{name}: {parameters:,} parameters, batch {params.train.batch_size}")
        for way, seconds in best.items():
            epoch = seconds * 60_000 / params.train.batch_size
            result[name]["seconds_a_step"][way] = round(seconds, 5)
            print(f"  {way:24}{1000 * seconds:8.1f} ms a step {epoch:8.1f} s an epoch of 60,000 images")
    (result["all_reduce_seconds"],) = run("all-reduce", processes=2)
    for size, seconds in result["all_reduce_seconds"].items():
        print(f"all-reduce of {int(size):>11,} bytes: {1000 * seconds:8.2f} ms")
    write_json(OUTPUT, result)


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        child(sys.argv[1]) if len(sys.argv) > 1 else main()
