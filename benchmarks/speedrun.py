"""Time to quality: the seconds of `fit()` until the test NLL reaches published ones.

`make speedrun` trains the quick recipe, that of params.yaml, with several numbers of epochs, until the last target is
reached, each with a complete learning-rate schedule. The plain recipe (784-400-20, Adam at 1e-3) is trained once and
evaluated on its way. The NLL is that of the whole test set with SAMPLES importance samples; the seconds include
validation, but not the NLL. Finished trainings are not repeated. Writes benchmarks/speedrun.csv and docs/speedrun.png.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from published import test_metrics
from recipes import PLAIN, QUICK
from vae.config import Params
from vae.data.datasets import load, split_validation
from vae.device import resolve
from vae.files import write_atomically
from vae.models.vae import VAE
from vae.plots.figure import PALETTE, save
from vae.training.loop import Record, fit
from vae.workflow.command_line import ArgumentParser, errors_in_one_line
from vae.workflow.stages import RAW, fetch_dataset

OUTPUT = Path("benchmarks/speedrun.csv")
PICTURE = Path("docs/speedrun.png")
TARGETS = (88.0, 86.76, 85.5, 84.5, 83.5)
LENGTHS = (4, 8, 16, 24, 32, 64)  # epochs
SAMPLES = 200  # fewer samples increase the NLL on average, so no time is too short
DPI = 110

Row = dict[str, Any]
OnEpoch = Callable[[VAE, list[Record]], None]


def main() -> None:
    """Measure what is missing, print the table, and plot the curves."""
    dataset = fetch_dataset(QUICK.data)
    rows: list[Any] = pd.read_csv(OUTPUT).to_dict("records") if OUTPUT.is_file() else []

    def add(recipe: str, model: VAE, records: list[Record], params: Params) -> None:
        seconds = sum(record["train/seconds"] + record["val/seconds"] for record in records)
        nll = test_metrics(model, params.replaced({"evaluate.importance_samples": SAMPLES}))["nll"]
        rows.append({"recipe": recipe, "epochs": len(records), "seconds": round(seconds, 1), "nll": round(nll, 3)})
        print(f"{recipe:6} {len(records):>4} epochs {seconds:>6.0f} s  NLL {nll:.2f}", flush=True)
        write_atomically(OUTPUT, pd.DataFrame(rows).to_csv(index=False))

    def evaluate_plain(model: VAE, records: list[Record]) -> None:
        if len(records) in (*LENGTHS, PLAIN.train.epochs):
            add("plain", copy.deepcopy(model), records, PLAIN)

    if not any((row["recipe"], row["epochs"]) == ("plain", PLAIN.train.epochs) for row in rows):
        rows = [row for row in rows if row["recipe"] != "plain"]  # of a training that was interrupted
        train(PLAIN, evaluate_plain)
    for epochs in LENGTHS:
        quick = [row for row in rows if row["recipe"] == "quick"]
        if any(row["nll"] <= TARGETS[-1] for row in quick):
            break
        if not any(row["epochs"] == epochs for row in quick):
            params = QUICK.replaced({"train.epochs": epochs})
            add("quick", *train(params), params)
    table = pd.DataFrame(rows)
    print(f"\n{dataset['name']}, {torch.get_num_threads()} threads\n\n{times(table).to_markdown(index=False)}")
    save(curves(table), PICTURE, DPI)


def train(params: Params, on_epoch: OnEpoch = lambda model, records: None) -> tuple[VAE, list[Record]]:
    """The model of `params` after `fit()`, and its records; `on_epoch` gets both after each epoch."""
    images, validation = split_validation(load(RAW, "train"), params.data.validation_size)
    model = VAE.from_params(params.resolved_model, params.seed)
    model.initialize_from_data(images.images)
    records: list[Record] = []

    def callback(record: Record) -> None:
        records.append(record)
        on_epoch(model, records)

    hardware = resolve(params.train, len(images))
    fit(model, images, validation, params.train, hardware, seed=params.seed, on_epoch=callback)
    return model, records


def times(table: pd.DataFrame) -> pd.DataFrame:
    """The shortest training that reaches each target."""

    def shortest(recipe: str, target: float) -> str:
        reached = table[(table["recipe"] == recipe) & (table["nll"] <= target)].sort_values("seconds")
        return (
            f"{reached['seconds'].iloc[0]:.0f} s ({reached['epochs'].iloc[0]} epochs)"
            if len(reached)
            else "not reached"
        )

    return pd.DataFrame(
        {"test NLL": f"≤ {target}", **{recipe: shortest(recipe, target) for recipe in ("plain", "quick")}}
        for target in TARGETS
    )


def curves(table: pd.DataFrame) -> Figure:
    """NLL by seconds for both recipes, with the targets as lines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.add_subplot()
    names = {"plain": "plain: 784-400-20, Adam 1e-3, one training", "quick": "params.yaml, one training per point"}
    for number, (recipe, label) in enumerate(names.items()):
        points = table[table["recipe"] == recipe].sort_values("seconds")
        ax.plot(points["seconds"], points["nll"], "o-", color=PALETTE[number], label=label, ms=4)
    for target in TARGETS:
        ax.axhline(target, color="0.75", lw=0.8, zorder=0)
        ax.annotate(f"{target:g}", (1, target), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    ax.set(xlabel="seconds of training", ylabel="test NLL, nats per image", title="Time to quality")
    ax.set(xscale="log", ylim=(min(TARGETS) - 1, 102))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    with errors_in_one_line("the same command continues with the next length"):
        ArgumentParser(__doc__).parse_args()
        main()
