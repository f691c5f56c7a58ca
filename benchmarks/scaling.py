"""How time and memory grow with the size of a model, of a training set, and of an evaluation: `make scaling`.

Each point is a process of its own, which trains three epochs or evaluates three times: the shortest time, and the peak
of its memory. The exponent is the slope between the two largest sizes on log-log axes. Writes benchmarks/scaling.json
and docs/scaling.png.
"""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from vae.config import Params
from vae.data.datasets import Split
from vae.device import Hardware
from vae.evaluation.likelihood import evaluate
from vae.files import write_json
from vae.models.vae import VAE
from vae.plots.figure import save
from vae.training.loop import fit
from vae.workflow.command_line import errors_in_one_line

OUTPUT = Path(__file__).with_name("scaling.json")
FIGURE = Path("docs/scaling.png")
CPU = Hardware(torch.device("cpu"), "fp32", compile=False)
REPEATS = 3
IMAGES = 2048  # of an epoch
EVALUATED = 32  # images of an evaluation
# What grows, its sizes, and the exponent that the mathematics asks for where it is not 1 at most.
SIZES: dict[str, tuple[int, ...]] = {
    "model.latent_dim": (40, 160, 640, 2560),
    "model.hidden_dims": (256, 512, 1024, 2048),
    "model.prior_components": (500, 2000, 8000, 32000),
    "training images": (1024, 4096, 16384, 65536),
    "evaluate.importance_samples": (100, 400, 1600, 6400),
}
QUADRATIC = {"model.hidden_dims": "2: the weights between hidden layers"}


def settings(name: str, size: int) -> tuple[Params, int]:
    """The default parameters with `name` at `size`, and the number of training images."""
    if name == "training images":
        return Params(), size
    values: dict[str, Any] = {name: [size] * 3 if name == "model.hidden_dims" else size}
    if name == "model.prior_components":
        values["model.prior"] = "gaussian_mixture"
    return Params().replaced(values), IMAGES


def point(name: str, size: int) -> dict[str, float]:
    """Seconds of an epoch, or of an evaluation, and the peak of this process's memory in MiB."""
    params, n = settings(name, size)
    torch.manual_seed(0)
    images = Split((torch.rand(n, 784) < 0.2).to(torch.uint8) * 255, torch.zeros(n, dtype=torch.int64))
    model = VAE.from_params(params.resolved_model, seed=0)
    if name.startswith("evaluate."):
        targets = images.images[:EVALUATED]
        seconds = min(timed(lambda: evaluate(model, targets, None, params.evaluate)) for _ in range(REPEATS))
    else:
        short = params.train.model_copy(update={"epochs": REPEATS})
        history = fit(model, images, images.rows(slice(64)), short, CPU).history
        seconds = min(record["train/seconds"] for record in history)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"size": size, "seconds": round(seconds, 4), "mib": round(peak)}


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def exponent(points: list[dict[str, float]], what: str) -> float:
    """The slope between the two largest sizes, on log-log axes."""
    (x1, y1), (x2, y2) = ((math.log(point["size"]), math.log(point[what])) for point in points[-2:])
    return round((y2 - y1) / (x2 - x1), 2)


def table(growth: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, as docs/speed.md shows it."""
    rows = [
        {
            "what grows": f"`{name}`" if "." in name else name,
            "sizes": f"{points[0]['size']:,} to {points[-1]['size']:,}",
            "seconds": f"{points[0]['seconds']:.2f} to {points[-1]['seconds']:.2f}",
            "exponent of time": exponent(points, "seconds"),
            "asked for": QUADRATIC.get(name, "1"),
            "MiB": f"{points[0]['mib']:,} to {points[-1]['mib']:,}",
            "exponent of memory": exponent(points, "mib"),
        }
        for name, points in growth.items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def plot(growth: dict[str, list[dict[str, float]]]) -> Figure:
    """Time and memory, in multiples of those of the smallest size, on log-log axes."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, what, title in zip(figure.subplots(1, 2), ("seconds", "mib"), ("Time", "Peak memory"), strict=True):
        for name, points in growth.items():
            first = points[0]
            axes.plot(
                [p["size"] / first["size"] for p in points], [p[what] / first[what] for p in points], "o-", label=name
            )
        axes.plot([1, 64], [1, 64], ":", color="grey", label="linear")
        axes.set(
            xscale="log", yscale="log", title=title, xlabel="size, × the smallest", ylabel="× that of the smallest"
        )
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, print, plot and write."""
    if sys.argv[1:]:
        print(json.dumps(point(sys.argv[1], int(sys.argv[2]))))
        return
    growth: dict[str, list[dict[str, float]]] = {}
    for name, sizes in SIZES.items():
        for size in sizes:
            command = [sys.executable, "-W", "ignore", __file__, name, str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            growth.setdefault(name, []).append(json.loads(done.stdout))
            print(f"{name} {size:,}: {growth[name][-1]['seconds']:.3f} s", flush=True)
    write_json(OUTPUT, {"device": str(CPU).removesuffix(", eager"), "growth": growth})
    save(plot(growth), FIGURE, 110)
    print(table(growth))


if __name__ == "__main__":
    with errors_in_one_line("nothing was written"):
        main()
